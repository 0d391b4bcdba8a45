"""Training-free rivals: every few-step solver on every grid, our own and diffusers'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DEISMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler
from torch import Tensor

from redif_env.grids import GRIDS, Grid
from redif_env.pipelines import scheduler_settings
from redif_env.solvers import SOLVERS, sample
from redif_env.teachers import ENDPOINT_BATCH, Teacher

DIFFUSERS_SOLVERS: dict[str, Callable[[list[float]], SchedulerMixin]] = {
    "unipc2": lambda betas: UniPCMultistepScheduler(trained_betas=betas, solver_order=2),
    "unipc3": lambda betas: UniPCMultistepScheduler(trained_betas=betas, solver_order=3),
    "deis2": lambda betas: DEISMultistepScheduler(trained_betas=betas, solver_order=2),
    "deis3": lambda betas: DEISMultistepScheduler(trained_betas=betas, solver_order=3),
}


@dataclass(frozen=True)
class Baseline:
    """A solver on a grid, by their names."""

    method: str
    grid: str

    @torch.inference_mode()
    def __call__(self, teacher: Teacher, noise: Tensor, num_steps: int) -> Tensor:
        """Samples ``(B, *S)`` from ``noise``, with ``num_steps`` network calls each."""
        return torch.cat([self._run(teacher, part, num_steps) for part in noise.split(ENDPOINT_BATCH)])

    def _run(self, teacher: Teacher, noise: Tensor, num_steps: int) -> Tensor:
        grid = GRIDS[self.grid]
        if self.method in SOLVERS:
            return sample(teacher, SOLVERS[self.method], grid, noise, num_steps)
        scheduler = DIFFUSERS_SOLVERS[self.method](
            scheduler_settings(teacher.schedule, teacher.prediction_type)["trained_betas"]
        )
        return diffusers_sample(scheduler, teacher, grid, noise, num_steps)


def all_baselines() -> list[Baseline]:
    """Every solver on every grid; iPNDM of order 1 is DDIM and stands once."""
    methods = [name for name in SOLVERS if name != "ipndm1"] + list(DIFFUSERS_SOLVERS)
    return [Baseline(method, grid) for method in methods for grid in GRIDS]


def diffusers_sample(scheduler: SchedulerMixin, teacher: Teacher, grid: Grid, noise: Tensor, num_steps: int) -> Tensor:
    """Run a diffusers multistep scheduler on one of our grids; its own last sigma is kept.

    Its public arguments round timesteps to integers and know few grids, so the two tables that it steps through are
    set directly.
    """
    schedule = teacher.schedule
    scheduler.set_timesteps(num_steps)
    position = torch.arange(num_steps, dtype=torch.float64, device=noise.device) / num_steps
    half_logsnr = grid.half_logsnr(position, schedule)
    scheduler.timesteps = schedule.timestep(half_logsnr)
    scheduler.sigmas = torch.cat([torch.exp(-half_logsnr).float().cpu(), scheduler.sigmas[-1:].cpu()])
    x = noise * schedule.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        rows = torch.ones(len(x), dtype=torch.float64, device=x.device)
        eps = teacher.predict(x, half_logsnr[index] * rows, timestep * rows).eps
        x = scheduler.step(eps, timestep, x).prev_sample
    return x
