"""Training-free solvers: each on the grid that serves it best, chosen on validation noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from experiments.rivals.rival import Clock, Fitted, Rival, Sampler, Task, distance
from experiments.rivals.two_calls import Choice, heun, midpoint, sample_two_calls
from redif_env.baselines import Baseline
from redif_env.grids import GRIDS


def ddim(task: Task) -> Fitted:
    """DDIM on uniform time: where comparisons usually begin."""
    return Fitted(_multistep("ddim", task, "time"), 0.0, 0, "ddim time", _levels(task, "time"))


def multistep(method: str) -> Rival:
    """The solver of that name on its best grid, one call a step."""
    return partial(_on_best_grid, partial(_multistep, method), _levels, method)


def two_calls(method: str, choose: Choice) -> Rival:
    """Such a solver on its best grid, two calls a step; an odd number leaves one for a last DDIM step."""
    return partial(_on_best_grid, partial(_twice, choose), partial(_levels_of_two, choose), method)


def allows(method: str, steps: int) -> bool:
    """Whether the solver can spend exactly so many predictions: DPM-Solver-2 an even, Heun's an odd number."""
    return {"dpm2": steps % 2 == 0, "heun": steps % 2 == 1}.get(method, True)


def _on_best_grid(
    bind: Callable[[Task, str], Sampler], levels: Callable[[Task, str], tuple[float, ...]], method: str, task: Task
) -> Fitted:
    """The sampler whose grid brings it nearest to the teacher on the chooser's noises."""
    clock, tried = Clock(task.seconds), {}
    for grid in GRIDS:
        clock.network_calls += len(task.chooser.noise) * task.nfe
        tried[grid] = distance(task.chooser, bind(task, grid))
    best = min(tried, key=lambda grid: tried[grid])
    return Fitted(bind(task, best), clock.spent, clock.network_calls, f"{method} {best}", levels(task, best))


def _multistep(method: str, task: Task, grid: str) -> Sampler:
    return lambda noise, condition: Baseline(method, grid)(task.teacher, noise, task.num_steps, condition)


def _levels(task: Task, grid: str) -> tuple[float, ...]:
    position = torch.arange(task.num_steps, dtype=torch.float64) / task.num_steps
    return tuple(GRIDS[grid].half_logsnr(position, task.teacher.schedule.to(torch.device("cpu"))).tolist())


def _twice(choose: Choice, task: Task, grid: str) -> Sampler:
    def sampler(noise: Tensor, condition: Tensor) -> Tensor:
        return sample_two_calls(task.teacher, GRIDS[grid], noise, task.num_steps, condition, choose)[0]

    return sampler


def _levels_of_two(choose: Choice, task: Task, grid: str) -> tuple[float, ...]:
    few = slice(0, 2)
    noise, condition = task.chooser.noise[few], task.chooser.condition[few]
    return sample_two_calls(task.teacher, GRIDS[grid], noise, task.num_steps, condition, choose)[1]


TRAINING_FREE: dict[str, Rival] = {
    **{name: multistep(name) for name in ("ddim", "dpm++2m", "dpm++3m", "unipc2", "unipc3", "deis2", "deis3")},
    **{name: multistep(name) for name in ("ipndm2", "ipndm3", "ipndm4")},
    "dpm2": two_calls("dpm2", midpoint),
    "heun": two_calls("heun", heun),
}
"""By their names; iPNDM of order 1 is DDIM."""
