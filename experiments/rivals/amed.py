"""AMED-Solver: a learned intermediate step (Zhou et al. 2024, Sec. 4), the gradient's rival of two calls a step.

For each step a small network learns the level of the second call, between the step's ends, and a gain on its
prediction; the rest is :mod:`experiments.rivals.two_calls`. As in the paper the network sees the first call's
prediction, here as the features that our policies see. It is trained an interval at a time (Algorithm 1): each interval
is to end at the teacher's sample there, and no gradient goes through more than one interval.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.rivals.descent import Batch, Descent, descend
from experiments.rivals.rival import BACKWARD_CALLS, Clock, Fitted, Sampler, Task
from experiments.rivals.sigma_space import pool_of
from experiments.rivals.two_calls import Middle, midpoint, two_call_sampler, two_call_states
from redif_env.diffusion.grids import GRIDS, Grid
from redif_env.diffusion.schedules import Schedule
from redif_env.diffusion.types import State
from redif_env.judging.baselines import SOLVER_GRIDS
from redif_env.judging.bases import SCREEN_SIZE
from redif_env.mdp.observations import Features

RATE = 1e-2
EMA = 0.9
MAX_GAIN = 0.1
"""How far the direction's gain may be from 1."""
TRIED = 3
"""Grids that are trained on: the best of the untrained sampler need not be the best of the trained one."""


class LearnedMiddle(nn.Module):
    """A small network that sees what our policies see; its ``numbers`` outputs are 0 before training."""

    numbers: int

    def __init__(self, sample_shape: tuple[int, ...], steps: int, schedule: Schedule) -> None:
        super().__init__()
        self.steps, self.schedule, self.seen = steps, schedule, Features()
        size = self.seen.size(sample_shape, steps)
        self.layers = nn.Sequential(nn.Linear(size, 64), nn.Tanh(), nn.Linear(64, self.numbers))
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def outputs(self, state: State) -> tuple[Tensor, ...]:
        """Each number ``(B,)`` float64."""
        seen = self.seen.observe(state, self.schedule.size(state.half_logsnr), self.steps)
        return self.layers(seen).double().unbind(dim=1)


class Intermediate(LearnedMiddle):
    """The level of a step's second call, and the gain of its prediction: half way and 1 before training."""

    numbers = 2

    def forward(self, state: State, end: Tensor) -> Middle:
        place, gain = self.outputs(state)
        level = torch.lerp(state.half_logsnr, end, torch.sigmoid(place))
        return Middle(level, torch.ones_like(end), 1 + MAX_GAIN * torch.tanh(gain))


def amed(task: Task) -> Fitted:
    """The best after training of the ``TRIED`` grids that are best before, when it is DPM-Solver-2.

    Raises:
        ValueError: if the number of predictions is odd.
    """
    check_even(task)
    return best_of_grids(task, "amed", partial(two_call_sampler, choose=midpoint), fit)


def check_even(task: Task) -> None:
    """Refuse an odd number of predictions."""
    if task.num_steps % 2:
        raise ValueError(f"nfe={task.nfe} is no multiple of two predictions, which an AMED step makes")


def best_of_grids(
    task: Task, name: str, untrained: Callable[[object, Grid, int], Sampler], fit: Callable[[Task, Grid], Fitted]
) -> Fitted:
    """``fit`` on the grids where the untrained sampler is best, with equal shares of the budget; the best of all."""
    clock = Clock(task.seconds, task.calls)
    size = min(SCREEN_SIZE, len(task.chooser.noise))
    samplers = {grid: untrained(task.teacher, GRIDS[grid], task.num_steps) for grid in SOLVER_GRIDS}
    distances = {grid: task.chooser.distance(sampler, size) for grid, sampler in samplers.items()}
    clock.network_calls += len(samplers) * size * task.nfe
    found = {}
    for left, grid in enumerate(sorted(distances, key=distances.__getitem__)[:TRIED]):
        shares = TRIED - left
        calls = None if task.calls is None else max(1, (task.calls - clock.network_calls) // shares)
        part = replace(task, seconds=max(0.01, task.seconds - clock.spent) / shares, calls=calls)
        found[grid] = fit(part, GRIDS[grid])
        clock.network_calls += found[grid].network_calls
    best = min(found, key=lambda grid: task.chooser.distance(found[grid].sampler))
    return Fitted(found[best].sampler, clock.spent, clock.network_calls, f"{name} {best}")


def fit(task: Task, grid: Grid) -> Fitted:
    """AMED's network on one grid."""
    torch.manual_seed(task.seed)
    teacher, nfe = task.teacher, task.num_steps
    module = Intermediate(teacher.sample_shape, nfe // 2, teacher.schedule)

    def states(batch: Batch) -> Iterator[State]:
        return two_call_states(teacher, grid, batch.noise, batch.condition, nfe, module, cut=True)

    return descend_by_intervals(task, module, states, lambda found: two_call_sampler(teacher, grid, nfe, found))


def descend_by_intervals(
    task: Task,
    module: LearnedMiddle,
    states: Callable[[Batch], Iterator[State]],
    sampler_of: Callable[[Any], Sampler],
) -> Fitted:
    """Descend on the squared errors of the ends of all intervals, each in units of itself: early ones are larger.

    ``states`` gives the states at the end of each interval.
    """
    teacher, pool = task.teacher, pool_of(task.teacher, task.reference, task.trajectories)

    def loss(batch: Batch) -> Tensor:
        total = torch.zeros((), device=teacher.device)
        for state in states(batch):
            target, half_logsnr = batch.endpoints, state.half_logsnr.detach()
            if not half_logsnr.isinf().all():
                target = teacher.schedule.scaled(pool.paths.at(batch.rows, half_logsnr).to(state.x), half_logsnr)
            error = (state.x - target).square().mean()
            total = total + error / error.detach().clamp(min=1e-12)
        return total

    def stored(averaged: nn.Module) -> Sampler:
        return sampler_of(copy.deepcopy(averaged))

    # The first call of an interval needs no gradient.
    calls = task.nfe + task.num_steps // 2 * BACKWARD_CALLS * teacher.calls
    part = replace(task.reference, noise=pool.noise, condition=pool.condition, endpoints=pool.endpoints)
    return descend(replace(task, reference=part), module, Descent(loss, calls, RATE, EMA), stored, untrained=True)
