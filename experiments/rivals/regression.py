"""Endpoint regression: the network itself is the student, distilled by the gradient through the sampler.

The student's network, a clone of the teacher at first, is trained to make the teacher's endpoint of each noise (the
regression of Luhman and Luhman 2021, unrolled over all steps).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from experiments.rivals.descent import Descent, descend, through_sampler
from experiments.rivals.rival import Fitted, Sampler, Task
from redif_env.mdp.sampling import trajectory
from redif_env.students.student import Student
from redif_env.teachers.teacher import Teacher

RATE = 3e-4
EMA = 0.99


def regression(task: Task) -> Fitted:
    """Down the distance to the endpoints, from the warm start."""
    student = task.warm_student()
    return distil(task, student, through_sampler(task, stepped(student, student.mdp.teacher), RATE, EMA))


def distil(task: Task, student: Student, descent: Descent) -> Fitted:
    """Adam on the network of ``student``; the best moving average, or the warm start where none is better."""
    network = student.network.requires_grad_(True)
    return descend(task, network, descent, lambda averaged: frozen_sampler(student, averaged), untrained=True)


def frozen_sampler(student: Student, averaged: nn.Module) -> Sampler:
    """The student's sampler with a copy of these weights."""
    found = copy.copy(student.mdp.teacher)
    found.network = copy.deepcopy(averaged).requires_grad_(False)
    return torch.inference_mode()(stepped(student, found))


def stepped(student: Student, network: Teacher) -> Callable[[Tensor, Tensor], Tensor]:
    """Samples of a network in the place of the student's, with a gradient to its weights."""
    mdp = replace(student.mdp, teacher=network)

    def make(noise: Tensor, condition: Tensor) -> Tensor:
        *_, last = trajectory(mdp, student.policy, noise, None, condition)
        return last.x

    return make
