"""Solvers that call the network twice a step: Heun's and DPM-Solver-2, and the step that they share with AMED.

A DDIM step leads to a level between this one and the next; there the network is called again, and the step from the
first level is taken with the noise predictions of both calls. Steps share no history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.rivals.rival import Sampler, in_batches
from redif_env.diffusion.grids import Grid
from redif_env.diffusion.placement import place
from redif_env.diffusion.predictions import clean_estimate
from redif_env.diffusion.schedules import Schedule
from redif_env.diffusion.solvers import ddim_step, initial_state, predict
from redif_env.diffusion.types import State
from redif_env.teachers.teacher import Teacher

HISTORY = 2
"""Predictions stored in a state: those of the step under way."""


@dataclass(frozen=True)
class Middle:
    """The second call of a step; all ``(B,)`` float64.

    Args:
        half_logsnr: its level.
        share: weight of its noise prediction; the first call's has the rest.
        gain: factor of the noise that they make together.
    """

    half_logsnr: Tensor
    share: Tensor
    gain: Tensor


Choice = Callable[[State, Tensor], Middle]
"""From a state with the first prediction, and the finite level ``(B,)`` where the step ends, to the second call."""


def midpoint(state: State, end: Tensor) -> Middle:
    """DPM-Solver-2 (Lu et al. 2022a, Algorithm 1, r = 1/2): half way in ``half_logsnr``, the second call alone."""
    one = torch.ones_like(end)
    return Middle((state.half_logsnr + end) / 2, one, one)


def heun(state: State, end: Tensor) -> Middle:
    """Heun's second order (Karras et al. 2022, Algorithm 1): at the end, the mean of both predictions."""
    one = torch.ones_like(end)
    return Middle(end, one / 2, one)


def nodes(grid: Grid, schedule: Schedule, steps: int) -> Tensor:
    """Levels ``(steps + 1,)`` that steps lie between, all finite: the first has signal, the last is the cleanest."""
    position = torch.arange(steps + 1, dtype=torch.float64) / steps
    return grid.half_logsnr(position, schedule).clamp(*schedule.ends)


def two_call_step(model: Teacher, state: State, end: Tensor, choose: Choice, clean: bool) -> State:
    """Two calls, to the level ``end`` ``(B,)``; with ``clean``, on to clean data with the noise found so."""
    schedule = model.schedule
    here = predict(model, state)
    middle = choose(here, end)
    between = predict(model, moved(here, here.x0_history[:, 0], middle.half_logsnr, schedule))
    newer, older = between.eps_history[:, 0], here.eps_history[:, 0]
    share, gain = (place(values, newer) for values in (middle.share, middle.gain))
    x0 = clean_estimate(here.x, gain * torch.lerp(older, newer, share), schedule.level(here.half_logsnr))
    target = torch.full_like(end, torch.inf) if clean else end
    there = moved(replace(between, x=here.x, half_logsnr=here.half_logsnr), x0, target, schedule)
    return replace(there, steps_left=state.steps_left - 1)


def two_call_states(
    model: Teacher, grid: Grid, noise: Tensor, condition: Tensor, nfe: int, choose: Choice, cut: bool = False
) -> Iterator[State]:
    """The states at the ends of the steps of ``nfe`` predictions; no gradient goes through a state if ``cut``.

    An odd number leaves one for a last DDIM step to clean data, as in Heun's method; an even one ends with two calls.
    """
    schedule, steps = model.schedule, (nfe + 1) // 2
    levels = nodes(grid, schedule, steps)
    state = initial_state(noise, schedule, grid, steps, HISTORY, condition, model.guidance_scale or 1.0)
    state = at_level(state, levels[0].expand(len(noise)), schedule)
    for index, end in enumerate(levels[1:], start=1):
        if index == steps and nfe % 2:
            here = predict(model, state)
            state = moved(here, here.x0_history[:, 0], torch.full_like(here.half_logsnr, torch.inf), schedule)
        else:
            state = two_call_step(model, state, end.expand(len(noise)), choose, clean=index == steps)
        yield state
        if cut:
            state = replace(state, x=state.x.detach(), history=state.history.detach())


def two_call_sampler(model: Teacher, grid: Grid, nfe: int, choose: Choice) -> Sampler:
    """The end of :func:`two_call_states`, in batches and without gradients."""

    def made(noise: Tensor, condition: Tensor) -> Tensor:
        *_, last = two_call_states(model, grid, noise, condition, nfe, choose)
        return last.x

    return in_batches(made)


def moved(state: State, x0: Tensor, half_logsnr: Tensor, schedule: Schedule) -> State:
    """Where a DDIM step with the clean estimate ``x0`` leads, at the level ``half_logsnr`` ``(B,)``."""
    x = ddim_step(state.x, x0, schedule.level(state.half_logsnr), schedule.level(half_logsnr))
    return at_level(replace(state, x=x), half_logsnr, schedule)


def at_level(state: State, half_logsnr: Tensor, schedule: Schedule) -> State:
    """The state as one of the level ``half_logsnr`` ``(B,)``."""
    return replace(state, half_logsnr=half_logsnr, timestep=schedule.timestep(half_logsnr))
