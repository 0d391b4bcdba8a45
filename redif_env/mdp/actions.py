"""Action maps: the only place that knows what the numbers in an action mean.

Actions are a flat float32 ``Box`` in [-1, 1]. If the teacher predicts, the zero action is exactly the base solver's
step. If the action is the prediction (:class:`NoiseMap`), a zero in its number 0 is the base solver's step size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from redif_env.diffusion.grids import Grid, next_position
from redif_env.diffusion.noise_schedulers import Parameterization, action_parameterization
from redif_env.diffusion.placement import HOST, place
from redif_env.diffusion.schedules import Schedule, noise_share
from redif_env.diffusion.solvers import Estimate, Solver, apply_estimate
from redif_env.diffusion.types import Decision, Level, Prediction, State


@dataclass(frozen=True)
class BaseSolver:
    """What the zero action does: a solver on a grid. ``parameterization`` is that of the teacher's network."""

    solver: Solver
    grid: Grid
    parameterization: Parameterization

    @property
    def schedule(self) -> Schedule:
        return self.parameterization.schedule


class ActionMap(ABC):
    """Turns actions ``(B, size)`` in [-1, 1] into decisions.

    Step sizes, levels and weights are computed on the host; actions on the device are copied to it.
    """

    history: int = 1
    """Number of past predictions that the map itself uses."""

    level_numbers: tuple[int, ...] = ()
    """Indices of the numbers that decide the level and the conditioning timestep of the next network call."""

    predicts: bool = False
    """Whether the action contains the prediction to step with, so that the teacher's network is not evaluated."""

    @abstractmethod
    def size(self, sample_shape: tuple[int, ...]) -> int:
        """The size of an action for samples of this shape."""

    def check(self, sample_shape: tuple[int, ...], num_steps: int) -> None:  # noqa: B027  # most maps are for all
        """Raise a ``ValueError`` if the map is not for such samples, or not for so many steps."""

    def band_gains(self, action: Tensor, state: State, base: BaseSolver) -> Tensor:
        """The factor of each frequency band of the clean estimate, minus 1: ``(B, bands)``, or ``(B, 0)``."""
        return action[:, :0]

    def prediction(self, action: Tensor, state: State, base: BaseSolver) -> Prediction:
        """The prediction at ``state`` that ``action`` contains, for maps with ``predicts``."""
        raise NotImplementedError(f"actions of {type(self).__name__} contain no prediction")

    @abstractmethod
    def decode(self, action: Tensor, state: State, base: BaseSolver) -> Decision:
        """The decision of ``action`` ``(B, size)`` in ``state``, which includes the newest prediction."""


@dataclass(frozen=True)
class StepMap(ActionMap):
    """Only the step size.

    A step covers a fraction of the remaining positions of the grid. Number 0 at +-1 shifts the logit of this fraction
    by +-``max_shift``. With 4 steps left and the default of 2, the step covers 4 % to 71 % of the rest instead of 25 %.
    """

    max_shift: float = 2.0
    level_numbers = (0,)

    def size(self, sample_shape: tuple[int, ...]) -> int:
        return 1

    def decode(self, action: Tensor, state: State, base: BaseSolver) -> Decision:
        shift = self.max_shift * _numbers(action[:, 0])
        step = _Step.of(state, shift, base)
        estimate = base.solver.estimate(state, step.half_logsnr, step.level)
        return step.decision(state, estimate, base.schedule.timestep(step.half_logsnr))


_NEEDED = torch.tensor([2, 3, 1], device=HOST)
"""Predictions that the first difference, the second difference and the gain need."""

_CORRECTIONS = torch.tensor(
    [[0, 1, 0, -1, 0, 0], [0, 1, 0, -2, 0, 1], [-1, 0, 0, 0, 0, 0]], dtype=torch.float64, device=HOST
)
"""What these three add to the weights of ``x`` and of three pairs of a clean estimate and a noise prediction."""


@dataclass(frozen=True)
class SolverMap(ActionMap):
    """The step size and corrections to the base solver's noise prediction: 5 numbers, and one per frequency band.

    Values of +-1 mean:

    ===  ======================================================================================================
    0    step size: as in :class:`StepMap`, +-``max_shift``
    1    weight of the first difference of the clean estimates, +-``max_first``
    2    weight of their second difference, +-``max_second``
    3    gain of the combined noise prediction, +-``max_gain``: the clean estimate moves by ``-gain * share * eps``
         (``-gain * (sigma / alpha) * eps`` would be large at high noise)
    4    conditioning timestep of the next network call: the level's own, shifted by +-``max_timestep_shift * share`` in
         ``half_logsnr``, with ``share`` of the next level
    5..  gain of each spatial frequency band of the predicted clean sample, +-``max_band * share`` (images only)
    ===  ======================================================================================================

    A difference that needs a missing past prediction is zero. ``share`` is the share of noise in the sample,
    ``sigma / sqrt(alpha**2 + sigma**2)``: 1 for pure noise and 0 for clean data on any schedule. It makes the same
    exploration noise suitable for all levels. Without it, a change that is harmless in the first step would ruin the
    last one.
    """

    max_shift: float = 2.0
    max_first: float = 1.0
    max_second: float = 0.5
    max_gain: float = 0.6
    max_timestep_shift: float = 1.0
    max_band: float = 1.0
    bands: int = 2
    center: tuple[tuple[float, ...], ...] = ()
    """An action ``(A,)`` for each step of the episode, which is added to the policy's; the sum is clipped."""
    history = 3
    level_numbers = (0, 4)

    def size(self, sample_shape: tuple[int, ...]) -> int:
        return 5 + (self.bands if len(sample_shape) == 3 else 0)

    def check(self, sample_shape: tuple[int, ...], num_steps: int) -> None:
        shape, size = [len(row) for row in self.center], self.size(sample_shape)
        if self.center and shape != [size] * num_steps:
            raise ValueError(
                f"center has actions of sizes {shape}, but the {num_steps} steps have actions of size {size}: "
                "choose the center for this task"
            )

    def decode(self, action: Tensor, state: State, base: BaseSolver) -> Decision:
        numbers = self._scaled(action, state)
        step = _Step.of(state, numbers[:, 0], base)
        share, next_share = noise_share(step.ends).chunk(2)
        estimate = base.solver.estimate(state, step.half_logsnr, step.level)
        estimate = self._corrected(estimate, numbers[:, 1:4], state, step.level, share)
        timestep = base.schedule.timestep(step.half_logsnr + next_share * numbers[:, 4])
        gains = share[:, None] * numbers[:, 5:] if state.x.ndim == 4 and self.bands else None
        return step.decision(state, estimate, timestep, gains)

    def band_gains(self, action: Tensor, state: State, base: BaseSolver) -> Tensor:
        return noise_share(base.schedule.level(state.half_logsnr))[:, None] * self._scaled(action, state)[:, 5:]

    def _scaled(self, action: Tensor, state: State) -> Tensor:
        """All numbers in their units."""
        numbers = _numbers(action)
        if self.center:
            numbers = (numbers + self._centers[len(self.center) - state.steps_left]).clamp(-1, 1)
        return numbers * self._units[: action.shape[1]]

    @cached_property
    @torch.inference_mode(False)
    def _centers(self) -> Tensor:
        """``center``, and zeros for what has no steps left."""
        centers = torch.tensor(self.center, dtype=torch.float64, device=HOST)
        return torch.cat([centers, torch.zeros_like(centers[:1])])

    @cached_property
    @torch.inference_mode(False)  # stored for later calls, which may need a gradient
    def _units(self) -> Tensor:
        units = [self.max_shift, self.max_first, self.max_second, self.max_gain, self.max_timestep_shift]
        return torch.tensor(units + [self.max_band] * self.bands, dtype=torch.float64, device=HOST)

    def _corrected(self, base: Estimate, numbers: Tensor, state: State, level: Level, share: Tensor) -> Estimate:
        """The base solver's estimate with numbers 1 to 3 applied; itself, exactly, where they are zero."""
        numbers = numbers.masked_fill(state.predictions[:, None] < _NEEDED, 0.0)
        # The noise (x - alpha * x0) / sigma times share; share / sigma is finite at every level with noise.
        noise = numbers[:, 2:] * share[:, None] / level.sigma[:, None]
        rest = 1 + noise * level.alpha[:, None]
        added = torch.cat([numbers[:, :2], noise], dim=1) @ _CORRECTIONS
        weights = rest * base.weights + F.pad(added, (0, base.weights.shape[1] - added.shape[1]))
        part = base.matrix_part
        return Estimate(weights, None if part is None else part * place(rest[:, 0], part))


@dataclass(frozen=True)
class NoiseMap(ActionMap):
    """The step size and the whole noise prediction, as in the paper: ``1 + prod(S)`` numbers.

    Number 0 is the step size, as in :class:`SolverMap`. The others, times ``max_output``, are the output of the
    student's network in the form of ``action_parameterization``. For variance-preserving teachers this is the velocity,
    because no level amplifies its errors. (An error in ``eps`` is ``sigma / alpha`` times as large in the clean
    estimate: 157 times at the start of a linear schedule.) The output replaces the teacher's prediction. The base
    solver combines it with past predictions, so a student that predicts what the teacher predicts is the base solver.

    Args:
        max_output: network output for an action of 1. Outputs are about normal; one in 16,000 exceeds 4.
        max_shift: as in :class:`SolverMap`.
    """

    max_output: float = 4.0
    max_shift: float = SolverMap.max_shift
    predicts = True
    history = SolverMap.history

    def size(self, sample_shape: tuple[int, ...]) -> int:
        return 1 + math.prod(sample_shape)

    def prediction(self, action: Tensor, state: State, base: BaseSolver) -> Prediction:
        output = self.max_output * action[:, 1:].to(state.x).reshape(state.x.shape)
        parameterization = action_parameterization(base.parameterization)
        level = parameterization.schedule.level(state.half_logsnr)
        return parameterization.preconditioning.read(output, state.x, level, parameterization.prediction_type)

    def decode(self, action: Tensor, state: State, base: BaseSolver) -> Decision:
        return self.finished.decode(action[:, :1], state, base)

    @property
    def finished(self) -> StepMap:
        """The action map of the finished student, whose network replaces the teacher's."""
        return StepMap(self.max_shift)


ACTION_MAPS: dict[str, ActionMap] = {"solver": SolverMap(), "step": StepMap(), "noise": NoiseMap()}
"""The action maps by the names used at the command line and in ``gym.make``."""


@dataclass(frozen=True)
class _Step:
    """Where a step goes: the position and level that it arrives at, and the level that it starts from."""

    position: Tensor
    half_logsnr: Tensor
    level: Level
    next_level: Level
    ends: Level
    """Both levels, one below the other: ``(2 * B,)``."""

    @classmethod
    def of(cls, state: State, shift: Tensor, base: BaseSolver) -> _Step:
        """The step whose size is shifted by ``shift`` ``(B,)``, in logits."""
        position = next_position(state.position, state.steps_left, shift)
        half_logsnr = base.grid.half_logsnr(position, base.schedule)
        # In one call, since a small operation costs the same for two.
        ends = base.schedule.level(torch.cat([state.half_logsnr, half_logsnr]))
        level, next_level = map(Level, ends.alpha.chunk(2), ends.sigma.chunk(2))
        return cls(position, half_logsnr, level, next_level, ends)

    def decision(self, state: State, estimate: Estimate, timestep: Tensor, gains: Tensor | None = None) -> Decision:
        """The step with a clean estimate."""
        x0, x = apply_estimate(state, estimate, self.level, self.next_level, gains)
        return Decision(self.position, self.half_logsnr, x0, x, timestep, state.steps_left)


def _numbers(action: Tensor) -> Tensor:
    return action.to(HOST, torch.float64)
