"""A pipeline's call with a scheduler that takes its own steps, from given noise: what any user gets from it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from redif_env.teachers.driven.drive import Drive, Start
from redif_env.teachers.driven.networks import RUNNING
from redif_env.teachers.driven.wave import Place, Wave

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


class StockCall(Wave):
    """A whole call of a pipeline, in the caller's thread."""

    def last(self, scheduler: SchedulerMixin, noise: Tensor) -> Tensor:
        """The last sample that ``scheduler`` steps to from ``noise``, both ``(B, *S)``."""
        seen: list[Tensor] = []
        self._pipe.__dict__["scheduler"] = recording(scheduler, seen)
        self._place = Place(noise)
        before = RUNNING.wave
        try:
            self._run(lambda _: None)
        finally:
            RUNNING.wave = before
        return seen[0][: self.rows]


def stock_samples(
    drive: Drive, scheduler: SchedulerMixin, noise: Tensor, rows: Sequence[int], num_steps: int
) -> Tensor:
    """Samples ``(B, *S)`` of the stock pipeline with ``scheduler`` in the place of its own, from ``noise``.

    Args:
        drive: of the pipeline.
        scheduler: left as it is.
        noise: standard normal; the pipeline scales it as it does its own.
        rows: of the drive's conditions.
        num_steps: that the pipeline is called with.
    """
    call = drive.wave(rows, Start(num_steps), kind=StockCall)
    assert isinstance(call, StockCall)
    return call.last(scheduler, noise).to(noise)


def recording(scheduler: SchedulerMixin, seen: list[Tensor]) -> Any:
    """A copy of ``scheduler`` that leaves the sample of its latest step in ``seen``."""
    made: Any = copy.deepcopy(scheduler)
    kind: Any = type(made)

    @functools.wraps(kind.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = kind.step(self, *args, **kwargs)
        seen[:] = [found[0]]
        return found

    made.__class__ = type(kind.__name__, (kind,), {"step": step})
    return made
