"""Solvers that call the network twice a step: Heun's and DPM-Solver-2, and the step that they share with AMED.

From a level the way goes, by a DDIM step, to one between it and the next; there the network is asked again, and the
step from the first level is taken with what both answers say of the noise. What is past is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redif_env.diffusion.grids import Grid
from redif_env.diffusion.predictions import clean_estimate
from redif_env.diffusion.schedules import Schedule
from redif_env.diffusion.solvers import ddim_step, initial_state, predict
from redif_env.diffusion.types import State, expand
from redif_env.teachers.teacher import Teacher

HISTORY = 2
"""Predictions that a state keeps: those of the step under way, and so the last of the step before."""


@dataclass(frozen=True)
class Middle:
    """Where a step asks again, and what it does with the answer; all ``(B,)`` float64.

    ``half_logsnr`` is the level; ``share`` the second answer's part of the noise to step with; ``gain`` what that noise
    is multiplied by.
    """

    half_logsnr: Tensor
    share: Tensor
    gain: Tensor


Choice = Callable[[State, Tensor], Middle]
"""Of a state that holds the first answer, and the level ``(B,)`` where the step ends, if it was finite."""


def midpoint(state: State, end: Tensor) -> Middle:
    """DPM-Solver-2 (Lu et al. 2022a, Algorithm 1, r = 1/2): half way in ``half_logsnr``, the second answer alone."""
    one = torch.ones_like(end)
    return Middle((state.half_logsnr + end) / 2, one, one)


def heun(state: State, end: Tensor) -> Middle:
    """Heun's second order (Karras et al. 2022, Algorithm 1): at the end, the mean of both answers."""
    one = torch.ones_like(end)
    return Middle(end, one / 2, one)


def nodes(grid: Grid, schedule: Schedule, steps: int, device: torch.device) -> Tensor:
    """Levels ``(steps + 1,)`` that steps lie between, all finite: the first has signal, the last is the cleanest."""
    position = torch.arange(steps + 1, dtype=torch.float64, device=device) / steps
    return grid.half_logsnr(position, schedule).clamp(*schedule.ends(device))


def two_call_step(model: Teacher, state: State, end: Tensor, choose: Choice, clean: bool) -> State:
    """Two calls, to the level ``end`` ``(B,)``; with ``clean``, on to clean data with the noise found so."""
    schedule = model.schedule
    here = predict(model, state)
    middle = choose(here, end)
    between = predict(model, _moved(here, here.x0_history[:, 0], middle.half_logsnr, schedule))
    newer, older = between.eps_history[:, 0], here.eps_history[:, 0]
    share, gain = (expand(values, newer).to(newer.dtype) for values in (middle.share, middle.gain))
    x0 = clean_estimate(here.x, gain * torch.lerp(older, newer, share), schedule.level(here.half_logsnr))
    landing = torch.full_like(end, torch.inf) if clean else end
    landed = _moved(replace(between, x=here.x, half_logsnr=here.half_logsnr), x0, landing, schedule)
    return replace(landed, steps_left=state.steps_left - 1)


def sample_twice(
    model: Teacher, grid: Grid, noise: Tensor, nfe: int, condition: Tensor, choose: Choice
) -> tuple[Tensor, list[Tensor]]:
    """Samples ``(B, *S)`` of ``nfe`` predictions, and the mean levels where these were asked for.

    An odd number leaves one for a last DDIM step to clean data, as in Heun's method; an even one ends with two calls.
    """
    schedule, steps = model.schedule, (nfe + 1) // 2
    levels = nodes(grid, schedule, steps, noise.device)
    state = initial_state(noise, schedule, grid, steps, HISTORY, condition, model.guidance_scale or 1.0)
    state, asked = _at(state, levels[0].expand(len(noise)), schedule), []

    def noted(before: State, end: Tensor) -> Middle:
        found = choose(before, end)
        asked.append(found.half_logsnr.mean())
        return found

    for index, end in enumerate(levels[1:], start=1):
        asked.append(state.half_logsnr.mean())
        if index == steps and nfe % 2:
            here = predict(model, state)
            state = _moved(here, here.x0_history[:, 0], torch.full_like(here.half_logsnr, torch.inf), schedule)
        else:
            state = two_call_step(model, state, end.expand(len(noise)), noted, clean=index == steps)
    return state.x, asked


@dataclass(frozen=True)
class TwoCallSampler:
    """:func:`sample_twice` in batches and without gradients."""

    model: Teacher
    grid: Grid
    nfe: int
    choose: Choice

    def __call__(self, noise: Tensor, condition: Tensor) -> Tensor:
        return self.run(noise, condition)[0]

    @torch.inference_mode()
    def run(self, noise: Tensor, condition: Tensor) -> tuple[Tensor, tuple[float, ...]]:
        """Samples, and the levels of the first batch."""
        parts = zip(noise.split(self.model.run_size), condition.split(self.model.run_size), strict=True)
        found = [sample_twice(self.model, self.grid, part, self.nfe, asked, self.choose) for part, asked in parts]
        return torch.cat([samples for samples, _ in found]), tuple(torch.stack(found[0][1]).tolist())


def _moved(state: State, x0: Tensor, half_logsnr: Tensor, schedule: Schedule) -> State:
    x = ddim_step(state.x, x0, schedule.level(state.half_logsnr), schedule.level(half_logsnr))
    return _at(replace(state, x=x), half_logsnr, schedule)


def _at(state: State, half_logsnr: Tensor, schedule: Schedule) -> State:
    return replace(state, half_logsnr=half_logsnr, timestep=schedule.timestep(half_logsnr))
