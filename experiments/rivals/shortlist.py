"""The best of many samplers, without judging all of them on all noises."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.rivals.rival import Clock, Sampler, Task

SCREEN_SIZE, SHORTLIST = 128, 4
"""Noises on which candidates are compared first, and how many of them are judged on all."""


def nearest(task: Task, candidates: Mapping[str, Sampler], clock: Clock) -> str:
    """The name of the candidate that comes nearest to the teacher on the chooser's noises; the clock counts the calls.

    A few noises tell most candidates apart, since their samples are paired with the teacher's.
    """
    size = len(task.chooser.noise)
    if size > SCREEN_SIZE and len(candidates) > SHORTLIST:
        clock.network_calls += len(candidates) * SCREEN_SIZE * task.nfe
        screened = {name: task.chooser.distance(made, SCREEN_SIZE) for name, made in candidates.items()}
        candidates = {name: candidates[name] for name in sorted(screened, key=lambda name: screened[name])[:SHORTLIST]}
    clock.network_calls += len(candidates) * size * task.nfe
    judged = {name: task.chooser.distance(made) for name, made in candidates.items()}
    return min(judged, key=lambda name: judged[name])
