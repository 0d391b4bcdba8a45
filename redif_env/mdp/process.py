"""The denoising Markov decision process: pure functions of batched states, and no memory of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from redif_env.diffusion.grids import Grid
from redif_env.diffusion.placement import HOST
from redif_env.diffusion.solvers import Solver, initial_state, predict, record, step_to
from redif_env.diffusion.types import Decision, State
from redif_env.fitted.initial_maps import LinearInitialMap
from redif_env.fitted.linear_solver import LinearSolver
from redif_env.mdp.actions import ActionMap, BaseSolver
from redif_env.mdp.observations import Observation, Sample
from redif_env.teachers.teacher import Teacher

GIVE_UP_FROM, GIVE_UP_TO = 0.1, 0.6
"""The number of the action that gives up steps gives up none up to the first value, and all from the second.

Exploration around 0 then gives up only a few. Otherwise the full budget would rarely occur in training.
"""


@dataclass(frozen=True)
class DenoisingMDP:
    """Few-step denoising as a decision process (module ``redif_env.envs.environments`` makes environments of it).

    With ``min_steps`` below ``num_steps``, the agent also decides the number of steps. The last number of an action
    then gives up steps: 0.1 or less gives up none, 0.6 or more gives up all down to ``min_steps``, and values between
    are rounded. The remaining steps are spread over the remaining grid positions. When only the current step is left,
    it goes to clean data and the episode ends.

    Args:
        teacher: makes one prediction per step: one network call, or two with guidance. It makes none if actions contain
            the prediction; the call of the student's own network then counts as one.
        solver, grid: the base solver, whose steps the zero action takes.
        num_steps: largest number of steps of an episode, at least 1.
        action_map, observation: decoder of actions, and the agent's observation.
        min_steps: smallest number of steps of an episode; ``num_steps`` if not given.
        prices: smallest and largest price of a network call, in units of reward. The price of an episode is the last
            number of an observation: 0 for the smallest, 1 for the largest, linear in the logarithm.
        learn_guidance: whether the agent decides the guidance scale of every network call but the first. The number for
            it follows those of the action map. It multiplies the scale's excess over 1 by ``4 ** number``.
        initial_map: map from noise to a sample of the grid's first level; the noise itself if not given.
    """

    teacher: Teacher
    solver: Solver
    grid: Grid
    num_steps: int
    action_map: ActionMap
    observation: Observation | Sample
    min_steps: int | None = None
    prices: tuple[float, float] | None = None
    learn_guidance: bool = False
    initial_map: LinearInitialMap | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(
                f"num_steps must be at least 1, got {self.num_steps}: an episode makes one network call a step"
            )
        if self.min_steps is not None and not 1 <= self.min_steps <= self.num_steps:
            raise ValueError(f"min_steps must be from 1 to num_steps={self.num_steps}, got {self.min_steps}")
        if self.prices is not None and not 0 < self.prices[0] < self.prices[1]:
            raise ValueError(f"prices must be two numbers above 0, the smaller first, got {self.prices}")
        self._check_predictions()
        if self.adaptive and self.teacher.common_levels:
            raise ValueError(
                f"min_steps={self.min_steps} cannot be had of teacher {self.teacher.name!r}, whose samples must be at "
                "levels common to a batch: leave it out"
            )
        if self.learn_guidance and self.teacher.guidance_scale is None:
            raise ValueError(f"learn_guidance needs a guided teacher: give {self.teacher.name!r} a guidance_scale")
        if self.observation.shows_condition and len(self.teacher.conditions) < 2:
            raise ValueError(
                f"observation shows the condition, but teacher {self.teacher.name!r} has "
                f"{len(self.teacher.conditions)}: choose 'features'"
            )

        self._check_initial_map()
        self._check_solver()
        self.action_map.check(self.teacher.sample_shape, self.num_steps)

    def _check_solver(self) -> None:
        """Refuse linear steps that were fitted for others."""
        if not isinstance(self.solver, LinearSolver):
            return
        if self.adaptive:
            raise ValueError(
                f"min_steps={self.min_steps} cannot go with solver='linear', which is fitted to one number of steps: "
                "leave it out, or choose solver='ipndm'"
            )
        positions = torch.arange(self.num_steps, dtype=torch.float64, device=HOST) / self.num_steps
        levels = self.grid.half_logsnr(positions, self.teacher.schedule)
        fitted = torch.tensor(self.solver.half_logsnr, dtype=torch.float64, device=HOST)
        if levels.shape != fitted.shape or not torch.allclose(levels, fitted, rtol=0, atol=1e-6):
            raise ValueError(
                f"solver has {len(fitted)} linear steps from half_logsnr={[round(v, 4) for v in fitted.tolist()]}, but "
                f"the grid's {len(levels)} are from {[round(v, 4) for v in levels.tolist()]}: fit them to this grid "
                "(redif_env.fitted.linear_solver.fit_solver)"
            )
        if self.solver.offset.shape[1] != len(self.teacher.conditions):
            raise ValueError(
                f"solver knows {self.solver.offset.shape[1]} conditions, but teacher {self.teacher.name!r} has "
                f"{len(self.teacher.conditions)}: fit one to this teacher (redif_env.fitted.linear_solver.fit_solver)"
            )

    def _check_initial_map(self) -> None:
        """Refuse an initial map that was fitted to another teacher or grid."""
        if self.initial_map is None:
            return
        first = self._first_level
        if abs(first.item() - self.initial_map.half_logsnr) > 1e-6:
            raise ValueError(
                f"initial_map ends at half_logsnr={self.initial_map.half_logsnr:.4f}, but the grid begins at "
                f"{first.item():.4f}: fit one to this grid (fit_initial_map)"
            )
        if len(self.initial_map.offset) != len(self.teacher.conditions):
            raise ValueError(
                f"initial_map knows {len(self.initial_map.offset)} conditions, but teacher {self.teacher.name!r} has "
                f"{len(self.teacher.conditions)}: fit one to this teacher (fit_initial_map)"
            )

    def _check_predictions(self) -> None:
        """Refuse what cannot go with actions that contain the prediction."""
        if not self.action_map.predicts:
            return
        if not isinstance(self.observation, Sample):
            raise ValueError(
                "action='noise' brings the prediction itself, of which this observation is made: choose "
                "observation='sample'"
            )
        arguments = {
            "min_steps": self.adaptive,
            "prices": self.prices is not None,
            "learn_guidance": self.learn_guidance,
        }
        given = [name for name, value in arguments.items() if value]
        if given:
            raise ValueError(
                f"{', '.join(given)} cannot be used with action='noise', whose network answers once a step: leave it "
                "out, or choose action='solver'"
            )

    @property
    def base(self) -> BaseSolver:
        return BaseSolver(self.solver, self.grid, self.teacher.parameterization)

    @cached_property
    @torch.inference_mode(False)  # stored for later calls, which may need a gradient
    def _first_level(self) -> Tensor:
        """``half_logsnr`` ``(1,)`` of the grid's first level."""
        return self.grid.half_logsnr(torch.zeros(1, dtype=torch.float64, device=HOST), self.teacher.schedule)

    @property
    def adaptive(self) -> bool:
        """Whether the number of calls is a decision."""
        return self.min_steps is not None and self.min_steps < self.num_steps

    @property
    def action_size(self) -> int:
        """Numbers in one action, each in [-1, 1]."""
        return self.action_map.size(self.teacher.sample_shape) + self.learn_guidance + self.adaptive

    @property
    def calls(self) -> int:
        """Network calls (NFE) a step: the teacher's, or one of the student's own network."""
        return 1 if self.action_map.predicts else self.teacher.calls

    @property
    def observation_size(self) -> int:
        """Numbers in one observation, where it is a vector.

        Raises:
            ValueError: if it is none.
        """
        if isinstance(self.observation, Sample):
            raise ValueError("observation='sample' is a dict and has no size: use observation='features'")
        shown = self.teacher.conditions.embeddings.shape[1] if self.observation.shows_condition else 0
        return self.observation.size(self.teacher.sample_shape, self.num_steps) + shown + (self.prices is not None)

    @property
    def history(self) -> int:
        """Past predictions that a state keeps."""
        return max(self.solver.order, self.action_map.history, self.observation.history)

    def initial(self, noise: Tensor, price: Tensor | None = None, condition: Tensor | None = None) -> State:
        """The states of ``noise`` ``(B, *S)``, before their first network call.

        ``price`` ``(B,)`` is what a call costs, ``condition`` ``(B,)`` the rows of the teacher's conditions.
        """
        teacher, scale = self.teacher, self.teacher.guidance_scale or 1.0
        noise = self.initial_sample(noise, condition)
        state = initial_state(noise, teacher.schedule, self.grid, self.num_steps, self.history, condition, scale)
        return state if price is None else replace(state, price=price)

    def initial_sample(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Samples of the grid's first level: ``noise`` ``(B, *S)`` itself, or what the initial map makes of it.

        Where the teacher begins from images, with those in it.
        """
        if self.initial_map is None:
            return self.teacher.initial_sample(noise, condition, self._first_level)
        rows = torch.zeros(len(noise), dtype=torch.int64, device=HOST) if condition is None else condition
        return self.initial_map(noise, rows)

    def predict(self, state: State, rows: Tensor, leader: Tensor | None = None) -> State:
        """The teacher's prediction on the given rows (``(B,)`` bool) alone; the others stay as they are.

        Where actions contain the prediction, the network is not evaluated. ``leader`` ``(B,)``, if given, is for each
        row one that is in the same state: it is predicted once for all who name it.
        """
        if self.action_map.predicts:
            return state
        if leader is None and bool(rows.all()):
            return predict(self.teacher, state)
        if not bool(rows.any()):
            return state
        chosen = (rows.nonzero()[:, 0] if leader is None else leader[rows]).unique()
        predicted = predict(self.teacher, state.rows(chosen))
        place = torch.zeros_like(rows, dtype=torch.int64)
        place[chosen] = torch.arange(len(chosen), device=HOST)
        return state.merge(rows, predicted.rows(place if leader is None else place[leader]))

    def with_action_prediction(self, state: State, action: Tensor) -> State:
        """``state`` with the prediction that ``action`` ``(B, A)`` contains; itself where the teacher predicts."""
        if not self.action_map.predicts:
            return state
        return record(state, self.action_map.prediction(action, state, self.base))

    def decode(self, state: State, action: Tensor) -> Decision:
        """What ``action`` ``(B, A)`` means in ``state``, which holds the newest prediction."""
        if self.teacher.common_levels:
            action = self._with_common_levels(action, state.wave)
        if self.adaptive:
            state, action = self._give_up(state, action[:, -1]), action[:, :-1]
        if not self.learn_guidance:
            return self.action_map.decode(action, state, self.base)
        assert self.teacher.guidance_scale is not None
        scale = 1 + (self.teacher.guidance_scale - 1) * 4 ** action[:, -1].to(HOST, torch.float64)
        return replace(self.action_map.decode(action[:, :-1], state, self.base), guidance=scale)

    def advance(self, state: State, decision: Decision) -> State:
        """The deterministic solver step; no network call. Rows that are already clean come out as NaN."""
        return step_to(state, decision)

    def observe(self, state: State) -> Tensor | dict[str, Tensor]:
        """Observations ``(B, F)`` float32 on the host, or the dict of ``Sample``."""
        if isinstance(self.observation, Sample):
            return self.observation.observe(state, self.teacher.parameterization)
        size = self.teacher.schedule.size(state.half_logsnr)
        seen = self.observation.observe(state, size, self.num_steps)
        if self.observation.shows_condition:
            seen = torch.cat([seen, self.teacher.conditions.embeddings[state.condition]], dim=1)
        if self.prices is None:
            return seen
        low, high = self.prices
        dial = (state.price / low).log() / math.log(high / low)
        return torch.cat([seen, dial[:, None].float().clamp(0, 1)], dim=1)

    def price(self, dial: Tensor) -> Tensor:
        """The price at each ``dial`` ``(B,)`` in [0, 1], from the smallest to the largest; 0 if there are none."""
        if self.prices is None:
            return torch.zeros_like(dial)
        low, high = self.prices
        return low * (high / low) ** dial

    def constant_price(self, count: int, price: float | None = None) -> Tensor:
        """The same price ``(count,)`` for all; the smallest if not given, 0 if there are none.

        Raises:
            ValueError: if a price is given that no episode had.
        """
        prices = self.prices
        if prices is None and price is not None:
            raise ValueError(f"price={price} means nothing to this student: it was trained without prices")
        if prices is not None and price is not None and not prices[0] <= price <= prices[1]:
            raise ValueError(f"price must be from {prices[0]} to {prices[1]}, as in training, got {price}")
        smallest = prices[0] if prices is not None else 0.0
        value = smallest if price is None else price
        return torch.full((count,), value, dtype=torch.float64, device=HOST)

    def _with_common_levels(self, action: Tensor, wave: Tensor) -> Tensor:
        """Actions of which those of one pipeline call share the numbers that decide levels: their mean."""
        _, member = wave.unique(return_inverse=True)
        member = member.to(action.device)
        columns = list(self.action_map.level_numbers)
        sums = torch.zeros(int(member.max()) + 1, len(columns)).to(action).index_add(0, member, action[:, columns])
        shared = action.clone()
        shared[:, columns] = (sums / member.bincount().to(action)[:, None])[member]
        return shared

    def _give_up(self, state: State, share: Tensor) -> State:
        assert self.min_steps is not None
        least = (self.min_steps - state.predictions + 1).clamp(min=1)
        spare = (state.steps_left - least).clamp(min=0)
        given_up = ((share.to(HOST, torch.float64) - GIVE_UP_FROM) / (GIVE_UP_TO - GIVE_UP_FROM)).clamp(0, 1)
        given_up = (spare * given_up).round().long()
        return replace(state, steps_left=state.steps_left - given_up)
