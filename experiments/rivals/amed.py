"""AMED: a learned intermediate step (Zhou et al. 2024), the gradient's rival of two calls a step.

For each step a small network learns the level of the second call, between the step's ends, and a gain on its
prediction; the rest is :mod:`experiments.rivals.two_calls`. As in the paper the network sees the first call's
prediction, here as the features that our policies see. Unlike there it learns through the whole sampler, to the
endpoint, as all gradient rivals here do, not step by step.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from experiments.rivals.descent import descend, through_sampler
from experiments.rivals.rival import Clock, Fitted, Sampler, Task
from experiments.rivals.shortlist import nearest
from experiments.rivals.two_calls import Middle, TwoCallSampler, midpoint, sample_twice
from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.schedules import Schedule
from redif_env.diffusion.types import State
from redif_env.judging.baselines import SOLVER_GRIDS
from redif_env.mdp.observations import Features

RATE = 1e-2
EMA = 0.98
MAX_GAIN = 0.5
"""How far the direction's gain may be from 1."""


class Intermediate(nn.Module):
    """The level of a step's second call, and the gain of its prediction: half way and 1 before training."""

    def __init__(self, sample_shape: tuple[int, ...], steps: int, schedule: Schedule) -> None:
        super().__init__()
        self.steps, self.schedule, self.seen = steps, schedule, Features()
        size = self.seen.size(sample_shape, steps)
        self.layers = nn.Sequential(nn.Linear(size, 64), nn.Tanh(), nn.Linear(64, 2))
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, state: State, end: Tensor) -> Middle:
        seen = self.seen.observe(state, self.schedule.size(state.half_logsnr), self.steps)
        place, gain = self.layers(seen).double().unbind(dim=1)
        level = torch.lerp(state.half_logsnr, end, torch.sigmoid(place))
        return Middle(level, torch.ones_like(end), 1 + MAX_GAIN * torch.tanh(gain))


def amed(task: Task) -> Fitted:
    """On the best grid of DPM-Solver-2, which the untrained sampler is.

    Raises:
        ValueError: if the number of predictions is odd.
    """
    if task.num_steps % 2:
        raise ValueError(f"nfe={task.nfe} is no multiple of two predictions, which an AMED step makes")
    clock = Clock(task.seconds)
    untrained = {name: TwoCallSampler(task.teacher, GRIDS[name], task.num_steps, midpoint) for name in SOLVER_GRIDS}
    chosen = nearest(task, untrained, clock)
    torch.manual_seed(task.seed)
    schedule = task.teacher.schedule
    module = Intermediate(task.teacher.sample_shape, task.num_steps // 2, schedule)

    def make(noise: Tensor, condition: Tensor) -> Tensor:
        return sample_twice(task.teacher, GRIDS[chosen], noise, condition, task.num_steps, module)

    def sampler_of(averaged: nn.Module) -> Sampler:
        stored = Intermediate(task.teacher.sample_shape, task.num_steps // 2, schedule)
        stored.load_state_dict(averaged.state_dict())
        return TwoCallSampler(task.teacher, GRIDS[chosen], task.num_steps, stored)

    rest = replace(task, seconds=task.seconds - clock.spent)
    found = descend(rest, module, through_sampler(task, make, RATE, EMA), sampler_of)
    calls = clock.network_calls + found.network_calls
    return replace(found, seconds=clock.spent, network_calls=calls, described=f"amed {chosen}")
