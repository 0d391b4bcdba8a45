"""Progressive distillation (Salimans and Ho 2022): the number of steps is halved again and again.

In each stage the student learns to make in one DDIM step what its teacher makes in two; then it is the teacher of the
next. The first teacher is the model itself.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from experiments.rivals.descent import Batch, Descent, average
from experiments.rivals.regression import distil
from experiments.rivals.rival import BACKWARD_CALLS, Clock, Fitted, Task
from experiments.rivals.targets import grid_levels, noised, one_step_student, target_loss
from redif_env.diffusion.grids import Grid
from redif_env.teachers.teacher import Teacher

STAGES = 4
"""Halvings: the first teacher takes 16 times the student's steps."""
RATE = 3e-4
EMA = 0.99


def progressive(task: Task) -> Fitted:
    """The stages share the time equally; the last one's best average on validation noise is kept."""
    student = one_step_student(task)
    mdp, overall, teacher = student.mdp, Clock(task.seconds), task.teacher
    network = student.network.requires_grad_(True)
    calls = None if task.calls is None else task.calls // STAGES
    for stage in range(STAGES - 1):
        steps = mdp.num_steps * 2 ** (STAGES - 1 - stage)
        clock = Clock(task.seconds * (stage + 1) / STAGES - overall.spent, calls)
        averaged = average(task, network, _halving(task, mdp.teacher, teacher, mdp.grid, steps), clock)
        overall.network_calls += clock.network_calls
        network.load_state_dict(averaged.state_dict())
        teacher = copy.copy(mdp.teacher)
        teacher.network = copy.deepcopy(network).requires_grad_(False)
    rest = replace(task, seconds=task.seconds - overall.spent, calls=calls)
    found = distil(rest, student, _halving(task, mdp.teacher, teacher, mdp.grid, mdp.num_steps))
    return replace(found, seconds=overall.spent, network_calls=overall.network_calls + found.network_calls)


def _halving(task: Task, student: Teacher, teacher: Teacher, grid: Grid, steps: int) -> Descent:
    """One of ``steps`` steps of the student for two of the teacher."""
    generator, schedule = torch.Generator().manual_seed(task.seed), student.schedule

    def loss(batch: Batch) -> Tensor:
        index = torch.randint(steps, (len(batch.noise),), generator=generator)
        here, between, there = (grid_levels(grid, schedule, 2 * index + part, 2 * steps) for part in (0, 1, 2))
        start = noised(batch, here, schedule, generator)
        with torch.no_grad():
            middle = start.moved(start.predict(teacher), between, schedule)
            target = middle.moved(middle.predict(teacher), there, schedule)
        return target_loss(student, start, target)

    return Descent(loss, 2 * teacher.calls + 1 + BACKWARD_CALLS, RATE, EMA)
