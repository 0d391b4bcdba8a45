"""Endpoint regression: the network itself is the student, distilled by the gradient through the sampler.

A copy of the teacher's network, stepped by the base solver, is trained to make the teacher's endpoint of each noise
(the regression of Luhman and Luhman 2021, unrolled over all steps). Where the compact students learn some dozens of
numbers or a small policy, this one moves every weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from experiments.rivals.descent import descend
from experiments.rivals.rival import Fitted, Sampler, Task
from redif_env.grids import GRIDS
from redif_env.settings import DEFAULT_GRID, DEFAULT_SOLVER
from redif_env.solvers import SOLVERS, sample
from redif_env.teachers import Teacher

RATE = 3e-4
EMA = 0.99


def regression(task: Task) -> Fitted:
    """A copy of the teacher, as it answers.

    Raises:
        ValueError: if the teacher has no weights.
    """
    if not list(task.teacher.network.parameters()):
        raise ValueError(f"teacher={task.teacher.name!r} has no weights: leave 'network, regression' out of --methods")
    return regress(task, _copied(task.teacher), lambda network: _solver(task, network))


def regress(task: Task, student: Teacher, sampler: Callable[[Teacher], Sampler]) -> Fitted:
    """Adam on the network of ``student``, the rate falling to zero with the budget; the best moving average is kept.

    ``sampler`` says how samples are made with such a network.
    """
    network = student.network.requires_grad_(True)

    def sampler_of(averaged: nn.Module) -> Sampler:
        found = _copied(student)
        found.network.load_state_dict(averaged.state_dict())
        return torch.inference_mode()(sampler(found))

    return descend(task, network, sampler(student), sampler_of, RATE, EMA)


def _copied(teacher: Teacher) -> Teacher:
    """The same with a network of its own."""
    copied = copy.copy(teacher)
    copied.network = copy.deepcopy(teacher.network)
    return copied


def _solver(task: Task, student: Teacher) -> Sampler:
    """The base solver's samples."""
    solver, grid = SOLVERS[DEFAULT_SOLVER], GRIDS[DEFAULT_GRID]
    return lambda noise, condition: sample(student, solver, grid, noise, task.num_steps, condition)
