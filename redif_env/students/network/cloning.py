"""Behaviour cloning: a student's own network learns to say what the teacher says, where the student will be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from redif_env.diffusion.noise_schedulers import action_parameterization
from redif_env.diffusion.placement import HOST
from redif_env.diffusion.solvers import predict
from redif_env.diffusion.types import Prediction
from redif_env.mdp.process import DenoisingMDP
from redif_env.students.network.sensitivities import sensitivities
from redif_env.teachers.teacher import Teacher, own_teacher

STEERED = 0.5
"""Share of the rollouts whose steps are taken with the student's predictions, the others with the teacher's."""


@dataclass(frozen=True)
class CloningPlan:
    """How a network is cloned.

    ``updates`` minibatches of ``batch_size`` states; after every ``refresh`` of them the states are drawn anew, from
    ``rollouts`` noises; the ``learning_rate`` of Adam falls linearly to zero; the weights are a moving average
    (``decay``); chance comes from ``seed``. With ``by_sensitivity`` the squared errors of a step weigh by the square of
    how far the finished sample moves by them (``sensitivities``), else as all others'.
    """

    updates: int = 1000
    batch_size: int = 128
    rollouts: int = 512
    refresh: int = 100
    learning_rate: float = 1e-3
    decay: float = 0.99
    by_sensitivity: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Lesson:
    """States and the answers to give there: network inputs ``(N, *S)``, times told ``(N,)``, conditions, outputs.

    Errors count times ``weight`` ``(N,)``.
    """

    inputs: Tensor
    timestep: Tensor
    condition: Tensor
    output: Tensor
    weight: Tensor

    def rows(self, index: Tensor) -> Lesson:
        """The rows that ``index`` (on the host) picks."""
        parts = (getattr(self, part.name) for part in fields(self))
        return Lesson(*(part[index.to(part.device)] for part in parts))


def clone(mdp: DenoisingMDP, network: nn.Module, plan: CloningPlan, progress: Callable[[float], object]) -> None:
    """Train ``network`` in place until it says what the teacher says on the way of the base solver.

    The states are those of the solver that the action map begins from (DAgger: Ross et al. 2011): at first stepped with
    the teacher's predictions, then half of them with the student's own, so that it knows what to say where its own
    errors lead. The loss is the squared error of the network's output, in the form of actions
    (``noise_schedulers.action_parameterization``). Only parameters that require a gradient are moved.

    Args:
        mdp: with the teacher, the base solver and a :class:`~redif_env.mdp.actions.NoiseMap`.
        network: the student's, called as the teacher's is, without guidance.
        plan: how much of it.
        progress: called with the loss of each update.

    Raises:
        FloatingPointError: if it diverged.
    """
    student, trained = learner(mdp, network)
    optimizer = torch.optim.Adam(trained, lr=plan.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, plan.updates)
    descend(network, schedule, plan.decay, _losses(mdp, student, plan), progress)


def learner(mdp: DenoisingMDP, network: nn.Module) -> tuple[Teacher, list[nn.Parameter]]:
    """A student whose ``network`` is to be trained, as clones answer, and those of its parameters that are moved."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    student = own_teacher(mdp.teacher, network, action_parameterization(mdp.teacher.parameterization))
    for parameter in trained:  # a teacher's are frozen
        parameter.requires_grad_(True)
    return student, trained


def descend(
    network: nn.Module,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    decay: float,
    losses: Iterator[Tensor],
    progress: Callable[[float], object],
) -> None:
    """Step down one of ``losses`` after the other; the weights of ``network`` become their moving average (``decay``).

    Args:
        network: whose weights the optimizer moves.
        schedule: of the learning rate, with the optimizer.
        decay: of the average.
        losses: each with a gradient to the weights as they are by then.
        progress: called with the loss of each update.

    Raises:
        FloatingPointError: if a loss is not finite.
    """
    optimizer = schedule.optimizer
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    averaging = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=averaging)
    for loss in losses:
        reached = loss.item()
        if not math.isfinite(reached):
            rate = schedule.base_lrs[0]
            raise FloatingPointError(f"training at learning_rate={rate} came to a loss of {reached}: lower the rate")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        progress(reached)
    network.load_state_dict(average.module.state_dict())


def _losses(mdp: DenoisingMDP, student: Teacher, plan: CloningPlan) -> Iterator[Tensor]:
    """Of one minibatch after the other."""
    generator = torch.Generator().manual_seed(plan.seed)
    weights = step_weights(mdp, plan.by_sensitivity)
    for update in range(plan.updates):
        if update % plan.refresh == 0:
            lesson = rollout(mdp, student if update else None, plan.rollouts, weights, generator)
        rows = torch.randint(len(lesson.inputs), (plan.batch_size,), generator=generator, device=HOST)
        yield clone_loss(student, lesson.rows(rows))


def step_weights(mdp: DenoisingMDP, by_sensitivity: bool) -> Tensor:
    """What the squared errors of each step count: ``(num_steps,)``, 1 on average."""
    if not by_sensitivity:
        return torch.ones(mdp.num_steps, dtype=torch.float32, device=HOST)
    squares = sensitivities(mdp).square()
    return (squares / squares.mean()).float()


@torch.no_grad()
def rollout(
    mdp: DenoisingMDP, student: Teacher | None, count: int, weights: Tensor, generator: torch.Generator
) -> Lesson:
    """States of ``count`` noises on their way, and what the teacher says there: ``count * num_steps`` rows.

    With a ``student``, half of the noises are stepped with its predictions. ``weights`` ``(num_steps,)`` are of errors.
    """
    teacher, parameterization = mdp.teacher, action_parameterization(mdp.teacher.parameterization)
    shape = (count, *teacher.sample_shape)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32, device=HOST).to(teacher.device)
    condition = teacher.conditions.draw(count, generator)
    steered = torch.rand(count, generator=generator, dtype=torch.float32, device=HOST) < STEERED
    state, found = mdp.initial(noise, None, condition), []
    zero = torch.zeros(count, mdp.action_size, device=HOST)
    for weight in weights:
        told = predict(teacher, state)
        level = parameterization.schedule.level(state.half_logsnr)
        said = Prediction(told.x0_history[:, 0], told.eps_history[:, 0])
        output = parameterization.preconditioning.write(said, level, parameterization.prediction_type)
        inputs = parameterization.preconditioning.inputs(state.x, level)
        found.append(Lesson(inputs, state.timestep, condition, output, weight.expand(count)))
        if student is not None:
            told = told.merge(steered, replace(predict(student, state), nfe=told.nfe))
        state = mdp.advance(told, mdp.decode(told, zero))
    return Lesson(*(torch.cat([getattr(one, part.name) for one in found]) for part in fields(Lesson)))


def clone_loss(student: Teacher, lesson: Lesson) -> Tensor:
    """Mean squared error of what a student says, each row times its weight."""
    asked = student.conditions.select(lesson.condition)
    dtype = student.dtype
    timestep = lesson.timestep.to(lesson.inputs.device, dtype)
    output = student.call(student.network, lesson.inputs.to(dtype), timestep, asked)
    errors = (output - lesson.output.to(dtype)).square().flatten(1).mean(dim=1)
    return (lesson.weight.to(errors) * errors).mean()
