"""Convolution steps: a multistep solver whose weights are kernels, fitted by least squares to teacher trajectories.

In the spirit of DPM-Solver-v3 (Zheng et al. 2023), whose coefficients are fitted per pixel, and of the linear steps of
:mod:`redif_env.fitted.linear_solver`, whose matrices do not fit large samples: each step has one kernel over the sample
and all predictions so far, which is the same at all places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.rivals.rival import BATCH, Clock, Fitted, Sampler, Task, nearest, solver_sampler
from experiments.rivals.sigma_space import Pool, pool_of
from experiments.rivals.two_calls import moved
from redif_env.diffusion.grids import GRIDS, Grid
from redif_env.diffusion.placement import place
from redif_env.diffusion.solvers import Estimate, Solver, clean_target, initial_state, predict
from redif_env.diffusion.types import Level, State
from redif_env.teachers.teacher import Teacher

KERNEL = 9
"""Places a side of the kernels, at most as many as a sample has."""
RIDGE = 1e-5
"""Penalty on the distance from the DDIM step, in units of the inputs' mean square."""
TRIED_GRIDS = ("time@20", "time@8", "time^1.5@20", "time^1.5@8")


@dataclass(frozen=True, eq=False)
class ConvolutionSolver(Solver):
    """Kernels ``(C, C * (k + 2), K, K)`` and offsets ``(C,)`` of steps k; vectors are channels of one place."""

    kernels: tuple[Tensor, ...]
    offsets: tuple[Tensor, ...]
    clipped: bool

    @property
    def order(self) -> int:  # type: ignore[override]
        """Number of predictions used: all."""
        return len(self.kernels)

    def estimate(self, state: State, next_half_logsnr: Tensor, level: Level) -> Estimate:
        index = int(state.predictions[0]) - 1
        seen = inputs(state, level, index + 1, self.clipped)
        kernel, offset = (part[index].to(seen) for part in (self.kernels, self.offsets))
        x0 = F.conv2d(seen, kernel, offset, padding=kernel.shape[-1] // 2)
        weights = level.alpha.new_zeros(len(seen), 1 + state.history.shape[1])
        return Estimate(weights, x0.reshape(state.x.shape))


def convolution_steps(task: Task) -> Fitted:
    """On the grid that the chooser's noises prefer."""
    clock, pool = Clock(task.seconds, task.calls), pool_of(task.teacher, task.reference, task.trajectories)
    found: dict[str, Sampler] = {}
    for name in TRIED_GRIDS:
        solver = fit(task.teacher, GRIDS[name], task.num_steps, pool)
        found[f"convolution {name}"] = solver_sampler(task, solver, GRIDS[name])
        clock.network_calls += len(pool.noise) * task.nfe
    best = nearest(task, found, clock)
    return Fitted(found[best], clock.spent, clock.network_calls, best)


@torch.inference_mode()
def fit(teacher: Teacher, grid: Grid, num_steps: int, pool: Pool) -> ConvolutionSolver:
    """The kernels, one step after another: each step starts where the fitted steps before it end."""
    schedule, clipped = teacher.schedule, teacher.decoder is None
    noise = pool.noise.to(teacher.device)
    state = initial_state(noise, schedule, grid, num_steps, num_steps, pool.condition, teacher.guidance_scale or 1.0)
    kernels, offsets = [], []
    for index in range(num_steps):
        state = predict(teacher, state)
        position = torch.full_like(state.position, (index + 1) / num_steps)
        there = grid.half_logsnr(position, schedule)
        level, next_level = schedule.level(state.half_logsnr), schedule.level(there)
        passed = schedule.scaled(pool.at(there[0]).to(state.x), there) if index < num_steps - 1 else pool.endpoints
        target = clean_target(state.x, passed.to(state.x), level, next_level)
        seen = inputs(state, level, index + 1, clipped)
        kernel, offset = fitted_kernel(seen, target.reshape(len(seen), -1, *seen.shape[2:]))
        kernels.append(kernel)
        offsets.append(offset)
        x0 = F.conv2d(seen, kernel.to(seen), offset.to(seen), padding=kernel.shape[-1] // 2)
        state = moved(state, x0.reshape(state.x.shape), there, schedule)
    return ConvolutionSolver(tuple(kernels), tuple(offsets), clipped)


def fitted_kernel(seen: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Kernel ``(C, I, K, K)`` and offset ``(C,)`` float64 that bring ``seen`` ``(N, I, H, W)`` nearest to ``target``.

    The newest prediction is the second C channels of ``seen``; a ridge penalty pulls towards taking it as it is.
    """
    channels, side = target.shape[1], min(KERNEL, min(seen.shape[2:]) // 2 * 2 + 1)
    prior = torch.zeros(channels, seen.shape[1], side, side, dtype=torch.float64)
    for channel in range(channels):
        prior[channel, channels + channel, side // 2, side // 2] = 1
    flat = prior.flatten(1)
    gram = torch.zeros(flat.shape[1] + 1, flat.shape[1] + 1, dtype=torch.float64)
    moments = torch.zeros(flat.shape[1] + 1, channels, dtype=torch.float64)
    for part, ends in zip(seen.split(BATCH), target.split(BATCH), strict=True):
        patches = F.unfold(part, side, padding=side // 2).transpose(1, 2).flatten(0, 1).cpu().double()
        rows = torch.cat([patches, torch.ones_like(patches[:, :1])], dim=1)
        gram += rows.T @ rows
        moments += rows.T @ (ends.flatten(2).transpose(1, 2).flatten(0, 1).cpu().double() - patches @ flat.T)
    penalty = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    penalty[-1, -1] = 0
    found = torch.linalg.solve(gram + penalty, moments)
    return (found[:-1].T + flat).reshape(prior.shape), found[-1]


def inputs(state: State, level: Level, predictions: int, clipped: bool) -> Tensor:
    """The normalised sample and the clean estimates, newest first: ``(B, C * (1 + predictions), H, W)``."""
    predicted = state.x0_history[:, :predictions]
    if clipped:
        predicted = predicted.clamp(-1, 1)
    x = state.x / place((level.alpha**2 + level.sigma**2).sqrt(), state.x)
    stacked = torch.cat([x[:, None], predicted], dim=1)
    if stacked.ndim != 5:
        stacked = stacked.flatten(2)[..., None, None]
    return stacked.flatten(1, 2)
