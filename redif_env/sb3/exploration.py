"""Exploration of student networks: equal noise in the sample at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST
from redif_env.mdp.actions import NoiseMap
from redif_env.mdp.process import DenoisingMDP

DIRECTIONS, SMALL = 64, 1 / 32
"""Number of random perturbations of the output, and their scale."""


def student_exploration(mdp: DenoisingMDP, sample_std: float, shift_std: float) -> Tensor:
    """Standard deviations ``(num_steps, 2)`` of a :class:`~redif_env.sb3.StudentPolicy`, in units of its actions.

    The effect of the network's output on the next sample differs several times between levels. These deviations give
    every step the same exploration noise in the sample.

    Args:
        mdp: decision process of training, with a :class:`~redif_env.mdp.actions.NoiseMap`.
        sample_std: root mean square of the change of the next sample, at variance-preserving scale.
        shift_std: standard deviation of the shift of the step size, in logits.
    """
    action_map = mdp.action_map
    assert isinstance(action_map, NoiseMap)
    outputs = sample_std / step_gains(mdp)
    return torch.stack([torch.full_like(outputs, shift_std / action_map.max_shift), outputs], dim=1)


@torch.no_grad()
def step_gains(mdp: DenoisingMDP) -> Tensor:
    """Change of the next sample per change of the action's output at each base solver step, ``(num_steps,)``.

    Ratios of root mean squares over ``DIRECTIONS`` small random perturbations around zero; a step is linear in the
    prediction unless it clips.
    """
    schedule, generator = mdp.teacher.schedule, torch.Generator().manual_seed(0)
    shape = (DIRECTIONS, *mdp.teacher.sample_shape)
    state = mdp.initial(torch.zeros(shape, dtype=torch.float32, device=mdp.teacher.device))
    zero = torch.zeros(DIRECTIONS, mdp.action_size, dtype=torch.float32, device=HOST)
    perturbation = torch.randn(zero.shape, generator=generator, dtype=torch.float32, device=HOST) * SMALL
    perturbation[:, 0] = 0  # the step size
    gains = []
    for _ in range(mdp.num_steps):
        predicted = [mdp.with_action_prediction(state, action) for action in (perturbation, zero)]
        perturbed, state = (mdp.advance(each, mdp.decode(each, zero)) for each in predicted)
        change = schedule.normalised(perturbed.x, perturbed.half_logsnr) - schedule.normalised(
            state.x, state.half_logsnr
        )
        gains.append(change.norm().to(HOST) / perturbation.norm())
    return torch.stack(gains).double()
