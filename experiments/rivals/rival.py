"""What all rivals have in common: the task that they are given, and the sampler that they return."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from redif_env.diffusion.grids import Grid
from redif_env.diffusion.solvers import Solver, sample
from redif_env.judging import bases
from redif_env.judging.bases import Base
from redif_env.judging.evaluation import Evaluator, Sampler
from redif_env.students.student import Student
from redif_env.teachers.references import ReferenceSet
from redif_env.teachers.teacher import Teacher

BACKWARD_CALLS = 2
"""Network calls that a gradient through one call costs besides, by the usual count of its arithmetic."""
TRAJECTORIES = 1024
BATCH = 512
"""Rows that go through a network together."""


@dataclass(frozen=True)
class Task:
    """One rival's work.

    Args:
        teacher: the model that is distilled.
        reference: noises and endpoints that may be trained on; their cost is not counted.
        chooser: evaluates candidates on noises that are neither trained on nor reported.
        num_steps: predictions a sample.
        seed: of all chance.
        seconds: time that fitting may take.
        calls: network calls that it may make, if they are bounded too.
        warm: folder of the network student that all who train a network begin as (``python -m agents.clone``).
        base: the base solver of our actions, and of rivals that learn the same.
        trajectories: the teacher's, to noises of the reference set, that rivals may be fitted to at most.
    """

    teacher: Teacher
    reference: ReferenceSet
    chooser: Evaluator
    num_steps: int
    seed: int
    seconds: float
    calls: int | None = None
    warm: Path | None = None
    base: Base = field(default_factory=Base)
    trajectories: int = TRAJECTORIES

    @property
    def nfe(self) -> int:
        """Network calls a sample."""
        return self.num_steps * self.teacher.calls

    def warm_student(self) -> Student:
        """The network student to begin as; it makes one call a step.

        Raises:
            ValueError: if there is none.
        """
        if self.warm is None:
            raise ValueError(f"teacher={self.teacher.name!r} has no weights: choose --methods that train no network")
        return Student.from_pretrained(self.warm, str(self.teacher.device))


@dataclass(frozen=True)
class Fitted:
    """A sampler, what it cost, and what it is in words."""

    sampler: Sampler
    seconds: float
    network_calls: int
    described: str = ""


Rival = Callable[[Task], Fitted]


@dataclass
class Clock:
    """Time and network calls spent on a task."""

    seconds: float
    calls: int | None = None
    network_calls: int = 0
    start: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.start

    @property
    def share(self) -> float:
        """Of the budget that is spent, at most 1; of whichever bound is nearer."""
        called = self.network_calls / self.calls if self.calls else 0.0
        return min(1.0, max(self.spent / self.seconds, called))


def remaining(task: Task, clock: Clock) -> Task:
    """The task with what is left of its budget."""
    calls = None if task.calls is None else max(1, task.calls - clock.network_calls)
    return replace(task, seconds=max(0.01, task.seconds - clock.spent), calls=calls)


@dataclass(frozen=True)
class StudentSampler:
    """A student as a sampler."""

    student: Student

    def __call__(self, noise: Tensor, condition: Tensor) -> Tensor:
        return self.student.trajectory(noise, None, condition)[-1].x


def in_batches(make: Sampler) -> Sampler:
    """``make`` without gradients, in batches."""

    @torch.inference_mode()
    def sampler(noise: Tensor, condition: Tensor) -> Tensor:
        parts = zip(noise.split(BATCH), condition.split(BATCH), strict=True)
        return torch.cat([make(*part) for part in parts])

    return sampler


def solver_sampler(task: Task, solver: Solver, grid: Grid) -> Sampler:
    """A solver on a grid, in so many predictions as the task has."""
    return in_batches(lambda noise, condition: sample(task.teacher, solver, grid, noise, task.num_steps, condition))


def nearest(task: Task, candidates: Mapping[str, Sampler], clock: Clock) -> str:
    """The name of the candidate that comes nearest to the teacher by the chooser; its calls are the clock's.

    Not all are evaluated on all noises (:func:`redif_env.judging.bases.nearest`).
    """
    clock.network_calls += bases.evaluated_samples(len(candidates), len(task.chooser.noise)) * task.nfe
    return bases.nearest(task.chooser, candidates)


def seen(teacher: Teacher) -> str:
    """The observation of policies that see the state: with the condition, where that varies."""
    return "features+condition" if len(teacher.conditions) > 1 else "features"
