"""How given samples get to where a pipeline begins: as its argument, or in the place of noise that it draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT = {torch.float32: 1 << 24, torch.float64: 1 << 52, torch.float16: 1 << 11, torch.bfloat16: 1 << 8}
"""Whole numbers up to which each type is exact."""


@dataclass(frozen=True)
class Injection:
    """Where samples are put.

    Args:
        kind: ``"latents"`` (the argument), ``"noised"`` (what the scheduler's ``add_noise`` or ``scale_noise`` returns
            before the first step), ``"drawn"`` (what ``randn_tensor`` returns), or ``"none"``.
        number: of the draw, counted from 0.
        index: which numbers of a drawn row a sample's are, ``(prod(S),)``; those in order if None.
        generator: whether the pipeline also takes generators then.
        dtype: of the samples, where they are an argument.
    """

    kind: str = "none"
    number: int = 0
    index: Tensor | None = None
    generator: bool = True
    dtype: torch.dtype = torch.float32

    def fill(self, drawn: Tensor, x: Tensor) -> Tensor:
        """``drawn`` ``(B, ...)`` with the samples ``x`` ``(B, *S)`` in it."""
        if self.index is None:
            return x.to(drawn).reshape(drawn.shape)
        rows = drawn.flatten(1).clone()
        rows[:, self.index.to(drawn.device)] = x.flatten(1).to(rows)
        return rows.reshape(drawn.shape)


def origin(numbers: int, dtype: torch.dtype, send: Callable[[Tensor], Tensor]) -> Tensor | None:
    """From which of ``numbers`` numbers that go in each of those that come out stems; None if from none of them alone.

    Args:
        numbers: that go in.
        dtype: of the way they take.
        send: from ``(numbers,)`` to what comes out, flat.
    """
    base = EXACT.get(dtype, 1 << 8)
    place, found = torch.arange(numbers), None
    for digit in range(max(1, math.ceil(math.log(numbers, base)))):
        came = send(((place // base**digit) % base).to(dtype)).double()
        if not bool((came == came.round()).all()):
            return None
        found = came.long() * base**digit + (0 if found is None else found)
    assert found is not None
    if bool((found < 0).any()) or bool((found >= numbers).any()) or len(found.unique()) != len(found):
        return None
    check = torch.randn(numbers, generator=torch.Generator().manual_seed(0)).to(dtype)
    return found if torch.equal(send(check), check[found]) else None
