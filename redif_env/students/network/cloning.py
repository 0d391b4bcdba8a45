"""Behaviour cloning: a student network learns the teacher's predictions in the states of few-step sampling."""

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
from redif_env.teachers.teacher import Teacher, own_teacher

STUDENT_SHARE = 0.5
"""Share of the trajectories that are stepped with the student's predictions; the others use the teacher's."""


@dataclass(frozen=True)
class CloningPlan:
    """Hyperparameters of cloning.

    Args:
        updates: number of minibatches.
        batch_size: states per minibatch.
        rollouts: number of noises whose trajectories give the states.
        refresh: number of updates after which new states are drawn.
        learning_rate: initial learning rate of Adam; falls linearly to zero.
        decay: decay of the moving average of the weights.
        seed: seed of noises and minibatches.
    """

    updates: int = 1000
    batch_size: int = 128
    rollouts: int = 512
    refresh: int = 100
    learning_rate: float = 1e-3
    decay: float = 0.99
    seed: int = 0


@dataclass(frozen=True)
class CloningBatch:
    """Training examples: network inputs and target outputs ``(N, *S)``, timesteps and conditions ``(N,)``."""

    inputs: Tensor
    timestep: Tensor
    condition: Tensor
    output: Tensor

    def rows(self, index: Tensor) -> CloningBatch:
        """The examples at ``index`` (on the host)."""
        parts = (getattr(self, part.name) for part in fields(self))
        return CloningBatch(*(part[index.to(part.device)] for part in parts))


def clone(mdp: DenoisingMDP, network: nn.Module, plan: CloningPlan, progress: Callable[[float], object]) -> None:
    """Train ``network`` in place to reproduce the teacher's predictions along trajectories of the base solver.

    States come from DAgger (Ross et al. 2011): at first all trajectories use the teacher's predictions, later half use
    the student's, so that the student learns to correct its own errors. The loss is the MSE of the output in the action
    parameterization (``noise_schedulers.action_parameterization``). Frozen parameters do not change.

    Args:
        mdp: decision process with the teacher, the base solver and a :class:`~redif_env.mdp.actions.NoiseMap`.
        network: the student's network, called as the teacher's, without guidance.
        plan: hyperparameters.
        progress: called with the loss of each update.

    Raises:
        FloatingPointError: if training diverges.
    """
    student, trained = trainable_student(mdp, network)
    optimizer = torch.optim.Adam(trained, lr=plan.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, plan.updates)
    minimise(network, schedule, plan.decay, _losses(mdp, student, plan), progress)


def trainable_student(mdp: DenoisingMDP, network: nn.Module) -> tuple[Teacher, list[nn.Parameter]]:
    """``network`` in the action parameterization, and its trainable parameters."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    student = own_teacher(mdp.teacher, network, action_parameterization(mdp.teacher.parameterization))
    for parameter in trained:  # own_teacher freezes them
        parameter.requires_grad_(True)
    return student, trained


def minimise(
    network: nn.Module,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    decay: float,
    losses: Iterator[Tensor],
    progress: Callable[[float], object],
) -> None:
    """Take one optimizer step per loss, then set ``network`` to the moving average of its weights.

    Args:
        network: the network to train.
        schedule: learning rate schedule; its optimizer is used.
        decay: decay of the moving average.
        losses: an iterator whose next loss is computed after the previous step.
        progress: called with the value of each loss.

    Raises:
        FloatingPointError: if a loss is not finite.
    """
    optimizer = schedule.optimizer
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    averaging = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=averaging)
    for loss in losses:
        value = loss.item()
        if not math.isfinite(value):
            rate = schedule.base_lrs[0]
            raise FloatingPointError(f"training with learning_rate={rate} reached a loss of {value}: lower the rate")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        progress(value)
    network.load_state_dict(average.module.state_dict())


def _losses(mdp: DenoisingMDP, student: Teacher, plan: CloningPlan) -> Iterator[Tensor]:
    """Losses of successive minibatches."""
    generator = torch.Generator().manual_seed(plan.seed)
    for update in range(plan.updates):
        if update % plan.refresh == 0:
            examples = rollout(mdp, student if update else None, plan.rollouts, generator)
        rows = torch.randint(len(examples.inputs), (plan.batch_size,), generator=generator, device=HOST)
        yield cloning_loss(student, examples.rows(rows))


@torch.no_grad()
def rollout(mdp: DenoisingMDP, student: Teacher | None, count: int, generator: torch.Generator) -> CloningBatch:
    """States of base solver trajectories with the teacher's outputs: ``count * num_steps`` examples.

    Args:
        mdp: decision process with the teacher and the base solver.
        student: half of the trajectories use its predictions; None for none.
        count: number of noises.
        generator: generator of the noises.
    """
    teacher, parameterization = mdp.teacher, action_parameterization(mdp.teacher.parameterization)
    shape = (count, *teacher.sample_shape)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32, device=HOST).to(teacher.device)
    condition = teacher.conditions.draw(count, generator)
    by_student = torch.rand(count, generator=generator, dtype=torch.float32, device=HOST) < STUDENT_SHARE
    state, steps = mdp.initial(noise, None, condition), []
    zero = torch.zeros(count, mdp.action_size, device=HOST)
    for _ in range(mdp.num_steps):
        predicted = predict(teacher, state)
        level = parameterization.schedule.level(state.half_logsnr)
        prediction = Prediction(predicted.x0_history[:, 0], predicted.eps_history[:, 0])
        output = parameterization.preconditioning.write(prediction, level, parameterization.prediction_type)
        inputs = parameterization.preconditioning.inputs(state.x, level)
        steps.append(CloningBatch(inputs, state.timestep, condition, output))
        if student is not None:
            predicted = predicted.merge(by_student, replace(predict(student, state), nfe=predicted.nfe))
        state = mdp.advance(predicted, mdp.decode(predicted, zero))
    return CloningBatch(*(torch.cat([getattr(step, part.name) for step in steps]) for part in fields(CloningBatch)))


def cloning_loss(student: Teacher, examples: CloningBatch) -> Tensor:
    """MSE of the student's outputs."""
    conditions = student.conditions.select(examples.condition)
    dtype = student.dtype
    timestep = examples.timestep.to(examples.inputs.device, dtype)
    output = student.call(student.network, examples.inputs.to(dtype), timestep, conditions)
    return nn.functional.mse_loss(output, examples.output.to(dtype))
