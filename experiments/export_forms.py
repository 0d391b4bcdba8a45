"""What each form of a student loses: pipeline, scheduler, plain numbers, a stock scheduler's arguments.

    python -m experiments.export_forms --nfe 4 6 8 --seeds 3 --out runs/nfe-curve

The students are those of ``experiments.nfe_curve``; they are trained if they are not in ``--out``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from diffusers import DPMSolverMultistepScheduler, ModelMixin, SchedulerMixin
from diffusers.utils import logging
from torch import Tensor

from experiments.nfe_curve import Args, solvers_at, task_of
from experiments.tables import print_table, spread
from experiments.tasks import finish_all
from redif_env.diffusion.noise_schedulers import scheduler_config
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.settings import TeacherSettings, shared_teacher
from redif_env.students.export import ReDiFPipeline
from redif_env.students.export.steps import run_steps
from redif_env.students.student import Student
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder

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
    """diffusers' DPM-Solver++(3M) at the learned timesteps, which it takes as whole numbers."""
    settings = scheduler_config(student.mdp.teacher.parameterization)
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
def distance(form: Form, student: Student, evaluator: Evaluator) -> float:
    """Frechet distance to the teacher of what a form makes of the held-out noises."""
    samples = torch.cat([form(student, part) for part in evaluator.noise.split(evaluator.teacher.run_size)])
    return evaluator.row("", "", student.num_steps, samples).fd_teacher


def main(args: Args) -> None:
    prepare_folder(args.out)
    logging.disable_progress_bar()
    tasks = [task_of(args, *key) for key in product(args.nfe, range(args.seeds))]
    finish_all(tasks, args.teacher, args.jobs)
    evaluator = Evaluator(shared_teacher(TeacherSettings(teacher=args.teacher)))
    students = [Student.from_pretrained(task.settings.out / "student") for task in tasks]
    groups = [[student for student in students if student.num_steps == nfe] for nfe in args.nfe]
    lines = [
        [name, *(spread([distance(form, student, evaluator) for student in group]) for group in groups)]
        for name, form in FORMS.items()
    ]
    best = [solvers_at(args.out, args.teacher, nfe)[0] for nfe in args.nfe]
    lines.append(["best solver and grid", *(f"{row.fd_teacher:.3f}, {row.method} {row.grid}" for row in best)])
    title = f"fd_teacher, median of {args.seeds} seeds (min to max), {evaluator.description}"
    print_table(title, ("form", *(f"{nfe} NFE" for nfe in args.nfe)), lines)


def _loop(network: ModelMixin, scheduler: SchedulerMixin, noise: Tensor) -> Tensor:
    """``DDPMPipeline``'s loop from given noise, since it draws its own; the scheduler's timesteps are set."""
    x = noise
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, timestep).sample, timestep, x).prev_sample
    return x


if __name__ == "__main__":
    run(main, Args)
