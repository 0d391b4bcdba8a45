"""What the distillers that learn from single steps share: a step of the student is to end at a given target.

States are the teacher's endpoints with noise added, at levels of a grid; the network learns the clean estimate whose
DDIM step ends at the target. The loss is in the form of its own output, which no level magnifies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.rivals.descent import Batch
from experiments.rivals.rival import Task
from redif_env.diffusion.grids import Grid
from redif_env.diffusion.placement import place
from redif_env.diffusion.predictions import noise_estimate
from redif_env.diffusion.schedules import Schedule
from redif_env.diffusion.solvers import SOLVERS, clean_target, ddim_step
from redif_env.diffusion.types import Prediction
from redif_env.students.student import Student
from redif_env.teachers.teacher import Teacher


@dataclass(frozen=True)
class Noised:
    """Samples ``(B, *S)`` at levels ``half_logsnr`` ``(B,)``, and their conditions ``(B,)``."""

    x: Tensor
    half_logsnr: Tensor
    condition: Tensor

    def predict(self, model: Teacher) -> Prediction:
        """A model's prediction of them."""
        return model.predict(self.x, self.half_logsnr, model.schedule.timestep(self.half_logsnr), self.condition)

    def moved(self, prediction: Prediction, half_logsnr: Tensor, schedule: Schedule) -> Noised:
        """Where a DDIM step with a prediction leads."""
        x = ddim_step(self.x, prediction.x0, schedule.level(self.half_logsnr), schedule.level(half_logsnr))
        return Noised(x, half_logsnr, self.condition)


def noised(batch: Batch, half_logsnr: Tensor, schedule: Schedule, generator: torch.Generator) -> Noised:
    """The endpoints of a batch with fresh noise, at levels."""
    level = schedule.level(half_logsnr)
    fresh = torch.randn(batch.endpoints.shape, generator=generator).to(batch.endpoints)
    return Noised(
        place(level.alpha, fresh) * batch.endpoints + place(level.sigma, fresh) * fresh, half_logsnr, batch.condition
    )


def grid_levels(grid: Grid, schedule: Schedule, index: Tensor, steps: int) -> Tensor:
    """``half_logsnr`` of node ``index`` ``(B,)`` of a grid of so many steps; node ``steps`` is clean data."""
    return grid.half_logsnr(index.double() / steps, schedule)


def target_loss(student: Teacher, start: Noised, target: Noised) -> Tensor:
    """Squared error of the network's output to the one whose step from ``start`` ends at ``target``."""
    schedule, shown = student.schedule, student.preconditioning
    level, next_level = schedule.level(start.half_logsnr), schedule.level(target.half_logsnr)
    x0 = clean_target(start.x, target.x, level, next_level)
    goal = shown.write(Prediction(x0, noise_estimate(start.x, x0, level)), level, student.prediction_type)
    timestep, condition = schedule.timestep(start.half_logsnr), student.conditions.select(start.condition)
    output = student.call(
        student.network, shown.inputs(start.x, level), timestep.to(start.x.device, student.dtype), condition
    )
    return F.mse_loss(output, goal)


def one_step_student(task: Task) -> Student:
    """The warm start, stepped by DDIM: for networks whose prediction stands for a whole step."""
    student = task.warm_student()
    return Student(replace(student.mdp, solver=SOLVERS["ddim"]), student.policy)
