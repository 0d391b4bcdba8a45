"""The best training-free solver: every solver on every grid, chosen on validation noise."""

from __future__ import annotations

from experiments.rivals.rival import Clock, Fitted, Sampler, Task, distance
from redif_env.baselines import Baseline, all_baselines


def solver(task: Task) -> Fitted:
    """The solver and grid whose samples are nearest the teacher's on the chooser's noises."""
    clock = Clock(task.seconds)
    tried = {}
    for baseline in all_baselines():
        clock.network_calls += len(task.chooser.noise) * task.nfe
        tried[baseline] = distance(task.chooser, _bound(baseline, task))
    best = min(tried, key=lambda baseline: tried[baseline])
    return Fitted(_bound(best, task), clock.spent, clock.network_calls, f"{best.method} {best.grid}")


def ddim(task: Task) -> Fitted:
    """DDIM on uniform time: where comparisons usually begin."""
    return Fitted(_bound(Baseline("ddim", "time"), task), 0.0, 0, "ddim time")


def _bound(baseline: Baseline, task: Task) -> Sampler:
    return lambda noise, condition: baseline(task.teacher, noise, task.num_steps, condition)
