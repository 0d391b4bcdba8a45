"""What an error in one prediction is worth: how far the finished sample moves by it."""

from __future__ import annotations

import torch
from torch import Tensor

from redif_env.diffusion.noise_schedulers import action_parameterization
from redif_env.diffusion.placement import HOST
from redif_env.diffusion.solvers import predict, record
from redif_env.diffusion.types import Prediction, State
from redif_env.mdp.process import DenoisingMDP
from redif_env.teachers.teacher import Teacher

STARTS, SMALL = 1024, 1 / 32
"""Noises from which outputs stray, each in a direction of its own, and how far."""


@torch.no_grad()
def sensitivities(mdp: DenoisingMDP) -> Tensor:
    """How far samples end from where they would, as a multiple of how far the network's output at one step strays.

    ``(num_steps,)``, means over ``STARTS`` noises and directions: of a root mean square, most would come from the few
    ways that part for good. All other predictions are the teacher's. The output is in the form of actions
    (``noise_schedulers.action_parameterization``); the changes are small, so that these are slopes.
    """
    teacher, generator = mdp.teacher, torch.Generator().manual_seed(0)
    shape = (STARTS, *teacher.sample_shape)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32, device=HOST).to(teacher.device)
    state = mdp.initial(noise, None, teacher.conditions.draw(STARTS, generator))
    end, found = finished(mdp, teacher, state), []
    for _ in range(mdp.num_steps):
        told = predict(teacher, state)
        strayed = SMALL * torch.randn(shape, generator=generator, dtype=torch.float32, device=HOST).to(told.x)
        moved = _stepped(mdp, record(state, _answer(mdp, told, strayed)))
        apart = (finished(mdp, teacher, moved) - end).flatten(1).norm(dim=1)
        found.append((apart / strayed.flatten(1).norm(dim=1)).mean())
        state = _stepped(mdp, told)
    return torch.stack(found).to(HOST).double()


def sensitivity_calls(num_steps: int) -> int:
    """Network calls of :func:`sensitivities`, were it a teacher of one call a prediction."""
    return STARTS * (2 * num_steps + num_steps * (num_steps - 1) // 2)


def finished(mdp: DenoisingMDP, model: Teacher, state: State) -> Tensor:
    """Where the base solver leads from ``state`` by the predictions of ``model``: ``(B, *S)``, not yet clipped."""
    while bool((state.steps_left > 0).any()):
        state = _stepped(mdp, predict(model, state))
    return state.x


def _stepped(mdp: DenoisingMDP, told: State) -> State:
    """The base solver's step by the newest prediction."""
    nothing = torch.zeros(len(told.x), mdp.action_size, device=HOST)
    return mdp.advance(told, mdp.decode(told, nothing))


def _answer(mdp: DenoisingMDP, told: State, strayed: Tensor) -> Prediction:
    """The newest prediction, were the network's output ``strayed`` off."""
    parameterization = action_parameterization(mdp.teacher.parameterization)
    level = parameterization.schedule.level(told.half_logsnr)
    said = Prediction(told.x0_history[:, 0], told.eps_history[:, 0])
    output = parameterization.preconditioning.write(said, level, parameterization.prediction_type) + strayed
    return parameterization.preconditioning.read(output, told.x, level, parameterization.prediction_type)
