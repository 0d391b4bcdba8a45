"""The best of many samplers on the chooser's noises, without evaluating all of them on all noises."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.rivals.rival import Clock, Sampler, Task
from redif_env.judging import bases


def nearest(task: Task, candidates: Mapping[str, Sampler], clock: Clock) -> str:
    """The name of the candidate that comes nearest to the teacher by the chooser; its calls are the clock's."""
    clock.network_calls += bases.evaluated_samples(len(candidates), len(task.chooser.noise)) * task.nfe
    return bases.nearest(task.chooser, candidates)
