"""GITS: a schedule by dynamic programming on the geometry of the teacher's trajectories (Chen et al. 2024b).

Sampling trajectories of one teacher look alike, so a few noises suffice to find where steps may be long. On a fine grid
the cost of a step from level i to level j is the distance of one Euler step's end from the teacher's trajectory; the
cheapest path of N steps is the schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise, product

import torch
from torch import Tensor

from experiments.rivals.rival import Clock, Fitted, Sampler, Task
from experiments.rivals.shortlist import nearest
from redif_env.diffusion.grids import GRIDS, Grid
from redif_env.diffusion.schedules import Schedule
from redif_env.diffusion.solvers import (
    SOLVERS,
    DPMSolverPP,
    Solver,
    ddim_step,
    initial_state,
    predict,
    sample,
    trajectory,
)
from redif_env.diffusion.types import State

FINE = 60
"""Levels between which steps are chosen, as in the paper."""
NOISES = 256
TRIED_SOLVERS = ("ddim", "dpm++2m", "dpm++3m", "ipndm2", "ipndm3")
TRIED_GRIDS = ("time", "time^1.5", "karras", "time^1.5@20")
"""Fine grids; on flow schedules that of Karras starts a little below pure noise."""


@dataclass(frozen=True)
class NodesGrid(Grid):
    """Given positions of another grid, one a step."""

    grid: Grid
    positions: tuple[float, ...]

    def interior(self, position: Tensor, schedule: Schedule) -> Tensor:
        nodes = torch.tensor([*self.positions, 1.0], dtype=torch.float64)
        index = (position * len(self.positions)).round().long()
        return self.grid.interior(nodes[index], schedule)


def gits(task: Task) -> Fitted:
    """The schedule with the solver and fine grid that serve it best on the chooser's noises."""
    clock = Clock(task.seconds)
    candidates: dict[str, Sampler] = {}
    for grid_name in TRIED_GRIDS:
        positions = cheapest_path(step_costs(task, GRIDS[grid_name], clock), task.num_steps)
        nodes = NodesGrid(GRIDS[grid_name], tuple(index / FINE for index in positions))
        for name in TRIED_SOLVERS:
            candidates[f"{name} {grid_name} {list(positions)}"] = _bound(task, SOLVERS[name], nodes)
    best = nearest(task, candidates, clock)
    return Fitted(candidates[best], clock.spent, clock.network_calls, best)


@torch.inference_mode()
def step_costs(task: Task, grid: Grid, clock: Clock) -> Tensor:
    """Mean distance ``(FINE + 1, FINE + 1)`` of one Euler step from level i to level j, to the trajectory there."""
    teacher, schedule = task.teacher, task.teacher.schedule
    noise = task.reference.noise[:NOISES].to(teacher.device)
    states = fine_trajectory(task, grid, noise)
    clock.network_calls += len(noise) * FINE * teacher.calls
    costs = torch.full((FINE + 1, FINE + 1), torch.inf, dtype=torch.float64)
    for i, j in product(range(FINE), range(1, FINE + 1)):
        if j > i:
            here, there = states[i], states[j]
            level, next_level = schedule.level(here.half_logsnr), schedule.level(there.half_logsnr)
            landed = ddim_step(here.x, here.x0_history[:, 0], level, next_level)
            costs[i, j] = (landed - there.x).flatten(1).cpu().double().norm(dim=1).mean()
    return costs


def fine_trajectory(task: Task, grid: Grid, noise: Tensor) -> list[State]:
    """The teacher's states at ``FINE`` + 1 levels, from noise to data, each but the last with its prediction."""
    teacher = task.teacher
    condition = task.reference.condition[:NOISES]
    scale = teacher.guidance_scale or 1.0
    first = predict(teacher, initial_state(noise, teacher.schedule, grid, FINE, 2, condition, scale))
    states = list(trajectory(teacher, DPMSolverPP(2), grid, noise, FINE, condition))
    # A state's own prediction is the newest of the history one step later.
    predicted = [replace(state, history=following.history) for state, following in pairwise(states)]
    return [first, *predicted, states[-1]]


def cheapest_path(costs: Tensor, num_steps: int) -> tuple[int, ...]:
    """The ``num_steps`` levels that steps start from, of the cheapest path from the first level to the last."""
    last = len(costs) - 1
    total = torch.full((num_steps + 1, last + 1), torch.inf, dtype=torch.float64)
    came = torch.zeros(num_steps + 1, last + 1, dtype=torch.int64)
    total[0, 0] = 0
    for step in range(1, num_steps + 1):
        through = total[step - 1][:, None] + costs
        total[step], came[step] = through.min(dim=0)
    path = [last]
    for step in range(num_steps, 0, -1):
        path.append(int(came[step, path[-1]]))
    return tuple(reversed(path[1:]))


def _bound(task: Task, solver: Solver, grid: Grid) -> Sampler:
    teacher = task.teacher

    @torch.inference_mode()
    def sampler(noise: Tensor, condition: Tensor) -> Tensor:
        return sample(teacher, solver, grid, noise, task.num_steps, condition)

    return sampler
