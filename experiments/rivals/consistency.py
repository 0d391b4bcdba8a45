"""Multistep consistency distillation (Heek et al. 2024; of one segment, consistency distillation: Song et al. 2023).

The trajectory is cut into as many segments as the student has steps. From every level of a segment the student's step
is to end at the same point: its prediction at one level must agree with its prediction one fine step of the teacher
later. Sampling is deterministic, a DDIM step a segment.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.rivals.descent import Batch, Descent
from experiments.rivals.regression import distil
from experiments.rivals.rival import BACKWARD_CALLS, Fitted, Task
from experiments.rivals.targets import Noised, grid_levels, noised, one_step_student, target_loss
from redif_env.diffusion.predictions import clean_estimate
from redif_env.diffusion.schedules import Schedule
from redif_env.diffusion.types import Prediction, chosen
from redif_env.teachers.teacher import Teacher

FINE = 8
"""Steps of the teacher's a segment."""
RATE = 3e-4
EMA = 0.99


def consistency(task: Task) -> Fitted:
    """From the warm start; the target is the student's own newest prediction, without a gradient."""
    student = one_step_student(task)
    own, grid, segments = student.mdp.teacher, student.mdp.grid, student.mdp.num_steps
    generator, schedule = torch.Generator().manual_seed(task.seed), task.teacher.schedule

    def loss(batch: Batch) -> Tensor:
        index = torch.randint(segments * FINE, (len(batch.noise),), generator=generator)
        here, further = (grid_levels(grid, schedule, index + part, segments * FINE) for part in (0, 1))
        end = grid_levels(grid, schedule, index.div(FINE, rounding_mode="floor") + 1, segments)
        start = noised(batch, here, schedule, generator)
        with torch.no_grad():
            target = _target(own, heun_step(task.teacher, start, further), end, (index + 1) % FINE == 0, schedule)
        return target_loss(own, start, target)

    calls = 2 * task.teacher.calls + 1 + 1 + BACKWARD_CALLS
    return distil(task, student, Descent(loss, calls, RATE, EMA))


def heun_step(teacher: Teacher, start: Noised, half_logsnr: Tensor) -> Noised:
    """A step of Heun's method (Karras et al. 2022, Algorithm 1); of Euler's where it ends on clean data."""
    schedule = teacher.schedule
    first = start.predict(teacher)
    # A prediction on clean data is never used: the cleanest level takes its place.
    finite = half_logsnr.clamp(max=schedule.ends[1])
    second = start.moved(first, finite, schedule).predict(teacher)
    both = (first.eps + second.eps) / 2
    x0 = clean_estimate(start.x, both, schedule.level(start.half_logsnr))
    usable = half_logsnr.isfinite() & start.half_logsnr.isfinite()
    return start.moved(Prediction(chosen(usable, x0, first.x0), both), half_logsnr, schedule)


def _target(own: Teacher, further: Noised, end: Tensor, arrived: Tensor, schedule: Schedule) -> Noised:
    """Where the student's step from the later level ends; a row that is at the segment's end stays there."""
    finite = further.half_logsnr.clamp(max=schedule.ends[1])
    safe = Noised(further.x, finite, further.condition)
    moved = safe.moved(safe.predict(own), end, schedule)
    return Noised(chosen(arrived, further.x, moved.x), end, further.condition)
