"""What each form of a student loses: pipeline, scheduler, plain numbers, a stock scheduler's arguments.

    python -m experiments.export_forms --nfe 4 6 8 --seeds 3 --out runs/nfe-curve

Students are those of ``experiments.nfe_curve`` (trained if they are not there); students of the step size alone, whose
steps are all that a stock scheduler needs, are trained besides, at ``--step-nfe`` calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from diffusers import DPMSolverMultistepScheduler, ModelMixin, SchedulerMixin
from diffusers.utils import logging
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.nfe_curve import ppo_settings, run_of, solvers_at
from experiments.tasks import Task, finish_all
from redif_env.diffusion.noise_schedulers import scheduler_config
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.settings import DEFAULT_GRID, DEFAULT_SOLVER, shared_teacher
from redif_env.students.export import ReDiFPipeline
from redif_env.students.export.steps import run_steps
from redif_env.students.student import Student
from redif_env.teachers.references import ENDPOINT_BATCH
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder


@dataclass(frozen=True)
class Args:
    teacher: str = "digits"
    solver: str = DEFAULT_SOLVER
    grid: str = DEFAULT_GRID
    initial_map: str | None = None
    """Of the base solver that students begin from."""
    network_calls: int | None = None
    """Training budget of each run but those of steps alone; this and the next are by default those of agents.ppo."""
    learning_rate: float | None = None
    nfe: tuple[int, ...] = (4, 6, 8)
    step_nfe: tuple[int, ...] = (4,)
    """Step counts at which a student of the step size alone is trained too."""
    step_calls: int = 200_000
    seeds: int = 3
    out: Path = Path("runs/nfe-curve")
    jobs: int = 2


Form = Callable[[Student, Tensor], Tensor]


def by_pipeline(student: Student, noise: Tensor) -> Tensor:
    pipeline: ReDiFPipeline = student.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(latents=noise, output_type="latent").images


def by_scheduler(student: Student, noise: Tensor) -> Tensor:
    """diffusers' own loop, as in ``DDPMPipeline``, with the learned scheduler in it."""
    pipeline = student.pipeline()
    pipeline.scheduler.set_timesteps(student.num_steps)
    return _loop(pipeline.unet, pipeline.scheduler, noise)


def by_numbers(student: Student, noise: Tensor) -> Tensor:
    return run_steps(student.steps(), student.network, noise)


def by_weights(student: Student, noise: Tensor) -> Tensor:
    """The numbers without the band gains: multistep weights alone."""
    return run_steps(student.steps(), student.network, noise, bands=False)


def by_stock_scheduler(student: Student, noise: Tensor) -> Tensor:
    """diffusers' DPM-Solver++(3M), the base solver, told the learned timesteps, which it takes as whole numbers."""
    teacher = student.mdp.teacher
    settings = scheduler_config(teacher.parameterization)
    del settings["_class_name"]
    scheduler = DPMSolverMultistepScheduler(**settings, solver_order=3)
    scheduler.set_timesteps(timesteps=[round(step.level_timestep) for step in student.steps()])
    return _loop(student.pipeline().unet, scheduler, noise)


FORMS: dict[str, Form] = {
    "ReDiFPipeline, Student": by_pipeline,
    "ReDiFScheduler in DDPMPipeline": by_scheduler,
    "steps.json, all numbers": by_numbers,
    "steps.json, multistep weights alone": by_weights,
    "stock DPM++ 3M, timesteps=": by_stock_scheduler,
}


@torch.inference_mode()
def judged(form: Form, student: Student, evaluator: Evaluator) -> float:
    """Frechet distance to the teacher of what a form makes of the held-out noises."""
    samples = torch.cat([form(student, part) for part in evaluator.noise.split(ENDPOINT_BATCH)])
    return evaluator.row("", "", student.num_steps, samples).fd_teacher


def tasks_of(args: Args) -> dict[str, list[Task]]:
    """The training runs of each row of the table, by name."""
    seeds = range(args.seeds)
    found = {
        f"{nfe} NFE": [Task("redif-ppo", ppo_settings(run_of(args, nfe, seed), args.out)) for seed in seeds]
        for nfe in args.nfe
    }
    for nfe in args.step_nfe:
        runs = [
            replace(
                run_of(args, nfe, seed),
                action="step",
                network_calls=args.step_calls,
                out=args.out / f"step-{nfe}-{seed}",
            )
            for seed in seeds
        ]
        found[f"{nfe} NFE, steps alone"] = [Task("redif-ppo", settings) for settings in runs]
    return found


def main(args: Args) -> None:
    prepare_folder(args.out)
    logging.disable_progress_bar()
    tasks = tasks_of(args)
    finish_all([task for group in tasks.values() for task in group], args.teacher, args.jobs)
    evaluator = Evaluator(shared_teacher(args.teacher, torch.device("cpu"), torch.float32))
    table = Table("form", title=f"fd_teacher, median of {args.seeds} seeds, {evaluator.described}")
    for name in tasks:
        table.add_column(name, justify="right")
    students = {
        name: [Student.from_pretrained(task.settings.out / "student") for task in group]
        for name, group in tasks.items()
    }
    for form_name, form in FORMS.items():
        cells = []
        for group in students.values():
            distances = [judged(form, student, evaluator) for student in group]
            cells.append(f"{median(distances):.3f} ({min(distances):.3f} to {max(distances):.3f})")
        table.add_row(form_name, *cells)
    best = [solvers_at(args.out, args.teacher, group[0].num_steps)[0] for group in students.values()]
    table.add_row("best stock solver and grid", *(f"{row.fd_teacher:.3f}, {row.method} {row.grid}" for row in best))
    Console(width=150).print(table)


def _loop(network: ModelMixin, scheduler: SchedulerMixin, noise: Tensor) -> Tensor:
    """``DDPMPipeline``'s loop from given noise, since it draws its own; the scheduler's timesteps are set."""
    x = noise
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, timestep).sample, timestep, x).prev_sample
    return x


if __name__ == "__main__":
    run(main, Args)
