"""AMED-Plugin: learned middle levels, gains and conditioning times on a multistep solver (Zhou et al. 2024, Sec. 4.3).

Each interval is two steps of iPNDM, to a learned level and on to the interval's end. The second prediction is
conditioned on its own time times a learned scale, and its direction is multiplied by a learned gain. Training is that
of :mod:`experiments.rivals.amed`, an interval at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from experiments.rivals.amed import LearnedMiddle, best_of_grids, check_even, descend_by_intervals
from experiments.rivals.descent import Batch
from experiments.rivals.rival import Fitted, Sampler, Task, in_batches
from experiments.rivals.two_calls import at_level, moved, nodes
from redif_env.diffusion.grids import Grid
from redif_env.diffusion.placement import combine, place
from redif_env.diffusion.predictions import clean_estimate
from redif_env.diffusion.schedules import Schedule
from redif_env.diffusion.solvers import IPNDM, initial_state, predict
from redif_env.diffusion.types import State
from redif_env.teachers.teacher import Teacher

BASE = IPNDM(3)
MAX_GAIN, MAX_SCALE = 0.1, 0.2
"""How far the gain and the scale of time may be from 1; the authors' are 0.01 and 0.2."""


class Plugin(LearnedMiddle):
    """Of each interval: the middle level, the gain, the scale of time; half way, 1 and 1 before training."""

    numbers = 3

    def forward(self, state: State, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        share, gain, scale = self.outputs(state)
        level = torch.lerp(state.half_logsnr, end, torch.sigmoid(share))
        return level, 1 + MAX_GAIN * torch.tanh(gain), 1 + MAX_SCALE * torch.tanh(scale)


def amed_plugin(task: Task) -> Fitted:
    """On iPNDM of order 3, as the authors'; grids as for AMED-Solver.

    Raises:
        ValueError: if the number of predictions is odd.
    """
    check_even(task)

    def untrained(teacher: Teacher, grid: Grid, nfe: int) -> Sampler:
        return plugin_sampler(teacher, grid, nfe // 2, Plugin(teacher.sample_shape, nfe // 2, teacher.schedule))

    return best_of_grids(task, "amed-plugin", untrained, fit)


def fit(task: Task, grid: Grid) -> Fitted:
    """The plugin's network on one grid."""
    torch.manual_seed(task.seed)
    teacher, steps = task.teacher, task.num_steps // 2
    module = Plugin(teacher.sample_shape, steps, teacher.schedule)

    def states(batch: Batch) -> Iterator[State]:
        return plugin_states(teacher, grid, batch.noise, batch.condition, steps, module, cut=True)

    return descend_by_intervals(task, module, states, lambda found: plugin_sampler(teacher, grid, steps, found))


def plugin_sampler(model: Teacher, grid: Grid, steps: int, module: Plugin) -> Sampler:
    """The plugin as a sampler of ``2 * steps`` predictions, in batches and without gradients."""

    def made(noise: Tensor, condition: Tensor) -> Tensor:
        *_, last = plugin_states(model, grid, noise, condition, steps, module)
        return last.x

    return in_batches(made)


def plugin_states(
    model: Teacher, grid: Grid, noise: Tensor, condition: Tensor, steps: int, module: Plugin, cut: bool = False
) -> Iterator[State]:
    """The states at the ends of the intervals; no gradient goes through a state if ``cut``."""
    schedule = model.schedule
    levels = nodes(grid, schedule, steps)
    state = initial_state(noise, schedule, grid, steps, BASE.order, condition, model.guidance_scale or 1.0)
    state = at_level(state, levels[0].expand(len(noise)), schedule)
    for index, level in enumerate(levels[1:], start=1):
        end = level.expand(len(noise))
        here = predict(model, state)
        middle, gain, scale = module(here, end)
        state = adams_step(here, middle, torch.ones_like(gain), schedule)
        # The time of the level whose sigma is ``scale`` times as large.
        state = replace(state, timestep=schedule.timestep((middle - scale.log()).clamp(*schedule.ends)))
        target = torch.full_like(end, torch.inf) if index == steps else end
        state = adams_step(predict(model, state), target, gain, schedule)
        state = replace(state, steps_left=state.steps_left - 1)
        yield state
        if cut:
            levels_seen = state.half_logsnr_history.detach()
            state = replace(state, x=state.x.detach(), history=state.history.detach(), half_logsnr_history=levels_seen)


def adams_step(state: State, half_logsnr: Tensor, gain: Tensor, schedule: Schedule) -> State:
    """A step of iPNDM from a state with its prediction, whose direction is multiplied by ``gain`` ``(B,)``."""
    weights = BASE.weights(state, half_logsnr)
    eps = combine(weights[:, None], state.eps_history[:, : BASE.order])[:, 0]
    x0 = clean_estimate(state.x, place(gain, eps) * eps, schedule.level(state.half_logsnr))
    return moved(state, x0, half_logsnr, schedule)
