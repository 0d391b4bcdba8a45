"""Refinement of a cloned network by backpropagation through its sampling steps.

A clone smaller than its teacher has small errors everywhere, so its sample distribution differs from the teacher's even
after long cloning. Refinement minimises the distance between the sample distributions. Unlike RL it needs a
differentiable network, solver and distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redif_env.diffusion.placement import HOST
from redif_env.diffusion.solvers import sample
from redif_env.mdp.process import DenoisingMDP
from redif_env.measures.features import default_features, load_features
from redif_env.measures.kernels import EnergyKernel, squared_mmd
from redif_env.students.network.cloning import cloning_loss, minimise, rollout, trainable_student
from redif_env.teachers.teacher import Teacher

WARM_UP = 20
"""Number of warm-up updates of the learning rate, because Adam's first updates are large."""
ROLLOUTS = 4
"""Number of noises for cloning states, as a multiple of the batch size."""
KERNEL = EnergyKernel()
SMALL = 1e-12
"""Added under a square root for a finite gradient at zero."""


@dataclass(frozen=True)
class RefinementPlan:
    """Hyperparameters of refinement.

    Each update uses new noises, because a fixed set is overfitted (16,384 noises within 200 updates).

    Args:
        updates: number of minibatches.
        batch_size: noises per minibatch.
        refresh: number of updates after which new cloning states are drawn.
        learning_rate: learning rate of Adam after warm-up; falls linearly to zero.
        decay: decay of the moving average of the weights.
        paired: loss weight of the feature distance of samples to the endpoints of the same noises.
        energy: loss weight of the energy distance between samples and endpoints, in features and in pixels.
        cloned: loss weight of the cloning loss.
        seed: seed of noises and minibatches.
    """

    updates: int = 300
    batch_size: int = 256
    refresh: int = 50
    learning_rate: float = 1e-4
    decay: float = 0.98
    paired: float = 1.0
    energy: float = 10.0
    cloned: float = 10.0
    seed: int = 0


def refine(
    mdp: DenoisingMDP,
    network: nn.Module,
    plan: RefinementPlan,
    finer: DenoisingMDP,
    progress: Callable[[float], object],
) -> None:
    """Train ``network``, a clone of the teacher, in place, to match the distribution of the teacher's samples.

    Frozen parameters do not change.

    Args:
        mdp: decision process with the teacher, the base solver and a :class:`~redif_env.mdp.actions.NoiseMap`.
        network: a network trained by :func:`redif_env.students.network.cloning.clone`.
        plan: hyperparameters.
        finer: decision process with the same teacher and more steps; its base solver gives the target endpoints.
        progress: called with the loss of each update.

    Raises:
        FloatingPointError: if training diverges.
    """
    student, trained = trainable_student(mdp, network)
    optimizer = torch.optim.Adam(trained, lr=plan.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: min(1.0, (update + 1) / WARM_UP) * (1 - update / max(1, plan.updates))
    )
    minimise(network, schedule, plan.decay, _losses(mdp, student, plan, finer), progress)


def _losses(mdp: DenoisingMDP, student: Teacher, plan: RefinementPlan, finer: DenoisingMDP) -> Iterator[Tensor]:
    """Losses of successive minibatches."""
    generator = torch.Generator().manual_seed(plan.seed)
    teacher, rows = mdp.teacher, plan.batch_size
    # Latents have no feature network and are compared by value.
    features = load_features(default_features(teacher.sample_shape), teacher.sample_shape).to(teacher.device)
    for update in range(plan.updates):
        if update % plan.refresh == 0:
            examples = rollout(mdp, student, ROLLOUTS * rows, generator)
        chosen = torch.randint(len(examples.inputs), (rows,), generator=generator, device=HOST)
        shape = (rows, *teacher.sample_shape)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32, device=HOST)
        noise = noise.to(teacher.device, student.dtype)
        condition = teacher.conditions.draw(rows, generator)
        with torch.no_grad():
            endpoints = teacher.clip(solver_samples(finer, finer.teacher, noise, condition))
        samples = solver_samples(mdp, student, noise, condition)
        # Clipped, as in evaluation and rewards.
        samples = straight_through(samples, teacher.clip(samples))
        sample_features, endpoint_features = features(samples), features(endpoints)
        energy = _energy(sample_features, endpoint_features) + _energy(samples.flatten(1), endpoints.flatten(1))
        cloned = cloning_loss(student, examples.rows(chosen))
        yield plan.paired * _paired(sample_features, endpoint_features) + plan.energy * energy + plan.cloned * cloned


def solver_samples(mdp: DenoisingMDP, model: Teacher, noise: Tensor, condition: Tensor) -> Tensor:
    """Samples ``(B, *S)`` of the base solver with the predictions of ``model``, before clipping."""
    return sample(model, mdp.solver, mdp.grid, mdp.initial_sample(noise, condition), mdp.num_steps, condition)


def straight_through(values: Tensor, clipped: Tensor) -> Tensor:
    """``clipped`` with the gradient of ``values``, so that values outside the range still have a gradient."""
    return values + (clipped - values).detach()


def _paired(samples: Tensor, endpoints: Tensor) -> Tensor:
    """Mean RMSE between rows ``(B, D)``; the MSE would favour the mean of ambiguous targets."""
    return ((samples - endpoints).square().mean(dim=1) + SMALL).sqrt().mean()


def _energy(samples: Tensor, endpoints: Tensor) -> Tensor:
    """Energy distance between sets of rows ``(B, D)``, per root of the dimension."""
    return squared_mmd(KERNEL, samples, endpoints) / math.sqrt(samples.shape[1])
