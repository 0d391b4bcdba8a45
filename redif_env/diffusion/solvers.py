"""Few-step ODE solvers as weights of past predictions, and the one loop that runs them all.

Every solver here is a DDIM step (Song et al. 2021, Eq. 12 with eta = 0) with an estimate that combines the last
predictions: of the clean sample (DPM-Solver++) or of the noise (iPNDM). Such a solver is a rule for weights, which are
computed on the host; the device adds up samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from redif_env.diffusion.bands import filter_bands
from redif_env.diffusion.grids import Grid, next_position
from redif_env.diffusion.placement import HOST, combine, place
from redif_env.diffusion.schedules import Schedule
from redif_env.diffusion.types import Decision, Level, Prediction, State

_FAR = 1e30
"""A distance of levels larger than any that occurs; its square is finite in double precision."""

ADAMS_BASHFORTH = torch.tensor(
    (
        (1.0, 0.0, 0.0, 0.0),
        (3 / 2, -1 / 2, 0.0, 0.0),
        (23 / 12, -16 / 12, 5 / 12, 0.0),
        (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    ),
    dtype=torch.float64,
    device=HOST,
)


class Predictor(Protocol):
    """What the loop needs of a model."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def calls(self) -> int: ...

    @property
    def guidance_scale(self) -> float | None: ...

    def initial_sample(self, noise: Tensor, condition: Tensor | None, half_logsnr: Tensor) -> Tensor: ...

    def predict_at(self, state: State) -> Prediction: ...


class Solver(ABC):
    """A rule for the clean estimate to step with, from the sample and the newest ``order`` predictions."""

    order: int

    @abstractmethod
    def estimate(self, state: State, next_half_logsnr: Tensor, level: Level) -> Estimate:
        """The clean estimate to step to ``next_half_logsnr`` ``(B,)`` with; ``level`` is that of ``state``."""


@dataclass(frozen=True)
class Estimate:
    """A clean estimate as a sum: of a state's samples by weights, and of what no weights of those give.

    ``weights`` ``(B, 1 + 2 * K)`` on the host are those of ``x`` and of ``State.history``; ``matrix_part`` ``(B, *S)``,
    on the device, is added, if there is one.
    """

    weights: Tensor
    matrix_part: Tensor | None = None


class MultistepSolver(Solver):
    """One that weighs predictions by numbers: ``(B, order)``, newest first, that sum to 1.

    ``combines_noise`` says what is weighed: noise predictions if true, clean estimates if false.
    """

    combines_noise: bool

    @abstractmethod
    def weights(self, state: State, next_half_logsnr: Tensor) -> Tensor:
        """Weights for the step from ``state`` to ``next_half_logsnr`` ``(B,)``; those of missing predictions are 0."""

    def estimate(self, state: State, next_half_logsnr: Tensor, level: Level) -> Estimate:
        size = 1 + state.history.shape[1]
        weights = self.weights(state, next_half_logsnr) @ _columns(self.order, size, 1 + self.combines_noise)
        if not self.combines_noise:
            return Estimate(weights)
        # x0 = (x - sigma * eps) / alpha
        alpha, sigma = level.alpha[:, None], level.sigma[:, None]
        from_noise = torch.cat([alpha.reciprocal(), (-sigma / alpha * weights)[:, 1:]], dim=1)
        # At pure noise x says nothing of x0, but there is only one prediction yet: its own clean estimate is taken.
        return Estimate(torch.where(alpha == 0, _columns(1, size, 1), from_noise))


@dataclass(frozen=True)
class IPNDM(MultistepSolver):
    """Improved pseudo numerical method: Adams-Bashforth weights for equal steps (Liu et al. 2022; Zhang and Chen 2023).

    ``order`` 1 to 4; order 1 is DDIM. The first steps use the order that the history allows. A ``cautious`` one has
    order 2 at most in runs of up to 4 steps: no polynomial approximates steps so long.
    """

    order: int = 2
    cautious: bool = False
    combines_noise = True

    _SHORT_RUN = 4

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order of IPNDM must be 1, 2, 3 or 4, got {self.order}")

    def weights(self, state: State, next_half_logsnr: Tensor) -> Tensor:
        usable = state.predictions.clamp(max=self.order)
        if self.cautious:
            short_run = state.predictions + state.steps_left <= self._SHORT_RUN + 1
            usable = torch.where(short_run, usable.clamp(max=2), usable)
        return ADAMS_BASHFORTH[usable - 1, : self.order]


@dataclass(frozen=True)
class DDIM(MultistepSolver):
    """Denoising diffusion implicit model, deterministic (Song et al. 2021, Eq. 12 with eta = 0)."""

    order = 1
    combines_noise = False

    def weights(self, state: State, next_half_logsnr: Tensor) -> Tensor:
        return torch.ones(len(state.x), 1, dtype=torch.float64, device=HOST)


@dataclass(frozen=True)
class DPMSolverPP(MultistepSolver):
    """DPM-Solver++ multistep, ``order`` 2 ("2M") or 3 ("3M") (Lu et al. 2022b, Algorithm 2; diffusers' ``midpoint``).

    As in diffusers, the step to clean data has order 1 and, in runs of fewer than 15 steps, the one before it order
    at most 2. Also as in diffusers and the authors' code, "3M" weighs the second difference half as much as Taylor's
    theorem asks, so its error too falls with the second power of the step, with a smaller constant than 2M's.
    """

    order: int = 2
    combines_noise = False

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ValueError(f"order of DPMSolverPP must be 2 or 3, got {self.order}; order 1 is DDIM")

    def weights(self, state: State, next_half_logsnr: Tensor) -> Tensor:
        levels = state.half_logsnr_history
        # The step to clean data is infinite here; it has order 1, whose weights do not depend on its size.
        next_level = torch.where(next_half_logsnr.isinf(), levels[:, 0] + 1, next_half_logsnr)
        step = next_level - levels[:, 0]
        usable = torch.minimum(state.predictions, self._order_near_the_end(state))
        first = step.new_zeros(len(step), self.order)
        first[:, 0] = 1
        weights = first
        if _any(usable >= 2):
            weights = torch.where((usable >= 2)[:, None], first + self._second_order(levels, step, usable), first)
        if self.order == 3 and _any(usable >= 3):
            weights = torch.where((usable >= 3)[:, None], first + self._third_order(levels, step, usable), weights)
        return weights

    def _order_near_the_end(self, state: State) -> Tensor:
        short_run = state.predictions - 1 + state.steps_left < 15
        order = torch.full_like(state.predictions, self.order)
        order = torch.where((state.steps_left == 2) & short_run, order.clamp(max=2), order)
        return torch.where(state.steps_left == 1, torch.ones_like(order), order)

    def _second_order(self, levels: Tensor, step: Tensor, usable: Tensor) -> Tensor:
        """Weights to add to (1, 0, ...): half the first divided difference, times the step."""
        gap = torch.where(usable >= 2, levels[:, 0] - levels[:, 1], 1.0)
        half = step / (2 * gap)
        return torch.stack([half, -half] + [torch.zeros_like(half)] * (self.order - 2), dim=1)

    def _third_order(self, levels: Tensor, step: Tensor, usable: Tensor) -> Tensor:
        """The same from two divided differences; phi_2 and phi_3 are the exponential integrator's functions."""
        known = usable >= 3
        r0 = torch.where(known, levels[:, 0] - levels[:, 1], 1.0) / step
        # Pure noise is infinitely far: its weight is 0 either way, but infinity has no gradient to where one steps.
        r1 = torch.where(known, levels[:, 1] - levels[:, 2], 1.0).clamp(max=_FAR) / step
        phi_1 = -torch.expm1(-step)
        phi_2 = 1 - phi_1 / step
        phi_3 = (step - phi_1) / step**2 - 0.5
        zero = torch.zeros_like(step)
        newer = torch.stack([1 / r0, -1 / r0, zero], dim=1)
        older = torch.stack([zero, 1 / r1, -1 / r1], dim=1)
        bend = newer - older
        first = newer + (r0 / (r0 + r1))[:, None] * bend
        second = bend / (r0 + r1)[:, None]
        return (phi_2 / phi_1)[:, None] * first - (phi_3 / phi_1)[:, None] * second


SOLVERS: dict[str, Solver] = {
    "ddim": DDIM(),
    "dpm++2m": DPMSolverPP(2),
    "dpm++3m": DPMSolverPP(3),
    "ipndm1": IPNDM(1),
    "ipndm2": IPNDM(2),
    "ipndm3": IPNDM(3),
    "ipndm4": IPNDM(4),
    "ipndm": IPNDM(3, cautious=True),
}
"""The solvers by the names used at the command line and in ``gym.make``."""


def ddim_factors(level: Level, next_level: Level) -> tuple[Tensor, Tensor]:
    """Factors ``(B,)`` of the sample and of the clean estimate in a DDIM step (Song et al. 2021, Eq. 12, eta = 0).

    Written in the clean estimate, both are at most 1.
    """
    ratio = next_level.sigma / level.sigma
    return ratio, next_level.alpha - level.alpha * ratio


def ddim_step(x: Tensor, x0: Tensor, level: Level, next_level: Level) -> Tensor:
    """The DDIM step from ``x`` at ``level`` with the clean estimate ``x0``, both ``(B, *S)``."""
    ratio, gain = ddim_factors(level, next_level)
    return place(ratio, x) * x + place(gain, x) * x0


def clean_target(x: Tensor, landed: Tensor, level: Level, next_level: Level) -> Tensor:
    """The clean estimate whose DDIM step from ``x`` at ``level`` ends at ``landed`` (Salimans and Ho 2022, Eq. 8)."""
    ratio, gain = ddim_factors(level, next_level)
    return (landed - place(ratio, x) * x) / place(gain, x)


def apply_estimate(
    state: State, estimate: Estimate, level: Level, next_level: Level, gains: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The clean estimate ``(B, *S)`` itself, and the sample that its DDIM step arrives at.

    ``gains`` ``(B, K)`` on the host, if given: multiples of the estimate's spatial frequency bands that are added.
    """
    ratio, gain = ddim_factors(level, next_level)
    # Both at once: the second is a sum of the same samples.
    arrived = gain[:, None] * estimate.weights
    arrived[:, 0].add_(ratio)
    weights, parts = torch.stack([estimate.weights, arrived], dim=1), [state.x[:, None], state.history]
    if estimate.matrix_part is not None:
        both = torch.stack([torch.ones_like(gain), gain], dim=1)[:, :, None]
        weights, parts = torch.cat([weights, both], dim=2), [*parts, estimate.matrix_part[:, None]]
    x0, x = combine(weights, torch.cat(parts, dim=1)).unbind(dim=1)
    if gains is not None:
        added = filter_bands(x0, gains)
        x0, x = x0 + added, x + place(gain, x) * added
    return x0, x


def initial_state(
    noise: Tensor,
    schedule: Schedule,
    grid: Grid,
    num_steps: int,
    history: int,
    condition: Tensor | None = None,
    guidance: float = 1.0,
) -> State:
    """The state before the first network call.

    Args:
        noise: standard normal ``(B, *S)``; it is taken for a sample of the grid's first level.
        schedule, grid, num_steps: of the steps.
        history: how many past predictions the state holds.
        condition: rows ``(B,)`` of the model's conditions, on the host; the first if not given.
        guidance: scale of the first network call.
    """
    rows = len(noise)
    position = torch.zeros(rows, dtype=torch.float64, device=HOST)
    counts = torch.zeros(rows, dtype=torch.int64, device=HOST)
    half_logsnr = grid.half_logsnr(position, schedule)
    return State(
        x=schedule.scaled(noise, half_logsnr),
        position=position,
        half_logsnr=half_logsnr,
        timestep=schedule.timestep(half_logsnr),
        condition=counts if condition is None else condition,
        guidance=torch.full_like(position, guidance),
        predictions=counts,
        nfe=counts,
        steps_left=torch.full_like(counts, num_steps),
        price=position,
        wave=counts,
        history=noise.new_zeros(rows, 2 * history, *noise.shape[1:]),
        half_logsnr_history=position.new_zeros(rows, history),
    )


def predict(model: Predictor, state: State) -> State:
    """Evaluate the network at ``state`` and put its prediction at the head of the history."""
    return record(state, model.predict_at(state), model.calls)


def predict_in_parts(model: Predictor, state: State, size: int) -> State:
    """:func:`predict`, with at most ``size`` rows in one call of the network."""
    rows = torch.arange(len(state.x), device=HOST)
    return State.joined([predict(model, state.rows(part)) for part in rows.split(size)])


def record(state: State, prediction: Prediction, calls: int = 1) -> State:
    """``state`` with one prediction more, which cost so many network calls and heads the history."""
    newest = (prediction.x0[:, None], prediction.eps[:, None], state.history[:, :-2])
    return replace(
        state,
        x=state.x if prediction.x is None else prediction.x,
        wave=state.wave if prediction.wave is None else prediction.wave,
        predictions=state.predictions + 1,
        nfe=state.nfe + calls,
        history=torch.cat(newest, dim=1),
        half_logsnr_history=torch.cat([state.half_logsnr[:, None], state.half_logsnr_history[:, :-1]], dim=1),
    )


def step_to(state: State, decision: Decision) -> State:
    """The state that a decision leads to; the network is not called."""
    return replace(
        state,
        x=decision.x,
        position=decision.position,
        half_logsnr=decision.half_logsnr,
        timestep=decision.timestep,
        guidance=state.guidance if decision.guidance is None else decision.guidance,
        steps_left=decision.steps_left - 1,
    )


def trajectory(
    model: Predictor,
    solver: Solver,
    grid: Grid,
    noise: Tensor,
    num_steps: int,
    condition: Tensor | None = None,
) -> Iterator[State]:
    """Run a solver from ``noise`` ``(B, *S)``: yields the state after each of its ``num_steps`` steps, the last clean.

    One prediction a step, at the model's own guidance scale; ``condition`` as in :func:`initial_state`.

    Raises:
        ValueError: if ``num_steps`` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    schedule = model.schedule
    scale = model.guidance_scale or 1.0
    first = grid.half_logsnr(torch.zeros(1, dtype=torch.float64, device=HOST), schedule)
    noise = model.initial_sample(noise, condition, first)
    state = initial_state(noise, schedule, grid, num_steps, solver.order, condition, scale)
    for _ in range(num_steps):
        state = predict(model, state)
        position = next_position(state.position, state.steps_left, torch.zeros_like(state.position))
        half_logsnr = grid.half_logsnr(position, schedule)
        level = schedule.level(state.half_logsnr)
        estimate = solver.estimate(state, half_logsnr, level)
        x0, x = apply_estimate(state, estimate, level, schedule.level(half_logsnr))
        timestep = schedule.timestep(half_logsnr)
        state = step_to(state, Decision(position, half_logsnr, x0, x, timestep, state.steps_left))
        yield state


def sample(
    model: Predictor, solver: Solver, grid: Grid, noise: Tensor, num_steps: int, condition: Tensor | None = None
) -> Tensor:
    """The end of :func:`trajectory`: clean samples ``(B, *S)``."""
    (last,) = deque(trajectory(model, solver, grid, noise, num_steps, condition), maxlen=1)
    return last.x


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # stored for later calls, which may need a gradient
def _columns(order: int, size: int, first: int) -> Tensor:
    """``(order, size)`` that puts the weights of predictions in every second column, from column ``first`` on."""
    return torch.eye(size, dtype=torch.float64, device=HOST)[first::2][:order].clone()  # traced programs keep it whole


def _any(rows: Tensor) -> bool:
    """Whether weights need be computed at all; a traced program cannot branch on that, and always computes them."""
    return torch.compiler.is_compiling() or bool(rows.any())
