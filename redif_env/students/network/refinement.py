"""Refinement of a cloned network: by the gradient through its own steps, until its samples are distributed as they are
to be.

A clone that is smaller than its teacher errs everywhere, if little, and its samples as a set drift from the teacher's,
however long it is cloned: what it is asked for is the error of single predictions. This needs what reinforcement
learning does not: a network, steps and a distance that can be differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redif_env.diffusion.placement import HOST
from redif_env.mdp.process import DenoisingMDP
from redif_env.measures.features import default_features, load_features
from redif_env.measures.kernels import EnergyKernel, squared_discrepancy
from redif_env.students.network.cloning import clone_loss, descend, learner, rollout, step_weights
from redif_env.students.network.sensitivities import finished
from redif_env.teachers.teacher import Teacher

WARM_UP = 20
"""Updates until the learning rate is what it is to be: Adam's first ones are as long on a clone as anywhere."""
ROLLOUTS = 4
"""Noises whose ways are followed for the states to be cloned on, as a multiple of a minibatch."""
KERNEL = EnergyKernel()
SMALL = 1e-12
"""Under a root, so that it has a gradient at zero."""


@dataclass(frozen=True)
class RefinementPlan:
    """How a network is refined.

    ``updates`` minibatches of ``batch_size`` fresh noises: the endpoints of noises that come again are learned by heart
    (of 16,384, in 200 updates). The ``learning_rate`` of Adam falls linearly to zero; the weights are a moving average
    (``decay``); chance comes from ``seed``. The loss is the sum of three, each times its weight: ``paired``, the
    distance of samples from the endpoints of their own noises, in features; ``energy``, the energy distance between
    samples and endpoints as sets, in features and in pixels; ``cloned``, the error of cloning, on states that are drawn
    anew after every ``refresh`` updates, with ``by_sensitivity`` weighed as a ``CloningPlan``
    says.
    """

    updates: int = 300
    batch_size: int = 256
    refresh: int = 50
    learning_rate: float = 1e-4
    decay: float = 0.98
    paired: float = 1.0
    energy: float = 10.0
    cloned: float = 10.0
    by_sensitivity: bool = False
    seed: int = 0


def refine(
    mdp: DenoisingMDP,
    network: nn.Module,
    plan: RefinementPlan,
    finer: DenoisingMDP,
    progress: Callable[[float], object],
) -> None:
    """Train ``network``, a clone of the teacher, in place, by the gradient of what its samples look like.

    Only parameters that require a gradient are moved.

    Args:
        mdp: with the teacher, the base solver and a :class:`~redif_env.mdp.actions.NoiseMap`.
        network: as :func:`redif_env.students.network.cloning.clone` leaves it.
        plan: how much of it.
        finer: with the same teacher and more steps: what it makes of a noise is the endpoint to come near.
        progress: called with the loss of each update.

    Raises:
        FloatingPointError: if it diverged.
    """
    student, trained = learner(mdp, network)
    optimizer = torch.optim.Adam(trained, lr=plan.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: min(1.0, (update + 1) / WARM_UP) * (1 - update / max(1, plan.updates))
    )
    descend(network, schedule, plan.decay, _losses(mdp, student, plan, finer), progress)


def _losses(mdp: DenoisingMDP, student: Teacher, plan: RefinementPlan, finer: DenoisingMDP) -> Iterator[Tensor]:
    """Of one minibatch after the other, with a gradient to the student's weights."""
    generator = torch.Generator().manual_seed(plan.seed)
    teacher, rows = mdp.teacher, plan.batch_size
    # Of latents no features are known here: they are compared as they are.
    features = load_features(default_features(teacher.sample_shape), teacher.sample_shape).to(teacher.device)
    weights = step_weights(mdp, plan.by_sensitivity)
    for update in range(plan.updates):
        if update % plan.refresh == 0:
            lesson = rollout(mdp, student, ROLLOUTS * rows, weights, generator)
        visited = torch.randint(len(lesson.inputs), (rows,), generator=generator, device=HOST)
        shape = (rows, *teacher.sample_shape)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32, device=HOST)
        noise = noise.to(teacher.device, student.dtype)
        condition = teacher.conditions.draw(rows, generator)
        with torch.no_grad():
            endpoints = landed(finer, finer.teacher, noise, condition)
        samples = landed(mdp, student, noise, condition)
        # Judges and rewards clip, so what is paid for here is what a clipped sample shows.
        shown, wanted = straight_through(samples, teacher.clip(samples)), teacher.clip(endpoints)
        seen, asked = features(shown), features(wanted)
        energy = _energy(seen, asked) + _energy(shown.flatten(1), wanted.flatten(1))
        cloned = clone_loss(student, lesson.rows(visited))
        yield plan.paired * _paired(seen, asked) + plan.energy * energy + plan.cloned * cloned


def landed(mdp: DenoisingMDP, model: Teacher, noise: Tensor, condition: Tensor) -> Tensor:
    """Where the base solver leads from ``noise`` ``(B, *S)`` by the predictions of ``model``, not yet clipped."""
    return finished(mdp, model, mdp.initial(noise, None, condition))


def straight_through(values: Tensor, clipped: Tensor) -> Tensor:
    """``clipped`` going forward; going back as if nothing was, so that what lies outside does not get stuck there."""
    return values + (clipped - values).detach()


def _paired(seen: Tensor, asked: Tensor) -> Tensor:
    """Mean distance between rows: not its square, by which what is far off would be drawn to the middle."""
    return ((seen - asked).square().mean(dim=1) + SMALL).sqrt().mean()


def _energy(seen: Tensor, asked: Tensor) -> Tensor:
    """Energy distance between sets of rows ``(B, D)``, by the root mean square over dimensions."""
    return squared_discrepancy(KERNEL, seen, asked) / math.sqrt(seen.shape[1])
