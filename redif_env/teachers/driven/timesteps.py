"""How each network of a pipeline is given the timestep: found by watching, and used to give each row its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redif_env.diffusion.placement import expand
from redif_env.teachers.driven.networks import Path, leaves, replaced, rows_in

CallKey = tuple[str, int]
"""A network call within one step: the component's name, and how many calls it had before in that step."""

WATCHED = 1 << 18
"""Numbers in an argument up to which its values are compared; timesteps are never larger."""
_ROUND = (1.0, -1.0, 1e-3, -1e-3)
"""Slopes that pipelines use; what half precision makes of them is rounded to these."""


class Recorder:
    """The arguments of every network call of one run, step by step."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[CallKey, dict[Path, Tensor]]] = defaultdict(dict)
        self.rows: dict[CallKey, int] = {}

    def record(self, index: int, key: CallKey, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note what a network is given at step ``index``."""
        self.rows[key] = rows_in(args, kwargs)
        self.steps[index][key] = {
            path: torch.as_tensor(value).detach().cpu().double()
            for path, value in leaves(args, kwargs).items()
            if not isinstance(value, Tensor) or value.numel() <= WATCHED
        }


@dataclass(frozen=True)
class TimestepPlan:
    """Which arguments of which calls depend on the timestep, and by how much one more of it changes each element.

    ``slopes[call][path]`` is a scalar, or has the shape of the argument without its rows.
    """

    slopes: Mapping[CallKey, Mapping[Path, Tensor]]

    def rewrite(
        self, key: CallKey, args: tuple[Any, ...], kwargs: dict[str, Any], deviation: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments with each row's timestep moved by its ``deviation`` ``(B,)``."""
        slopes = self.slopes.get(key)
        if not slopes:
            return args, kwargs
        found, count = leaves(args, kwargs), rows_in(args, kwargs)
        moves = deviation.repeat(count // len(deviation))  # copies for guidance hold the samples in the same order
        device = next(value.device for value in found.values() if isinstance(value, Tensor) and value.ndim)
        return replaced(
            args, kwargs, {path: _moved(found[path], slope, moves, device) for path, slope in slopes.items()}
        )


def _moved(value: Any, slope: Tensor, moves: Tensor, device: torch.device) -> Tensor:
    given = torch.as_tensor(value)
    dtype = given.dtype if given.is_floating_point() else torch.float32
    rows = given.reshape(1) if given.ndim == 0 else given
    # On the host: what is small, and float64, which not every device has.
    base = rows.cpu().double().expand(len(moves), *rows.shape[1:])
    # One number may be anywhere, networks send it to their device themselves; a number a row they do not.
    return (base + slope * expand(moves, base)).to(device=given.device if given.ndim else device, dtype=dtype)


def fit(runs: Sequence[tuple[Recorder, Sequence[float]]]) -> TimestepPlan:
    """The plan that explains all runs, each with the timestep at each of its steps.

    Runs have the same steps at different timesteps: what changes with the step's index alone is no part of it, nor is
    what is not an affine function of the timestep (a network's output that another is given, for example).
    """
    seen: dict[CallKey, dict[Path, list[tuple[int, float, Tensor]]]] = defaultdict(lambda: defaultdict(list))
    for recorder, timesteps in runs:
        for index, calls in recorder.steps.items():
            for key, values in calls.items():
                for path, value in values.items():
                    if index < len(timesteps):
                        seen[key][path].append((index, timesteps[index], value))
    slopes: dict[CallKey, dict[Path, Tensor]] = {}
    for key, paths in seen.items():
        for path, points in paths.items():
            slope = _slope(points)
            if slope is not None:
                slopes.setdefault(key, {})[path] = slope
    return TimestepPlan(slopes)


def _slope(points: list[tuple[int, float, Tensor]]) -> Tensor | None:
    """Change of a value with the timestep, by element; None where it does not change so."""
    first = points[0][2]
    if any(value.shape != first.shape for _, _, value in points) or all(torch.equal(v, first) for _, _, v in points):
        return None
    by_index: dict[int, list[Tensor]] = defaultdict(list)
    for index, _, value in points:
        by_index[index].append(value)
    if all(torch.equal(value, values[0]) for values in by_index.values() for value in values):
        return None
    low, high = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
    slope = (high[2] - low[2]) / (high[1] - low[1])
    spread = max(float((high[2] - low[2]).abs().max()), 1e-30)
    errors = [float((low[2] + slope * (time - low[1]) - value).abs().max()) for _, time, value in points]
    if max(errors) > 1e-2 * spread:
        return None
    return _simplified(slope)


def _simplified(slope: Tensor) -> Tensor:
    """A slope without its rows, which are all alike, and as one number if its elements are."""
    tolerance = 1e-2 * float(slope.abs().max())
    if slope.ndim and float((slope - slope[:1]).abs().max()) <= tolerance:
        slope = slope[0]
    if slope.ndim and float((slope - slope.flatten()[0]).abs().max()) <= tolerance:
        slope = slope.flatten()[0]
    for value in _ROUND:
        slope = torch.where((slope - value).abs() <= 2e-2 * abs(value), value, slope)
    return slope
