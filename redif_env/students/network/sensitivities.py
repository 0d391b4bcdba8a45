"""Sensitivity of the final sample to an error in one prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from redif_env.diffusion.noise_schedulers import action_parameterization
from redif_env.diffusion.placement import HOST
from redif_env.diffusion.solvers import predict, record
from redif_env.diffusion.types import Prediction, State
from redif_env.mdp.process import DenoisingMDP
from redif_env.teachers.teacher import Teacher

NUM_NOISES, SMALL = 1024, 1 / 32
"""Number of noises, each with its own random perturbation, and the scale of perturbations."""


@torch.no_grad()
def sensitivities(mdp: DenoisingMDP) -> Tensor:
    """Change of the final sample per change of the network output at each step, ``(num_steps,)``.

    The mean ratio of norms over ``NUM_NOISES`` noises with small random perturbations. All other predictions are the
    teacher's, and the output is in the action parameterization (``noise_schedulers.action_parameterization``). A root
    mean square would be dominated by the few trajectories that switch modes.
    """
    teacher, generator = mdp.teacher, torch.Generator().manual_seed(0)
    shape = (NUM_NOISES, *teacher.sample_shape)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32, device=HOST).to(teacher.device)
    state = mdp.initial(noise, None, teacher.conditions.draw(NUM_NOISES, generator))
    samples, ratios = solve(mdp, teacher, state), []
    for _ in range(mdp.num_steps):
        predicted = predict(teacher, state)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device=HOST)
        perturbation = SMALL * drawn.to(predicted.x)
        perturbed = _base_step(mdp, record(state, _perturbed_prediction(mdp, predicted, perturbation)))
        change = (solve(mdp, teacher, perturbed) - samples).flatten(1).norm(dim=1)
        ratios.append((change / perturbation.flatten(1).norm(dim=1)).mean())
        state = _base_step(mdp, predicted)
    return torch.stack(ratios).to(HOST).double()


def sensitivity_calls(num_steps: int) -> int:
    """Number of predictions that :func:`sensitivities` makes."""
    return NUM_NOISES * (2 * num_steps + num_steps * (num_steps - 1) // 2)


def solve(mdp: DenoisingMDP, model: Teacher, state: State) -> Tensor:
    """Final samples ``(B, *S)`` of the base solver from ``state`` with predictions of ``model``, before clipping."""
    while bool((state.steps_left > 0).any()):
        state = _base_step(mdp, predict(model, state))
    return state.x


def _base_step(mdp: DenoisingMDP, state: State) -> State:
    """The step of the base solver with the newest prediction."""
    zero = torch.zeros(len(state.x), mdp.action_size, device=HOST)
    return mdp.advance(state, mdp.decode(state, zero))


def _perturbed_prediction(mdp: DenoisingMDP, state: State, perturbation: Tensor) -> Prediction:
    """The newest prediction with ``perturbation`` added to the network output."""
    parameterization = action_parameterization(mdp.teacher.parameterization)
    level = parameterization.schedule.level(state.half_logsnr)
    prediction = Prediction(state.x0_history[:, 0], state.eps_history[:, 0])
    output = parameterization.preconditioning.write(prediction, level, parameterization.prediction_type) + perturbation
    return parameterization.preconditioning.read(output, state.x, level, parameterization.prediction_type)
