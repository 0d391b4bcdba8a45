"""A pretended accelerator: its tensors report a device of their own, and the CPU computes them.

It finds on any machine what else only a GPU or a Mac finds, and counts what an accelerator would have to do::

    with PretendedDevice(float64=False) as device:        # like Apple's MPS; True is like CUDA
        envs = gym.make_vec("ReDiF-v0", num_envs=8, device=NAME)
        with device.not_counting(envs.unwrapped.mdp.teacher.network):
            envs.reset(seed=0)
    device.operations, device.sends, device.waits         # counters by the line of the library that caused them

Refused are float64 where the device has none, operations on tensors of two devices, and ``numpy()`` of a tensor on the
device. An operation is a kernel that would be launched there (views are none), a send a copy to the device, a wait
whatever makes the host stand still until the device is done: a copy to the host, ``item``, ``tolist``, ``if tensor``,
an index by a mask. Nothing in the library imports this file; tests and ``experiments.bench_env`` do.

PyTorch's spare backend carries the name ``npu``, which diffusers treats like any accelerator without double precision.
Tensors are wrapper subclasses around CPU tensors, and a dispatch mode catches the functions that make new ones.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "npu"
ROOT = Path(__file__).parent.parent
aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}
SEARCHES = {aten.nonzero.default, aten.masked_select.default, aten.unique_dim.default, aten._unique2.default}
"""Operations whose result has a size that only the device knows."""


class _Backend(_DummyBackendModule):
    """The device's module: it is there as long as a :class:`PretendedDevice` is."""

    def is_available(self) -> bool:
        return PretendedDevice.current is not None

    def get_rng_state(self) -> Tensor:  # random numbers are drawn on the host
        return torch.empty(0, dtype=torch.uint8, device="cpu")

    def set_rng_state(self, state: Tensor) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, _Backend())


class _Tensor(Tensor):
    """A tensor of the pretended device; ``inside`` holds its values."""

    inside: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> _Tensor:
        # Outside inference mode: else views of ordinary tensors could not be wrapped there.
        with torch.inference_mode(False):
            return Tensor._make_wrapper_subclass(
                cls,
                real.size(),
                strides=real.stride(),
                storage_offset=real.storage_offset(),
                dtype=real.dtype,
                device=torch.device(NAME, 0),
            )

    def __init__(self, real: Tensor) -> None:
        self.inside = real

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{NAME}({self.inside!r})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:  # what ``nn.Module.to`` asks for
        return ["inside"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> _Tensor:
        return _Tensor(inner["inside"])

    def untyped_storage(self) -> Any:  # safetensors
        return self.inside.untyped_storage()

    def tolist(self) -> Any:
        _current().wait()
        return self.inside.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _current().run(func, args, kwargs or {})


class PretendedDevice(TorchDispatchMode):
    """The device; one at a time.

    Args:
        float64: whether it has double precision.
    """

    current: PretendedDevice | None = None

    def __init__(self, float64: bool = False) -> None:
        super().__init__()
        self.float64 = float64
        self.operations: Counter[str] = Counter()
        self.sends: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self._counting = True
        self._entered = ExitStack()

    def __enter__(self) -> PretendedDevice:
        PretendedDevice.current = self
        self._entered.enter_context(self.in_this_thread())
        run, device = threading.Thread.run, self

        def run_here(thread: threading.Thread) -> None:
            with device.in_this_thread():
                run(thread)

        self._entered.enter_context(mock.patch.object(threading.Thread, "run", run_here))
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.close()
        PretendedDevice.current = None

    @contextmanager
    def in_this_thread(self) -> Iterator[None]:
        """What another thread must enter for itself, since dispatch modes belong to one."""
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device=NAME) comes through here
        super().__enter__()
        try:
            yield
        finally:
            super().__exit__(None, None, None)
            torch._C._set_only_lift_cpu_tensors(before)

    @contextmanager
    def not_counting(self, network: nn.Module) -> Iterator[None]:
        """Leaves out what the forward passes of ``network`` do."""

        def count(counting: bool) -> Any:
            return lambda *_: setattr(self, "_counting", counting)

        hooks = [network.register_forward_pre_hook(count(False)), network.register_forward_hook(count(True))]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def forget(self) -> None:
        """Count from zero."""
        for counter in (self.operations, self.sends, self.waits):
            counter.clear()

    @property
    def totals(self) -> tuple[int, int, int]:
        """Operations, sends and waits."""
        return self.operations.total(), self.sends.total(), self.waits.total()

    def wait(self) -> None:
        """The host waits for the device."""
        self._count(self.waits)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation of PyTorch, on the device if it or its arguments are there."""
        leaves = tree_leaves((args, kwargs))
        tensors = [value for value in leaves if isinstance(value, Tensor)]
        target = next((value for value in leaves if isinstance(value, torch.device)), None)
        here = [tensor for tensor in tensors if isinstance(tensor, _Tensor)]
        if not here and (target is None or target.type != NAME):
            return func(*args, **kwargs)
        if func._can_decompose():  # inference mode hands composite operations over whole
            with self._parts_only():
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        real_args, real_kwargs = tree_map(_real, (tuple(args), dict(kwargs)))
        if func is aten._local_scalar_dense.default:
            self.wait()
            return func(*real_args, **real_kwargs)
        if func is aten.is_pinned.default:
            return False
        if func in (aten._to_copy.default, aten.copy_.default) and self._moved(func, args, target):
            return self._wrapped(func, args, kwargs, func(*real_args, **real_kwargs), target)
        if func not in INDEXING and any(not isinstance(tensor, _Tensor) and tensor.dim() for tensor in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {NAME}:0 and cpu")
        if not func.is_view and func.namespace == "aten" and not func.__name__.startswith(("empty", "new_empty")):
            self._count(self.operations)
        by_mask = func in INDEXING and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in tree_leaves(args[1])
        )
        if by_mask or func in SEARCHES:
            self.wait()
        return self._wrapped(func, args, kwargs, func(*real_args, **real_kwargs), None)

    def _moved(self, func: Any, args: Any, target: torch.device | None) -> bool:
        """Whether a copy is one between host and device; counted if so."""
        if func is aten.copy_.default:
            destination, source = args[0], args[1]
            there, from_here = isinstance(destination, _Tensor), isinstance(source, _Tensor)
        elif target is not None:
            there, from_here = target.type == NAME, isinstance(args[0], _Tensor)
        else:
            return False
        if there == from_here:
            return False
        self._count(self.sends if there else self.waits)
        return True

    @contextmanager
    def _parts_only(self) -> Iterator[None]:
        super().__enter__()
        try:
            yield
        finally:
            super().__exit__(None, None, None)

    def _wrapped(self, func: Any, args: Any, kwargs: Any, found: Any, target: torch.device | None) -> Any:
        if func._schema.is_mutable and func._schema.name.endswith("_"):
            return args[0] if func._schema.returns else None  # a list of tensors is changed without a result
        if "out" in kwargs:
            return kwargs["out"]
        if target is not None and target.type != NAME:
            return found
        return tree_map(self._of_device, found)

    def _of_device(self, found: Any) -> Any:
        if not isinstance(found, Tensor) or isinstance(found, _Tensor):
            return found
        if found.dtype == torch.float64 and not self.float64:
            raise TypeError(f"Cannot convert a {NAME} tensor to float64: the device does not support float64")
        return _Tensor(found)

    def _count(self, counter: Counter[str]) -> None:
        if not self._counting:
            return
        frame = sys._getframe(1)
        while frame is not None:
            if (place := _place(frame.f_code.co_filename)) is not None:
                counter[f"{place}:{frame.f_lineno}"] += 1
                return
            frame = frame.f_back  # type: ignore[assignment]
        counter["elsewhere"] += 1


@cache
def _place(file: str) -> Path | None:
    """Where in the checkout a file of the library lies; None for others."""
    path = Path(file)
    ours = path.is_relative_to(ROOT) and path.name != Path(__file__).name and "redif_env" in path.parts
    return path.relative_to(ROOT) if ours else None


def _current() -> PretendedDevice:
    if PretendedDevice.current is None:
        raise RuntimeError("a tensor of the pretended device is used outside its block")
    return PretendedDevice.current


def _real(value: Any) -> Any:
    if isinstance(value, _Tensor):
        return value.inside
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _scalar(tensor: _Tensor) -> Any:
    _current().wait()
    return tensor.inside.item()


# ``torch.tensor([a tensor of the device])`` asks the backend itself.
_LIBRARY = torch.library.Library("aten", "IMPL")
_LIBRARY.impl("_local_scalar_dense", _scalar, "PrivateUse1")
