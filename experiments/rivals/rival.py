"""What all rivals have in common: what they are given, and what they give back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from redif_env.evaluation import Evaluator
from redif_env.references import ReferenceSet
from redif_env.students import Student
from redif_env.teachers import Teacher

BACKWARD_CALLS = 2
"""Network calls that a gradient through one call costs besides, by the usual count of its arithmetic."""

Sampler = Callable[[Tensor, Tensor], Tensor]
"""Noise ``(B, *S)`` and conditions ``(B,)`` to samples ``(B, *S)``."""


@dataclass(frozen=True)
class Task:
    """One rival's work.

    ``reference`` is what may be trained on, ``chooser`` judges candidates on noises that are neither trained nor
    reported on, ``seconds`` is the time that fitting may take (references are given, and not counted), ``calls`` the
    network calls that it may make, if they are bounded too.
    """

    teacher: Teacher
    reference: ReferenceSet
    chooser: Evaluator
    num_steps: int
    seed: int
    seconds: float
    calls: int | None = None

    @property
    def nfe(self) -> int:
        """Network calls a sample."""
        return self.num_steps * self.teacher.calls


@dataclass(frozen=True)
class Fitted:
    """A sampler, what it cost, and what it is, in words."""

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


def sampler_of(student: Student) -> Sampler:
    """A student as a sampler."""
    return lambda noise, condition: student.trajectory(noise, condition=condition)[-1].x


def distance(chooser: Evaluator, sampler: Sampler) -> float:
    """Frechet distance to the teacher on the chooser's noises: what candidates are chosen by."""
    return chooser.row("", "", 0, sampler(chooser.noise, chooser.condition)).fd_teacher
