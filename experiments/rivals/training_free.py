"""Solvers without training, each on its best grid on validation noise; and linear steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from experiments.rivals.rival import Clock, Fitted, Rival, Sampler, Task, nearest
from experiments.rivals.two_calls import Choice, heun, midpoint, two_call_sampler
from redif_env.diffusion.grids import GRIDS
from redif_env.judging.baselines import SOLVER_GRIDS, Baseline
from redif_env.judging.bases import LINEAR_GRIDS, linear_base
from redif_env.mdp.settings import LINEAR


def ddim(task: Task) -> Fitted:
    """DDIM on uniform time, the usual baseline."""
    return Fitted(_multistep("ddim", task, "time"), 0.0, 0, "ddim time")


def multistep(method: str) -> Rival:
    """The solver of that name on its best grid, one call a step."""
    return partial(_on_best_grid, partial(_multistep, method), method)


def linear_steps(task: Task) -> Fitted:
    """Linear steps on their best grid, from a linear initial map: the task's base, if that is such.

    The fit to teacher trajectories is not counted.
    """
    if task.base.fixed:
        return Fitted(task.base.sampler(task.teacher, task.num_steps), 0.0, 0, f"{LINEAR} {task.base.grid}")
    return _on_best_grid(_linear, LINEAR, task, grids=LINEAR_GRIDS)


def two_calls(method: str, choose: Choice) -> Rival:
    """Such a solver on its best grid, two calls a step; an odd number leaves one for a last DDIM step."""
    return partial(_on_best_grid, partial(_twice, choose), method)


def allows(method: str, steps: int) -> bool:
    """Whether the solver can spend exactly so many predictions: DPM-Solver-2 an even, Heun's an odd number."""
    return {"dpm2": steps % 2 == 0, "heun": steps % 2 == 1}.get(method, True)


def _on_best_grid(
    bind: Callable[[Task, str], Sampler], method: str, task: Task, grids: Sequence[str] = SOLVER_GRIDS
) -> Fitted:
    """The sampler whose grid brings it nearest to the teacher on the chooser's noises."""
    clock = Clock(task.seconds)
    best = nearest(task, {grid: bind(task, grid) for grid in grids}, clock)
    return Fitted(bind(task, best), clock.spent, clock.network_calls, f"{method} {best}")


def _multistep(method: str, task: Task, grid: str) -> Sampler:
    return lambda noise, condition: Baseline(method, grid)(task.teacher, noise, task.num_steps, condition)


def _linear(task: Task, grid: str) -> Sampler:
    return linear_base(grid).sampler(task.teacher, task.num_steps)


def _twice(choose: Choice, task: Task, grid: str) -> Sampler:
    return two_call_sampler(task.teacher, GRIDS[grid], task.num_steps, choose)


TRAINING_FREE: dict[str, Rival] = {
    **{name: multistep(name) for name in ("ddim", "dpm++2m", "dpm++3m", "unipc2", "unipc3", "deis2", "deis3")},
    **{name: multistep(name) for name in ("ipndm2", "ipndm3", "ipndm4")},
    "dpm2": two_calls("dpm2", midpoint),
    "heun": two_calls("heun", heun),
}
"""By their names; iPNDM of order 1 is DDIM."""
