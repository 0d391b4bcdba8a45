"""A pipeline's networks as its driven copy sees them: the same weights, behind a call that can be changed."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from redif_env.teachers.driven.wave import Wave

Path = tuple[str | int, ...]
"""Where a value stands in a call's arguments: positions and names, outermost first."""


class _Running(threading.local):
    """The wave whose pipeline call this thread is; None elsewhere."""

    wave: Wave | None = None


RUNNING = _Running()


def shared_copy(name: str, module: nn.Module, apart: bool = False) -> nn.Module:
    """A copy of ``module`` that shares its weights, and whose calls go through the thread's wave.

    Args:
        name: of the component.
        module: the network.
        apart: whether submodules are copied too, since the pipeline changes them while it runs (their attention
            processors, for example); shared otherwise, so that offloading and compilation work on.
    """
    if apart:
        made = copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
        forward = made.forward
    else:
        made, forward = copy.copy(module), module.forward

    @functools.wraps(forward)
    def called(*args: Any, **kwargs: Any) -> Any:
        wave = RUNNING.wave
        return forward(*args, **kwargs) if wave is None else wave.call(name, forward, args, kwargs)

    made.forward = called  # type: ignore[method-assign]
    return made


def leaves(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Path, Any]:
    """Tensors and numbers of a call's arguments, those inside lists and dicts too."""
    found: dict[Path, Any] = {}

    def visit(path: Path, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                visit((*path, key), item)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                visit((*path, index), item)
        elif isinstance(value, Tensor) or (isinstance(value, int | float) and not isinstance(value, bool)):
            found[path] = value

    visit((), {**dict(enumerate(args)), **kwargs})
    return found


def replaced(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Mapping[Path, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the values at some paths replaced; what was given stays as it is."""
    arguments: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    for path, value in values.items():
        holder = arguments
        for key in path[:-1]:
            inner = holder[key]
            holder[key] = list(inner) if isinstance(inner, list | tuple) else copy.copy(inner)
            holder = holder[key]
        holder[path[-1]] = value
    return tuple(arguments[index] for index in range(len(args))), {key: arguments[key] for key in kwargs}


def rows_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many rows a network is called with: those of its sample."""
    if args:
        return len(args[0])
    for name in ("hidden_states", "sample", "x", "latents", "video_hidden_states"):
        if name in kwargs:
            return len(kwargs[name])
    return len(next(value for value in kwargs.values() if isinstance(value, Tensor | list)))


@dataclass(frozen=True)
class Blank:
    """The form of a network's output: what stands for it where none is needed.

    ``output`` has zero-storage tensors in the place of those that were seen with ``rows`` samples.
    """

    output: Any
    rows: int

    @classmethod
    def of(cls, output: Any, rows: int) -> Blank:
        """The form of an output."""
        return cls(_mapped(output, lambda tensor: tensor.new_zeros(()).expand(tensor.shape)), rows)

    def __call__(self, rows: int) -> Any:
        """Zeros of that form, for so many samples."""

        def zeros(tensor: Tensor) -> Tensor:
            first = tensor.shape[:1]
            scaled = tuple(size * rows // self.rows if size % self.rows == 0 else size for size in first)
            return torch.zeros(scaled + tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)

        if isinstance(self.output, list) and len(self.output) % self.rows == 0:
            # One entry a sample, each without a batch dimension.
            count = len(self.output) * rows // self.rows
            return [torch.zeros_like(self.output[0], memory_format=torch.contiguous_format) for _ in range(count)]
        return _mapped(self.output, zeros)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return type(value)(**{key: _mapped(item, change) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    return value
