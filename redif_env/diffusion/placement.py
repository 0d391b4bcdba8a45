"""Where numbers live: on the host what has a number or a few a row, on the device what has the size of a sample.

Levels, timesteps, weights and counts are float64 or int64 on the CPU, as diffusers' schedulers keep their sigmas there,
so nothing of the arithmetic needs a device with float64, and nothing has to wait for the device to know where it is.
A step sends one small tensor of weights and combines samples by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

HOST = torch.device("cpu")


def expand(values: Tensor, like: Tensor) -> Tensor:
    """``(B,)`` values shaped ``(B, 1, ..., 1)``, to broadcast against ``like`` ``(B, ...)``."""
    return values.reshape(values.shape[0], *([1] * (like.ndim - 1)))


def place(values: Tensor, like: Tensor) -> Tensor:
    """Host numbers ``(B,)`` as factors of samples ``like`` ``(B, *S)``: on their device, in their type."""
    return expand(values, like).to(like)


def combine(weights: Tensor, samples: Tensor) -> Tensor:
    """Weighted sums ``(B, M, *S)`` of samples ``(B, N, *S)``, by host weights ``(B, M, N)``."""
    # Not a matrix product, whose rounding depends on the size of the batch: rows come out the same in any batch.
    factors = weights.to(samples).reshape(*weights.shape, *([1] * (samples.ndim - 2)))
    return (factors * samples[:, None]).sum(dim=2)


def fetch(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one device and type on the host, in one copy: the host waits once for the device."""
    if all(tensor.device.type == HOST.type for tensor in tensors):
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(HOST)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def has_float64(device: torch.device) -> bool:
    """Whether a device has double precision; Apple's MPS has not."""
    try:
        torch.empty(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def widest(device: torch.device) -> torch.dtype:
    """The most precise floating point type of a device."""
    return torch.float64 if has_float64(device) else torch.float32


def double(values: Tensor) -> Tensor:
    """The same numbers in float64: on their own device if it has that type, on the host if not."""
    return values.double() if has_float64(values.device) else values.to(HOST).double()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keeps a caller's ``torch.autocast`` out of the arithmetic."""
    with ExitStack() as stack:
        for kind in {device.type, HOST.type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def stock_defaults() -> Iterator[None]:
    """PyTorch's own default type and device, float32 on the CPU, whatever the caller has set.

    For code of other libraries, which makes tensors without naming either.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with HOST:
            yield
    finally:
        torch.set_default_dtype(before)
