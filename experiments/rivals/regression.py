"""Endpoint regression: the network itself is the student, distilled by the gradient through the sampler.

A copy of the teacher's network, stepped by the base solver, is trained to make the teacher's endpoint of each noise
(the regression of Luhman and Luhman 2021, unrolled over all steps). Where the compact students learn some dozens of
numbers or a small policy, this one moves every weight.
"""

from __future__ import annotations

import copy

import torch

from experiments.rivals.gradient import BATCH, JUDGEMENTS, loss_of
from experiments.rivals.rival import BACKWARD_CALLS, Clock, Fitted, Sampler, Task, distance
from redif_env.grids import GRIDS, Grid
from redif_env.settings import DEFAULT_GRID, DEFAULT_SOLVER
from redif_env.solvers import SOLVERS, Solver, sample
from redif_env.teachers import Teacher

RATE = 3e-4
EMA = 0.99


def regression(task: Task) -> Fitted:
    """Adam on the copy, the rate falling to zero with the budget; the best moving average of weights is kept.

    Raises:
        ValueError: if the teacher has no weights.
    """
    if not list(task.teacher.network.parameters()):
        raise ValueError(f"teacher={task.teacher.name!r} has no weights: leave 'network, regression' out of --methods")
    solver, grid = SOLVERS[DEFAULT_SOLVER], GRIDS[DEFAULT_GRID]
    generator = torch.Generator().manual_seed(task.seed)
    student = _copied(task.teacher)
    network, loss, device = student.network.requires_grad_(True), loss_of(task), task.teacher.device
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA))
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    clock, judged = Clock(task.seconds), 0
    best = (float("inf"), _sampler(task, _copied(task.teacher), solver, grid))
    scale = task.teacher.guidance_scale or 1.0
    while clock.share < 1:
        chosen = torch.randint(len(task.reference), (BATCH,), generator=generator)
        noise, condition = (part[chosen].to(device) for part in (task.reference.noise, task.reference.condition))
        made = sample(student, solver, grid, noise, task.num_steps, condition, scale)
        optimizer.zero_grad()
        loss(made, task.reference.endpoints[chosen].to(device)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - clock.share)
        optimizer.step()
        average.update_parameters(network)
        clock.network_calls += BATCH * task.nfe * (1 + BACKWARD_CALLS)
        if clock.share * JUDGEMENTS >= judged + 1 or clock.share == 1:
            judged += 1
            found = _copied(student)
            found.network.load_state_dict(average.module.state_dict())
            sampler = _sampler(task, found, solver, grid)
            best = min(best, (distance(task.chooser, sampler), sampler), key=lambda pair: pair[0])
    return Fitted(best[1], clock.spent, clock.network_calls)


def _copied(teacher: Teacher) -> Teacher:
    """The same with a network of its own."""
    return Teacher(
        copy.deepcopy(teacher.network),
        teacher.schedule,
        teacher.sample_shape,
        teacher.prediction_type,
        teacher.name,
        preconditioning=teacher.preconditioning,
        conditions=teacher.conditions,
        guidance_scale=teacher.guidance_scale,
        call=teacher.call,
    )


def _sampler(task: Task, student: Teacher, solver: Solver, grid: Grid) -> Sampler:
    scale = student.guidance_scale or 1.0

    @torch.inference_mode()
    def sampler(noise: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return sample(student, solver, grid, noise, task.num_steps, condition, scale)

    return sampler
