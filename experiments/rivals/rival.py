"""What all rivals have in common: what they are given, and what they give back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from experiments.rivals.base import Base
from redif_env.judging.evaluation import Evaluator, Sampler
from redif_env.students.student import Student
from redif_env.teachers.references import ReferenceSet
from redif_env.teachers.teacher import Teacher

BACKWARD_CALLS = 2
"""Network calls that a gradient through one call costs besides, by the usual count of its arithmetic."""


@dataclass(frozen=True)
class Task:
    """One rival's work.

    ``reference`` is what may be trained on, ``chooser`` judges candidates on noises that are neither trained nor
    reported on, ``seconds`` is the time that fitting may take (references are given, and not counted), ``calls`` the
    network calls that it may make, if they are bounded too. ``warm`` is the folder of the network student that all who
    train a network begin as (``python -m agents.clone``; given like the references, its cost a row of its own).
    ``base`` is what our actions begin from, and those of rivals that learn the same; it is given too.
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

    @property
    def nfe(self) -> int:
        """Network calls a sample."""
        return self.num_steps * self.teacher.calls

    def warm_student(self) -> Student:
        """The network student to begin as; one call a step.

        Raises:
            ValueError: if there is none.
        """
        if self.warm is None:
            raise ValueError(f"teacher={self.teacher.name!r} has no weights: choose --methods that train no network")
        return Student.from_pretrained(self.warm)


@dataclass(frozen=True)
class Fitted:
    """A sampler, what it cost, what it is in words, and where it calls the network.

    ``levels`` are ``half_logsnr``, a call each, the mean over samples where they differ; none unless they were searched
    or learned.
    ``spent`` are its mean calls a sample, where it chooses their number.
    """

    sampler: Sampler
    seconds: float
    network_calls: int
    described: str = ""
    levels: tuple[float, ...] = ()
    spent: float | None = None


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


@dataclass(frozen=True)
class StudentSampler:
    """A student as a sampler; at a price, if it knows prices."""

    student: Student
    price: float | None = None

    def __call__(self, noise: Tensor, condition: Tensor) -> Tensor:
        return self.student.trajectory(noise, self.price, condition)[-1].x

    def levels(self, chooser: Evaluator) -> tuple[float, ...]:
        """Mean levels at which a student of fixed steps calls the network."""
        first = self.student.mdp.initial(chooser.noise, condition=chooser.condition)
        states = [first, *self.student.trajectory(chooser.noise, self.price, chooser.condition)]
        return tuple(torch.stack([state.half_logsnr.mean() for state in states[:-1]]).tolist())


def seen(teacher: Teacher) -> str:
    """The observation of policies that see the state: with what they are asked for, where that varies."""
    return "features+condition" if len(teacher.conditions) > 1 else "features"
