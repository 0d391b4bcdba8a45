"""Time grids: where a solver puts its steps, as a continuous map from position to noise level.

A grid's position runs from 0 (noise) to 1 (clean data). An N-step solver evaluates the network at positions
0, 1/N, ..., (N-1)/N and ends on clean data. Being continuous, the same map gives the level of a shifted step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST
from redif_env.diffusion.schedules import Schedule, late_time


class Grid(ABC):
    """A monotone map from position in [0, 1) to ``half_logsnr``; position 1 is clean data on every grid."""

    @abstractmethod
    def interior(self, position: Tensor, schedule: Schedule) -> Tensor:
        """``half_logsnr`` at positions below 1."""

    def half_logsnr(self, position: Tensor, schedule: Schedule) -> Tensor:
        """``half_logsnr`` ``(B,)`` float64 at ``position`` ``(B,)`` float64; ``+inf`` from 1 on."""
        return self.interior(position.clamp(max=1.0), schedule).masked_fill(position >= 1, torch.inf)


@dataclass(frozen=True)
class TimeGrid(Grid):
    """``time = start * (1 - position) ** power``, in the schedule's own time.

    Power 1 is uniform time (diffusers' ``linspace`` spacing without its rounding; on variance-exploding schedules
    Karras's grid, on flow schedules the shifted one); larger powers put more steps near clean data.

    ``start`` is 1; or, if ``sigma_max`` is given and less than the schedule's own, the time at which ``sigma / alpha``
    is ``sigma_max``. That is a late start: the initial noise is taken for a sample of that level, which it nearly is.
    The levels left out are those where clean estimates are worst, since an error of a noise prediction counts
    ``sigma / alpha`` times.
    """

    power: float = 1.0
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise ValueError(f"power must be above 0, got {self.power}")
        if self.sigma_max is not None and not self.sigma_max > 0:
            raise ValueError(f"sigma_max must be above 0, got {self.sigma_max}")

    def interior(self, position: Tensor, schedule: Schedule) -> Tensor:
        time = 1 - position if self.power == 1 else (1 - position) ** self.power
        if self.sigma_max is not None:
            time = time * late_time(schedule, self.sigma_max)
        return schedule.half_logsnr_at(time)


@dataclass(frozen=True)
class LogSNRGrid(Grid):
    """Uniform in ``half_logsnr`` (Lu et al. 2022)."""

    def interior(self, position: Tensor, schedule: Schedule) -> Tensor:
        noisiest, cleanest = schedule.ends
        return noisiest + position * (cleanest - noisiest)


@dataclass(frozen=True)
class KarrasGrid(Grid):
    """``(sigma / alpha) ** (1 / rho)`` uniform (Karras et al. 2022, Eq. 5), ending one step before sigma_min."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"rho must be above 0, got {self.rho}")

    def interior(self, position: Tensor, schedule: Schedule) -> Tensor:
        first, last = (math.exp(-end / self.rho) for end in schedule.ends)
        return -self.rho * torch.log(first + position * (last - first))


@dataclass(frozen=True)
class LevelsGrid(Grid):
    """Through N given levels at positions 0, 1/N, ..., then to clean data; between them linear in the angle.

    Args:
        levels: ``half_logsnr`` of each, increasing; the first may be ``-inf``.
    """

    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.levels or any(
            later <= earlier for earlier, later in zip(self.levels, self.levels[1:], strict=False)
        ):
            raise ValueError(f"levels must be at least one, each above the one before it, got {self.levels}")

    def interior(self, position: Tensor, schedule: Schedule) -> Tensor:
        levels = torch.tensor([*self.levels, torch.inf], dtype=torch.float64, device=position.device)
        angles = torch.atan(torch.exp(-levels))
        place = position * len(self.levels)
        # Positions are sums of fractions: what is a given level but for rounding is that level.
        place = torch.where((place - place.round()).abs() < 1e-9, place.round(), place)
        below = place.floor().long().clamp(max=len(self.levels) - 1)
        between = -torch.log(torch.tan(torch.lerp(angles[below], angles[below + 1], place - below)))
        return torch.where(place == below, levels[below], between)


@dataclass(frozen=True)
class AYSGrid(Grid):
    """Align Your Steps (Sabour et al. 2024): the noise levels found for Stable Diffusion 1.5, between them log-linear.

    The ten published timesteps are taken as shares of the schedule's own time, as diffusers takes them for any
    variance-preserving model (``AysSchedules``); after the last of them the grid goes to the cleanest level.
    """

    _TIMESTEPS = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0)

    def interior(self, position: Tensor, schedule: Schedule) -> Tensor:
        nodes = torch.tensor(self._TIMESTEPS, dtype=torch.float64, device=HOST) / self._TIMESTEPS[0]
        # A step from a level without signal, or to one without noise, has no logarithm to halve.
        levels = schedule.half_logsnr_at(nodes).clamp(*schedule.ends)
        place = position * (len(nodes) - 1)
        below = place.floor().long().clamp(max=len(nodes) - 2)
        return torch.lerp(levels[below], levels[below + 1], place - below)


GRIDS: dict[str, Grid] = {
    "time": TimeGrid(),
    "time^1.5": TimeGrid(1.5),
    "time^2": TimeGrid(2.0),
    "time@60": TimeGrid(sigma_max=60.0),
    "time@20": TimeGrid(sigma_max=20.0),
    "time@8": TimeGrid(sigma_max=8.0),
    "time@4": TimeGrid(sigma_max=4.0),
    "time^1.25@2.5": TimeGrid(1.25, 2.5),
    "time^1.5@60": TimeGrid(1.5, 60.0),
    "time^1.5@20": TimeGrid(1.5, 20.0),
    "time^1.5@8": TimeGrid(1.5, 8.0),
    "time^1.5@4": TimeGrid(1.5, 4.0),
    "logsnr": LogSNRGrid(),
    "karras": KarrasGrid(),
    "ays": AYSGrid(),
}
"""The grids by the names used at the command line and in ``gym.make``; ``@20``: from ``sigma / alpha = 20`` on."""


def next_position(position: Tensor, steps_left: Tensor, shift: Tensor) -> Tensor:
    """The step-size controller: the position to step to, given the steps left and a shift of the base step.

    The base step takes ``1 / steps_left`` of what remains; ``shift`` is added to that fraction's logit:
    ``fraction = 1 / (1 + (steps_left - 1) * exp(-shift))``. A shift of zero gives the grid's own points exactly, the
    last step always lands on clean data, and no step goes backwards or past it.

    Args:
        position: ``(B,)`` float64 in [0, 1).
        steps_left: ``(B,)`` int64; a row with none left stays on clean data.
        shift: ``(B,)`` float64, in logits.
    """
    fraction = (1 + (steps_left.clamp(min=1) - 1) * torch.exp(-shift)).reciprocal()
    # The last step has no gradient: at clean data that of the level is infinite.
    return torch.where(steps_left <= 1, 1.0, position + (1 - position) * fraction)
