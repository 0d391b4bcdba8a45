"""Action maps: the only place that knows what the numbers in an action mean.

Every map is a flat float32 ``Box`` in [-1, 1]. Where the teacher predicts, zero is the base solver, exactly; where the
action is the prediction (:class:`NoiseMap`), its other number at zero is the base solver's step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from redif_env.diffusion.bands import split_bands
from redif_env.diffusion.grids import Grid, next_position
from redif_env.diffusion.noise_schedulers import Parameterization, action_parameterization
from redif_env.diffusion.predictions import noise_estimate
from redif_env.diffusion.schedules import Schedule, noise_share
from redif_env.diffusion.solvers import Solver
from redif_env.diffusion.types import Decision, Level, Prediction, State, expand


@dataclass(frozen=True)
class BaseSolver:
    """What the zero action does: a solver on a grid of a schedule; and how the teacher's network answers."""

    solver: Solver
    grid: Grid
    parameterization: Parameterization

    @property
    def schedule(self) -> Schedule:
        return self.parameterization.schedule


class ActionMap(ABC):
    """Turns actions ``(B, size)`` in [-1, 1] into decisions."""

    history: int = 1
    """Past predictions that the map itself looks at."""

    level_numbers: tuple[int, ...] = ()
    """Which numbers decide the level of the next call and the timestep given there."""

    predicts: bool = False
    """Whether actions bring the prediction that is stepped with, so that the teacher is asked for none."""

    @abstractmethod
    def size(self, sample_shape: tuple[int, ...]) -> int:
        """How many numbers an action has for samples of this shape."""

    def band_gains(self, action: Tensor, state: State, base: BaseSolver) -> Tensor:
        """What each band of the clean estimate is multiplied by, less 1: ``(B, bands)``; no columns if no bands."""
        return action[:, :0]

    def prediction(self, action: Tensor, state: State, base: BaseSolver) -> Prediction:
        """The prediction at ``state`` that ``action`` brings, where the map ``predicts``."""
        raise NotImplementedError(f"{type(self).__name__} brings no prediction")

    @abstractmethod
    def decode(self, action: Tensor, state: State, base: BaseSolver) -> Decision:
        """The decision that ``action`` ``(B, size)`` stands for in ``state``, the newest prediction included."""


@dataclass(frozen=True)
class StepMap(ActionMap):
    """The step size alone.

    Number 0 at +-1 shifts the logit of the fraction of the remaining way by +-``max_shift``: at 4 steps left and the
    default of 2, the step takes 4 % to 71 % of what remains instead of 25 %.
    """

    max_shift: float = 2.0
    level_numbers = (0,)

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
    4   time told to the network at its next call: the level's own, shifted by +-``max_timestep_shift * share`` in
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
    max_timestep_shift: float = 1.0
    max_band: float = 1.0
    bands: int = 2
    history = 3
    level_numbers = (0, 4)

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
        told = half_logsnr + self.max_timestep_shift * noise_share(half_logsnr) * action[:, 4]
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


@dataclass(frozen=True)
class NoiseMap(ActionMap):
    """The step size and the whole noise prediction: the paper's own action, ``1 + prod(S)`` numbers.

    Number 0 is the step size, as in :class:`SolverMap`. The others, times ``max_output``, are what the student's
    network says, in the form of ``action_parameterization``: for variance-preserving teachers
    the velocity, whose errors no level magnifies (those of ``eps`` count ``sigma / alpha`` times in the clean estimate,
    157 times at the start of a linear schedule). It takes the place of the teacher's prediction; the base solver makes
    a step of it and of those before it. So a student that says what the teacher says is the base solver.

    Args:
        max_output: what 1 stands for; outputs are about normal, of which beyond 4 lies one in 16,000.
        max_shift: as in the :class:`SolverMap`.
        initial_actions: actions of the :class:`SolverMap` to begin from, one a step, such as the mean actions of a
            student that was trained with that map; number 0 is added to theirs. The base solver if not given.
    """

    max_output: float = 4.0
    max_shift: float = SolverMap.max_shift
    initial_actions: tuple[tuple[float, ...], ...] | None = None
    predicts = True
    history = SolverMap.history

    def size(self, sample_shape: tuple[int, ...]) -> int:
        return 1 + math.prod(sample_shape)

    def prediction(self, action: Tensor, state: State, base: BaseSolver) -> Prediction:
        output = (self.max_output * action[:, 1:]).reshape(state.x.shape).to(state.x.dtype)
        parameterization = action_parameterization(base.parameterization)
        level = parameterization.schedule.level(state.half_logsnr)
        return parameterization.preconditioning.read(output, state.x, level, parameterization.prediction_type)

    def decode(self, action: Tensor, state: State, base: BaseSolver) -> Decision:
        if self.initial_actions is None:
            return StepMap(self.max_shift).decode(action[:, :1], state, base)
        started = torch.tensor(self.initial_actions, dtype=action.dtype, device=action.device)
        row = len(started) - state.steps_left.clamp(min=1)
        full = torch.cat([started[row, :1] + action[:, :1], started[row, 1:]], dim=1)
        return SolverMap(self.max_shift).decode(full.clamp(-1, 1), state, base)

    @property
    def finished(self) -> ActionMap:
        """The map of the finished student, whose network predicts in the teacher's place: how its steps are taken."""
        return StepMap(self.max_shift) if self.initial_actions is None else SolverMap(self.max_shift)

    def table(self, shifts: Tensor) -> Tensor:
        """Actions ``(num_steps, A)`` of the ``finished`` map, for the step sizes of each step, ``(num_steps,)``."""
        if self.initial_actions is None:
            return shifts[:, None]
        started = torch.tensor(self.initial_actions, dtype=shifts.dtype, device=shifts.device)
        return torch.cat([started[:, :1] + shifts[:, None], started[:, 1:]], dim=1).clamp(-1, 1)


ACTION_MAPS: dict[str, ActionMap] = {"solver": SolverMap(), "step": StepMap(), "noise": NoiseMap()}
"""The action maps by the names used at the command line and in ``gym.make``."""
