"""Training-free baselines: the solvers of this library and of diffusers on every grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DEISMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler
from torch import Tensor

from redif_env.diffusion.grids import GRIDS, Grid
from redif_env.diffusion.placement import HOST
from redif_env.diffusion.schedules import VariancePreservingSchedule
from redif_env.diffusion.solvers import SOLVERS, sample
from redif_env.judging.stock import StockBaseline, stock_baselines
from redif_env.teachers.teacher import PipelineTeacher, Teacher

DIFFUSERS_SOLVERS: dict[str, Callable[[list[float] | None], SchedulerMixin]] = {
    "unipc2": lambda betas: UniPCMultistepScheduler(trained_betas=betas, solver_order=2),
    "unipc3": lambda betas: UniPCMultistepScheduler(trained_betas=betas, solver_order=3),
    "deis2": lambda betas: DEISMultistepScheduler(trained_betas=betas, solver_order=2),
    "deis3": lambda betas: DEISMultistepScheduler(trained_betas=betas, solver_order=3),
}

SOLVER_GRIDS = tuple(name for name in GRIDS if name not in ("time@4", "time^1.25@2.5", "time^1.5@4"))
"""Grids of the baselines. The grids left out are meant for linear initial maps; without one, solvers on them are worse
than on the others at every NFE (``experiments.compare``)."""


@dataclass(frozen=True)
class Baseline:
    """A solver on a grid, both by name."""

    method: str
    grid: str

    def predictions(self, num_steps: int) -> int:
        """Those of ``num_steps`` that it makes: all."""
        return num_steps

    @torch.inference_mode()
    def __call__(self, teacher: Teacher, noise: Tensor, num_steps: int, condition: Tensor | None = None) -> Tensor:
        """Samples ``(B, *S)`` from ``noise``, with ``num_steps`` predictions each.

        ``condition`` ``(B,)`` holds indices into the teacher's conditions and defaults to the first.
        """
        rows = torch.zeros(len(noise), dtype=torch.int64, device=HOST) if condition is None else condition
        parts = zip(noise.split(teacher.run_size), rows.split(teacher.run_size), strict=True)
        return torch.cat([self._run(teacher, x, num_steps, index) for x, index in parts])

    def _run(self, teacher: Teacher, noise: Tensor, num_steps: int, condition: Tensor) -> Tensor:
        grid = GRIDS[self.grid]
        if self.method in SOLVERS:
            return sample(teacher, SOLVERS[self.method], grid, noise, num_steps, condition)
        schedule = teacher.schedule
        betas = schedule.betas.tolist() if isinstance(schedule, VariancePreservingSchedule) else None
        return diffusers_sample(DIFFUSERS_SOLVERS[self.method](betas), teacher, grid, noise, num_steps, condition)


AnyBaseline = Baseline | StockBaseline

# The best pair of each table at 4, 6 and 8 calls, and close second ones: digits, mnist (docs/results-full.md), and a
# class-conditional CIFAR-10 teacher (unipc2 time@8 at 4 calls, ipndm4 time@60 at 8).
QUICK = tuple(
    Baseline(method, grid)
    for method, grid in (
        ("ipndm3", "time@20"),  # digits, 4
        ("ipndm2", "time@8"),
        ("unipc2", "time^1.5@8"),
        ("unipc3", "time^1.5@60"),  # digits, 6
        ("unipc2", "time^1.5@20"),
        ("unipc2", "time^1.5@60"),  # digits, 8
        ("dpm++3m", "time^1.5@60"),
        ("unipc3", "time@20"),  # mnist, 4
        ("unipc3", "time@60"),  # mnist, 6
        ("unipc2", "time@60"),  # mnist, 8
        ("unipc2", "time@8"),  # CIFAR-10, 4
        ("ipndm4", "time@60"),  # CIFAR-10, 8
    )
)
"""The pairs that are best at such call counts."""

Which = Literal["none", "quick", "all"]
"""How many solvers a student is compared with."""


def baselines_of(which: Which, teacher: Teacher | None = None) -> list[AnyBaseline]:
    """No solver, the few that are best at such call counts, or every pair of a solver and a grid.

    Of a pipeline that is driven: none, its stock schedulers, or those and the few. Where it takes none, the few.
    """
    if isinstance(teacher, PipelineTeacher) and which != "none":
        stock: list[AnyBaseline] = [*stock_baselines(teacher)]
        return [*stock, *QUICK] if which == "all" else stock or [*QUICK]
    solvers: dict[Which, list[AnyBaseline]] = {"none": [], "quick": [*QUICK], "all": [*all_baselines()]}
    return solvers[which]


def all_baselines() -> list[Baseline]:
    """All solvers on all grids. Left out are ``ipndm1``, which is DDIM, and ``ipndm``, which has order 2 or 3."""
    methods = [name for name in SOLVERS if name not in ("ipndm1", "ipndm")] + list(DIFFUSERS_SOLVERS)
    return [Baseline(method, grid) for method in methods for grid in SOLVER_GRIDS]


def diffusers_sample(
    scheduler: SchedulerMixin,
    teacher: Teacher,
    grid: Grid,
    noise: Tensor,
    num_steps: int,
    condition: Tensor | None = None,
) -> Tensor:
    """Sample with a variance-preserving multistep scheduler of diffusers on any grid, from ``noise`` ``(B, *S)``.

    The scheduler's ``timesteps`` and ``sigmas`` are set directly, because its arguments support few grids and integer
    timesteps only; its last sigma is unchanged. Samples of other schedules are rescaled to variance-preserving scale
    (``Schedule.normalised``), which is exact because the solvers are linear.
    """
    schedule = teacher.schedule
    scheduler.set_timesteps(num_steps)
    position = torch.arange(num_steps, dtype=torch.float64, device=HOST) / num_steps
    # A level without signal cannot be stepped from; diffusers clamps it too.
    half_logsnr = grid.half_logsnr(position, schedule).clamp(min=schedule.ends[0])
    scheduler.timesteps = schedule.timestep(half_logsnr)
    scheduler.sigmas = torch.cat([torch.exp(-half_logsnr).float(), scheduler.sigmas[-1:].cpu()])
    rows = torch.ones(len(noise), dtype=torch.float64, device=HOST)
    x = noise
    for index, timestep in enumerate(scheduler.timesteps):
        level = half_logsnr[index] * rows
        size = schedule.normalised(torch.ones_like(x), level)
        eps = teacher.predict(x / size, level, timestep * rows, condition).eps
        x = scheduler.step(eps, timestep, x).prev_sample
    return x
