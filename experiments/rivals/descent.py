"""Gradient descent under a budget: what all rivals that are trained by gradient share, whatever they descend on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.rivals.rival import BACKWARD_CALLS, Clock, Fitted, Sampler, Task
from redif_env.measures.features import default_features, load_features
from redif_env.students.network.refinement import straight_through

BATCH = 64
JUDGEMENTS = 2
"""Times that the sampler is judged on validation noise during a run, at even distances in time; six took a third of
two minutes on mnist."""


@dataclass(frozen=True)
class Batch:
    """Some pairs of the reference set: noise and endpoints ``(B, *S)``, conditions and row numbers ``(B,)``."""

    noise: Tensor
    condition: Tensor
    endpoints: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Descent:
    """What is descended on, and how.

    Args:
        loss: of a batch, with a gradient to the module's weights.
        calls: network calls that one sample of it costs, those of the gradient included.
        rate: of Adam; it falls to zero with the budget.
        decay: of the weights' moving average.
    """

    loss: Callable[[Batch], Tensor]
    calls: int
    rate: float
    decay: float


def descend(
    task: Task,
    module: nn.Module,
    descent: Descent,
    sampler_of: Callable[[nn.Module], Sampler],
    untrained: bool = False,
) -> Fitted:
    """Move the weights of ``module``; returns the best moving average on validation noise.

    ``sampler_of`` gives the sampler of a module with such weights. With ``untrained``, the module as it is given is a
    candidate too.

    Raises:
        FloatingPointError: if it diverged.
    """
    clock, found = Clock(task.seconds, task.calls), []

    def judge(averaged: nn.Module) -> None:
        sampler = sampler_of(averaged)
        found.append((task.chooser.distance(sampler), sampler))

    if untrained:
        judge(module)
    average(task, module, descent, clock, judge)
    nearest, best = min(found, key=lambda pair: pair[0])
    if math.isinf(nearest):
        raise FloatingPointError(
            f"descent at rate={descent.rate} on teacher={task.teacher.name!r}, {task.nfe} NFE, ended in samples that "
            "are not finite: lower the rate"
        )
    return Fitted(best, clock.spent, clock.network_calls)


def average(
    task: Task, module: nn.Module, descent: Descent, clock: Clock, judge: Callable[[nn.Module], None] | None = None
) -> nn.Module:
    """The moving average of the weights that Adam finds on batches of the reference set until the clock is spent.

    ``judge`` is shown it now and then, and at the end.
    """
    generator = torch.Generator().manual_seed(task.seed)
    averaging = torch.optim.swa_utils.get_ema_multi_avg_fn(descent.decay)
    averaged = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=averaging)
    optimizer = torch.optim.Adam(module.parameters(), lr=descent.rate)
    judged = 0
    while clock.share < 1:
        optimizer.zero_grad()
        descent.loss(_batch(task, generator)).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = descent.rate * (1 - clock.share)
        optimizer.step()
        averaged.update_parameters(module)
        clock.network_calls += BATCH * descent.calls
        if judge is not None and (clock.share * JUDGEMENTS >= judged + 1 or clock.share == 1):
            judged += 1
            judge(averaged.module)
    return averaged.module


def through_sampler(task: Task, make: Sampler, rate: float, decay: float) -> Descent:
    """Down the distance of the samples that ``make`` gives, with a gradient, to the endpoints of their noises."""
    apart = loss_of(task)

    def loss(batch: Batch) -> Tensor:
        return apart(make(batch.noise, batch.condition), batch.endpoints)

    return Descent(loss, task.nfe * (1 + BACKWARD_CALLS), rate, decay)


def loss_of(task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean distance in the features that PPO's reward sees: the reward's main term, differentiated."""
    teacher = task.teacher
    features = load_features(default_features(teacher.image_shape), teacher.image_shape).to(teacher.device)

    def loss(samples: Tensor, endpoints: Tensor) -> Tensor:
        # Judges and rewards clip, so what is paid for here is what a clipped sample shows.
        shown = straight_through(samples, teacher.clip(samples))
        apart = F.mse_loss(features(shown), features(teacher.clip(endpoints)), reduction="none").flatten(1).mean(dim=1)
        return (apart + 1e-12).sqrt().mean()

    return loss


def _batch(task: Task, generator: torch.Generator) -> Batch:
    chosen = torch.randint(len(task.reference), (BATCH,), generator=generator)
    reference = task.reference
    noise, endpoints = (part[chosen].to(task.teacher.device) for part in (reference.noise, reference.endpoints))
    return Batch(noise, reference.condition[chosen], endpoints, chosen)
