"""The denoising Markov decision process: pure functions of batched states, and no memory of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redif_env.actions import ActionMap, BaseSolver
from redif_env.grids import Grid
from redif_env.observations import Observation
from redif_env.solvers import Solver, initial_state, predict, step_to
from redif_env.teachers import Teacher
from redif_env.types import Decision, State


@dataclass(frozen=True)
class DenoisingMDP:
    """Few-step denoising as a decision process (module ``redif_env.envs`` makes environments of it).

    Args:
        teacher: its network is called once a step.
        solver, grid: the base solver, which the zero action reproduces.
        num_steps: network calls an episode, at least 1.
        action_map, observation: meaning of actions, and what the agent sees.
    """

    teacher: Teacher
    solver: Solver
    grid: Grid
    num_steps: int
    action_map: ActionMap
    observation: Observation

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(
                f"num_steps must be at least 1, got {self.num_steps}: an episode makes one network call a step"
            )

    @property
    def base(self) -> BaseSolver:
        return BaseSolver(self.solver, self.grid, self.teacher.schedule)

    def initial(self, noise: Tensor) -> State:
        """The states of ``noise`` ``(B, *S)``, before their first network call."""
        history = max(self.solver.order, self.action_map.history, self.observation.history)
        return initial_state(noise, self.teacher.schedule, self.grid, self.num_steps, history)

    def predict(self, state: State, rows: Tensor) -> State:
        """One network call on the given rows (``(B,)`` bool) alone; the others stay as they are."""
        if bool(rows.all()):
            return predict(self.teacher, state)
        if not bool(rows.any()):
            return state
        chosen = rows.nonzero()[:, 0]
        answered = predict(self.teacher, state.rows(chosen))
        place = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        place[chosen] = torch.arange(len(chosen), device=rows.device)
        return state.merge(rows, answered.rows(place))

    def decode(self, state: State, action: Tensor) -> Decision:
        """What ``action`` ``(B, A)`` means in ``state``."""
        return self.action_map.decode(action, state, self.base)

    def advance(self, state: State, decision: Decision) -> State:
        """The deterministic solver step; no network call. Rows that are already clean come out as NaN."""
        return step_to(state, decision.position, decision.x0, decision.timestep, self.teacher.schedule, self.grid)

    def observe(self, state: State) -> Tensor:
        """Observations ``(B, F)`` float32."""
        return self.observation.observe(state, self.num_steps)
