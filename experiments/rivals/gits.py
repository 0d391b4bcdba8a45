"""GITS: a schedule by dynamic programming on the geometry of the teacher's trajectories (Chen et al. 2024b, Sec. 4).

Sampling trajectories of one teacher look alike, so a few noises suffice to find where steps may be long. On a fine grid
the cost of a step from level i to level j is the error of one Euler step in sigma space, by one of two metrics; the
cheapest path of N steps is the schedule, where the cost of each later step counts a coefficient times more.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from experiments.rivals.rival import Clock, Fitted, Sampler, Task, nearest, solver_sampler
from experiments.rivals.sigma_space import SigmaSpace, sigma_space
from redif_env.diffusion.grids import GRIDS, Grid, LevelsGrid
from redif_env.diffusion.solvers import SOLVERS, DPMSolverPP, trajectory

FINE = 60
"""Levels between which steps are chosen, as in the paper."""
NOISES = 256
TRIED_SOLVERS = ("dpm++2m", "dpm++3m", "ipndm2", "ipndm3", "ipndm4")
TRIED_GRIDS = ("time", "time^1.5", "karras", "time@20", "time^1.5@20")
"""Fine grids; on flow schedules that of Karras starts a little below pure noise."""
COEFFICIENTS = (0.85, 1.0, 1.15)
"""Of the authors' range; 1.15 is their default."""


def gits(task: Task) -> Fitted:
    """The schedule with the metric, coefficient, solver and fine grid that the chooser's noises prefer."""
    clock, paths = Clock(task.seconds), set()
    for grid in TRIED_GRIDS:
        for costs, coefficient in product(step_costs(task, GRIDS[grid], clock).values(), COEFFICIENTS):
            paths.add((grid, cheapest_path(costs, task.num_steps, coefficient)))
    return best_schedule(task, sorted(paths), clock)


def best_schedule(task: Task, paths: list[tuple[str, tuple[int, ...]]], clock: Clock) -> Fitted:
    """The best of schedules (fine grids and the levels on them that steps start from), each with the best solver."""
    candidates: dict[str, Sampler] = {}
    for (grid, path), name in product(paths, TRIED_SOLVERS):
        positions = torch.tensor(path, dtype=torch.float64) / FINE
        nodes = LevelsGrid(tuple(GRIDS[grid].half_logsnr(positions, task.teacher.schedule).tolist()))
        candidates[f"{name} {grid} {list(path)}"] = solver_sampler(task, SOLVERS[name], nodes)
    best = nearest(task, candidates, clock)
    return Fitted(candidates[best], clock.spent, clock.network_calls, best)


@torch.inference_mode()
def step_costs(task: Task, grid: Grid, clock: Clock) -> dict[str, Tensor]:
    """Costs ``(FINE + 1, FINE + 1)`` of one Euler step from level i to level j, by metric: mean over trajectories.

    ``l1``: distance of its end from the trajectory at j. ``deviation``: how much farther its end is from the
    chord between the trajectory's ends than the trajectory at j is (Eq. 13 and the authors' code).
    """
    space = sigma_space(task.teacher, grid, FINE)
    x, eps = fine_trajectory(task, grid, space)
    clock.network_calls += x.shape[1] * FINE * task.teacher.calls
    sigma = space.sigma.to(x)
    costs = {name: torch.full((FINE + 1, FINE + 1), torch.inf, dtype=torch.float64) for name in ("l1", "deviation")}
    own = _deviation(x, x[0], x[-1])
    for i in range(FINE):
        ends = x[i] + (sigma[i + 1 :, None, None] - sigma[i]) * eps[i]
        costs["l1"][i, i + 1 :] = (ends - x[i + 1 :]).abs().sum(dim=2).mean(dim=1).cpu().double()
        apart = _deviation(ends, x[0], x[-1]) - own[i + 1 :]
        costs["deviation"][i, i + 1 :] = apart.mean(dim=1).cpu().double()
    return costs


def fine_trajectory(task: Task, grid: Grid, space: SigmaSpace) -> tuple[Tensor, Tensor]:
    """The teacher's samples ``(FINE + 1, N, D)`` in sigma space, and noise predictions ``(FINE, N, D)`` there."""
    schedule, size = task.teacher.schedule, min(NOISES, task.trajectories)
    condition, noise = task.reference.condition[:size], task.reference.noise[:size].to(task.teacher.device)
    states = list(trajectory(task.teacher, DPMSolverPP(2), grid, noise, FINE, condition))
    passed = [noise, *(schedule.normalised(state.x, state.half_logsnr) for state in states)]
    x = torch.stack([space.place(sample, index).flatten(1) for index, sample in enumerate(passed)])
    return x, torch.stack([state.eps_history[:, 0].flatten(1) for state in states])


def _deviation(x: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Distance ``(K, N)`` of points ``(K, N, D)`` from the line through ``first`` and ``last`` ``(N, D)``."""
    chord = torch.nn.functional.normalize(last - first, dim=1)
    apart = x - last
    return (apart - (apart * chord).sum(dim=2, keepdim=True) * chord).norm(dim=2)


def cheapest_path(costs: Tensor, num_steps: int, coefficient: float = 1.0) -> tuple[int, ...]:
    """The ``num_steps`` levels that steps start from, of the cheapest path from the first level to the last.

    The cost of step k counts ``coefficient ** k`` times.
    """
    last = len(costs) - 1
    total = torch.full((num_steps + 1, last + 1), torch.inf, dtype=torch.float64)
    came = torch.zeros(num_steps + 1, last + 1, dtype=torch.int64)
    total[0, 0] = 0
    for step in range(1, num_steps + 1):
        through = total[step - 1][:, None] + coefficient ** (step - 1) * costs
        total[step], came[step] = through.min(dim=0)
    path = [last]
    for step in range(num_steps, 0, -1):
        path.append(int(came[step, path[-1]]))
    return tuple(reversed(path[1:]))
