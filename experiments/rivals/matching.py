"""Distribution matching distillation (Yin et al. 2024a): two scores say where samples are too many and too few.

Noise is added to the student's samples. The teacher's score there is that of the data; another network, trained on the
student's samples all along, gives the score of these. The difference moves the samples. As in the paper the regression
to the teacher's endpoints is added.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.rivals.descent import Batch, Descent, loss_of
from experiments.rivals.regression import distil, stepped
from experiments.rivals.rival import BACKWARD_CALLS, Fitted, Task
from experiments.rivals.targets import Noised, noised
from redif_env.diffusion.placement import expand
from redif_env.diffusion.predictions import noise_estimate
from redif_env.teachers.teacher import Teacher

RATE = 3e-4
EMA = 0.99
FAKE_RATE = 3e-4
WEIGHT = 0.25
"""Of the matching against the regression."""
TIMES = (0.02, 0.98)
"""Shares of the schedule's time between which noise is added, as in the paper."""


class FakeScore:
    """A copy of the teacher that follows the student's samples."""

    def __init__(self, teacher: Teacher) -> None:
        self.model = copy.copy(teacher)
        self.model.network = copy.deepcopy(teacher.network).requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.model.network.parameters(), lr=FAKE_RATE)

    def learn(self, seen: Noised, eps: Tensor) -> None:
        """One update of denoising: ``eps`` is the noise in ``seen``."""
        self.optimizer.zero_grad()
        F.mse_loss(seen.predict(self.model).eps, eps).backward()
        nn.utils.clip_grad_norm_(self.model.network.parameters(), 1.0)
        self.optimizer.step()


def matching(task: Task) -> Fitted:
    """From the warm start, with the gradient through all steps of the student."""
    student = task.warm_student()
    make, apart, fake = stepped(student, student.mdp.teacher), loss_of(task), FakeScore(task.teacher)
    generator = torch.Generator().manual_seed(task.seed)

    def loss(batch: Batch) -> Tensor:
        samples = make(batch.noise, batch.condition)
        made = replace(batch, endpoints=samples.detach())
        seen, eps = _noise_added(task, made, generator)
        direction = score_difference(task.teacher, fake.model, seen, made.endpoints)
        fake.learn(seen, eps)
        # Its gradient by the samples is the direction, over the number of values.
        towards = F.mse_loss(samples, (samples - direction).detach()) / 2
        return apart(samples, batch.endpoints) + WEIGHT * towards

    calls = task.nfe * (1 + BACKWARD_CALLS) + 2 * task.teacher.calls + task.teacher.calls * (1 + BACKWARD_CALLS)
    return distil(task, student, Descent(loss, calls, RATE, EMA))


@torch.no_grad()
def score_difference(teacher: Teacher, fake: Teacher, seen: Noised, samples: Tensor) -> Tensor:
    """Where samples are to move from, ``(B, *S)``: clean estimates of the fake less the teacher's (Eq. 7 and 8).

    In units of how far the teacher would move each.
    """
    real, false = seen.predict(teacher).x0, seen.predict(fake).x0
    size = (samples - real).abs().flatten(1).mean(dim=1).clamp(min=1e-3)
    return (false - real) / expand(size, samples)


def _noise_added(task: Task, made: Batch, generator: torch.Generator) -> tuple[Noised, Tensor]:
    """The samples at random levels, and the noise that was added."""
    schedule = task.teacher.schedule
    low, high = TIMES
    time = low + (high - low) * torch.rand(len(made.noise), generator=generator, dtype=torch.float64)
    seen = noised(made, schedule.half_logsnr_at(time), schedule, generator)
    return seen, noise_estimate(seen.x, made.endpoints, schedule.level(seen.half_logsnr))
