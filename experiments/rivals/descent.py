"""Gradient descent through the sampler: what its rivals share, whatever their weights are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.rivals.rival import BACKWARD_CALLS, Clock, Fitted, Sampler, Task, distance
from redif_env.features import default_features, load_features

BATCH = 64
JUDGEMENTS = 12
"""Times that the sampler is judged on validation noise during a run, at even distances in time."""


def descend(
    task: Task, module: nn.Module, make: Sampler, sampler_of: Callable[[nn.Module], Sampler], rate: float, decay: float
) -> Fitted:
    """Adam on batches of the reference set, the rate falling to zero with the budget; the best average is kept.

    Args:
        task: what is to be fitted.
        module: its weights are moved.
        make: samples of a batch, with a gradient to those weights.
        sampler_of: the sampler of the module with such weights, to be judged and kept.
        rate: of Adam.
        decay: of the weights' moving average.
    """
    generator = torch.Generator().manual_seed(task.seed)
    device, loss = task.teacher.device, loss_of(task)
    averaging = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=averaging)
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    clock, best, judged = Clock(task.seconds, task.calls), (float("inf"), sampler_of(module)), 0
    while clock.share < 1:
        chosen = torch.randint(len(task.reference), (BATCH,), generator=generator)
        noise, condition = (part[chosen].to(device) for part in (task.reference.noise, task.reference.condition))
        optimizer.zero_grad()
        loss(make(noise, condition), task.reference.endpoints[chosen].to(device)).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - clock.share)
        optimizer.step()
        average.update_parameters(module)
        clock.network_calls += BATCH * task.nfe * (1 + BACKWARD_CALLS)
        if clock.share * JUDGEMENTS >= judged + 1 or clock.share == 1:
            judged += 1
            sampler = sampler_of(average.module)
            best = min(best, (distance(task.chooser, sampler), sampler), key=lambda pair: pair[0])
    return Fitted(best[1], clock.spent, clock.network_calls)


def loss_of(task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean distance in the features that PPO's reward sees: the reward's main term, differentiated."""
    teacher = task.teacher
    features = load_features(default_features(teacher.image_shape), teacher.image_shape).to(teacher.device)

    def loss(samples: Tensor, endpoints: Tensor) -> Tensor:
        # Clipping would stop the gradient of what lies outside.
        apart = F.mse_loss(features(samples), features(endpoints), reduction="none").flatten(1).mean(dim=1)
        return (apart + 1e-12).sqrt().mean()

    return loss
