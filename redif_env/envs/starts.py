"""The start of an episode that a caller chooses, by the ``options`` of ``reset``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST
from redif_env.storage.checks import check_argument
from redif_env.teachers.conditions import Conditions
from redif_env.teachers.references import ReferenceSet

CHOICES = ("index", "noise", "condition")


@dataclass(frozen=True)
class Start:
    """What is chosen for each of B sub-environments; None is drawn as usual.

    ``index`` ``(B,)`` int64: rows of the reference set; ``noise`` ``(B, *S)``: initial noise of the caller's own;
    ``condition`` ``(B,)`` int64: rows of the teacher's conditions.
    """

    index: Tensor | None = None
    noise: Tensor | None = None
    condition: Tensor | None = None

    def pairs(self, drawn: Tensor, reference: ReferenceSet) -> Tensor:
        """Rows ``(B,)`` of the reference set, from the ``drawn`` ones; -1 for noise of the caller's own."""
        if self.noise is not None:
            return torch.full_like(drawn, -1)
        if self.index is not None:
            return self.index
        if self.condition is None:
            return drawn
        # The pairs of a condition take the draws that all pairs would, in the same shares.
        found = [(reference.condition == condition).nonzero()[:, 0] for condition in self.condition]
        if not all(map(len, found)):
            raise ValueError(
                "options['condition'] names one that no pair of the reference set has: raise reference_size"
            )
        places = [int(pair) * len(among) // len(reference) for pair, among in zip(drawn, found, strict=True)]
        return torch.stack([among[place] for place, among in zip(places, found, strict=True)])


def check_options(options: Mapping[str, Any] | None, known: Iterable[str]) -> Mapping[str, Any]:
    """The options; none if they are None.

    Raises:
        TypeError, ValueError: if they are no dict; naming those that are unknown.
    """
    check_argument("options", options, Mapping | None)
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        raise ValueError(f"options {unknown} are unknown: choose among {', '.join(map(repr, known))}")
    return options or {}


def chosen_start(
    options: Mapping[str, Any], count: int, sample_shape: tuple[int, ...], conditions: Conditions, size: int
) -> Start:
    """The start that ``options`` describe.

    Args:
        options: of ``reset``: ``index``, or ``noise``, each with a value for every sub-environment; ``condition``: a
            label or prompt for all, or one each.
        count: number B of sub-environments.
        sample_shape: S.
        conditions: the teacher's.
        size: of the reference set.

    Raises:
        ValueError: if a value has another shape or is out of range, or ``index`` goes with another choice.
    """
    index, noise, condition = (options.get(name) for name in CHOICES)
    if index is not None and (noise is not None or condition is not None):
        raise ValueError("options['index'] names noise and condition of a pair: leave 'noise' and 'condition' out")
    rows = None if condition is None else conditions.rows_of(condition, count)
    if index is not None:
        array = np.asarray(index)
        if array.shape != (count,) or array.dtype.kind not in "iu" or not ((array >= 0) & (array < size)).all():
            raise ValueError(f"options['index'] must be {count} whole numbers from 0 to {size - 1}, got {index!r}")
        return Start(index=torch.from_numpy(array.astype(np.int64)))
    if noise is None:
        return Start(condition=rows)
    try:
        given = torch.as_tensor(noise).to(HOST, torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"options['noise'] must be numbers of shape {(count, *sample_shape)}: {error}") from error
    if given.shape != (count, *sample_shape) or not bool(given.isfinite().all()):
        raise ValueError(
            f"options['noise'] must be finite numbers of shape {(count, *sample_shape)}, got shape {tuple(given.shape)}"
        )
    return Start(noise=given, condition=torch.zeros(count, dtype=torch.int64, device=HOST) if rows is None else rows)
