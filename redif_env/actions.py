"""Action maps: the only place that knows what the numbers in an action mean.

Every map is a flat float32 ``Box`` in [-1, 1] whose zero is the base solver, exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from redif_env.bands import split_bands
from redif_env.grids import Grid, next_position
from redif_env.predictions import noise_estimate
from redif_env.schedules import Schedule, noise_share
from redif_env.solvers import Solver
from redif_env.types import Decision, Level, State, expand


@dataclass(frozen=True)
class BaseSolver:
    """What the zero action does: a solver on a grid of a schedule."""

    solver: Solver
    grid: Grid
    schedule: Schedule


class ActionMap(ABC):
    """Turns actions ``(B, size)`` in [-1, 1] into decisions."""

    history: int = 1
    """Past predictions that the map itself looks at."""

    @abstractmethod
    def size(self, sample_shape: tuple[int, ...]) -> int:
        """How many numbers an action has for samples of this shape."""

    def band_gains(self, action: Tensor, state: State, base: BaseSolver) -> Tensor:
        """What each band of the clean estimate is multiplied by, less 1: ``(B, bands)``; no columns if no bands."""
        return action[:, :0]

    @abstractmethod
    def decode(self, action: Tensor, state: State, base: BaseSolver) -> Decision:
        """The decision that ``action`` ``(B, size)`` stands for in ``state``."""


@dataclass(frozen=True)
class StepMap(ActionMap):
    """The step size alone.

    Number 0 at +-1 shifts the logit of the fraction of the remaining way by +-``max_shift``: at 4 steps left and the
    default of 2, the step takes 4 % to 71 % of what remains instead of 25 %.
    """

    max_shift: float = 2.0

    def size(self, sample_shape: tuple[int, ...]) -> int:
        return 1

    def decode(self, action: Tensor, state: State, base: BaseSolver) -> Decision:
        shift = self.max_shift * action[:, 0].double()
        position = next_position(state.position, state.steps_left, shift)
        half_logsnr = base.grid.half_logsnr(position, base.schedule)
        x0 = base.solver.estimate(state, half_logsnr, base.schedule.level(state.half_logsnr))
        return Decision(position, half_logsnr, x0, base.schedule.timestep(half_logsnr), state.steps_left)


@dataclass(frozen=True)
class SolverMap(ActionMap):
    """The step size, and a correction to the base solver's noise prediction: 5 numbers, and one a frequency band.

    At +-1 the numbers mean:

    ==  =======================================================================================================
    0   step size: as in :class:`StepMap`, +-``max_shift``
    1   weight of the first difference of predictions (in the clean coordinate), +-``max_first``
    2   weight of their second difference, +-``max_second``
    3   gain of the combined noise prediction, +-``max_gain`` (in the ``v`` coordinate: the clean estimate moves by
        ``-gain * share * eps``, which stays small at high noise, where ``-gain * (sigma / alpha) * eps`` would not)
    4   time told to the network at its next call: the level's own, shifted by +-``max_told * share`` in
        ``half_logsnr``, with the next level's ``share``
    5.. gain of each spatial frequency band of the predicted clean sample, +-``max_band * share`` (images only)
    ==  =======================================================================================================

    Differences that lack a past prediction count as zero. The factors ``share``, the noise's part of the sample
    (``sigma / sqrt(alpha**2 + sigma**2)``: 1 at pure noise, 0 at clean data, on any schedule), let one exploration
    noise serve all levels: what is harmless in the first step would ruin the last.
    """

    max_shift: float = 2.0
    max_first: float = 1.0
    max_second: float = 0.5
    max_gain: float = 0.6
    max_told: float = 1.0
    max_band: float = 1.0
    bands: int = 2
    history = 3

    def size(self, sample_shape: tuple[int, ...]) -> int:
        return 5 + (self.bands if len(sample_shape) == 3 else 0)

    def decode(self, action: Tensor, state: State, base: BaseSolver) -> Decision:
        position = next_position(state.position, state.steps_left, self.max_shift * action[:, 0].double())
        half_logsnr = base.grid.half_logsnr(position, base.schedule)
        level = base.schedule.level(state.half_logsnr)
        x0 = base.solver.estimate(state, half_logsnr, level)
        share = noise_share(state.half_logsnr)
        x0 = x0 + self._correction(action[:, 1:4], state, x0, level, share)
        if state.x.ndim == 4 and self.bands:
            gains = self._gains(action, share).to(x0.dtype)
            x0 = x0 + torch.einsum("bk,kbchw->bchw", gains, split_bands(x0, self.bands))
        told = half_logsnr + self.max_told * noise_share(half_logsnr) * action[:, 4]
        return Decision(position, half_logsnr, x0, base.schedule.timestep(told), state.steps_left)

    def band_gains(self, action: Tensor, state: State, base: BaseSolver) -> Tensor:
        return self._gains(action, noise_share(state.half_logsnr))

    def _gains(self, action: Tensor, share: Tensor) -> Tensor:
        return self.max_band * share[:, None] * action[:, 5:]

    def _correction(self, action: Tensor, state: State, x0: Tensor, level: Level, share: Tensor) -> Tensor:
        """What numbers 1 to 3 add to the clean estimate; exactly nothing at zero."""
        newest, older, oldest = state.x0_history[:, :3].unbind(dim=1)
        first = torch.where(expand(state.predictions >= 2, newest), newest - older, 0.0)
        second = torch.where(expand(state.predictions >= 3, newest), newest - 2 * older + oldest, 0.0)
        noise = expand(share, x0).to(x0.dtype) * noise_estimate(state.x, x0, level)
        parts = ((self.max_first, first), (self.max_second, second), (-self.max_gain, noise))
        weights = action.to(x0.dtype)
        return sum(
            (expand(scale * weights[:, i], x0) * part for i, (scale, part) in enumerate(parts)), torch.zeros_like(x0)
        )


ACTION_MAPS: dict[str, ActionMap] = {"solver": SolverMap(), "step": StepMap()}
"""The action maps by the names used at the command line and in ``gym.make``."""
