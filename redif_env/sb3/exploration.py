"""How widely a network student explores: as far in the sample at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST
from redif_env.mdp.actions import NoiseMap
from redif_env.mdp.process import DenoisingMDP

DIRECTIONS, SMALL = 64, 1 / 32
"""Directions in which the outputs of an action stray, and how far, to find what comes of it."""


def student_exploration(mdp: DenoisingMDP, landing: float, shift: float) -> Tensor:
    """Standard deviations ``(num_steps, 2)`` of a :class:`~redif_env.sb3.StudentPolicy`, in units of its actions.

    Every step explores as far in the sample as every other: what the network's output does to where a step lands
    differs several times between the levels, and so does what an update of the weights does.

    Args:
        mdp: that it is trained in.
        landing: root mean square of how far a step lands from where it would without exploration, in samples of the
            size that variance-preserving schedules have.
        shift: standard deviation of the step size's shift, in logits.
    """
    action_map = mdp.action_map
    assert isinstance(action_map, NoiseMap)
    outputs = landing / landing_gains(mdp)
    return torch.stack([torch.full_like(outputs, shift / action_map.max_shift), outputs], dim=1)


@torch.no_grad()
def landing_gains(mdp: DenoisingMDP) -> Tensor:
    """How far a step of the base solver lands from where it would, as a multiple of how far its action's outputs stray.

    ``(num_steps,)``, of root mean squares over ``DIRECTIONS`` random directions. Steps are linear in the prediction,
    but for those that clip it: the changes are small, so that these are their slopes at zero.
    """
    schedule, generator = mdp.teacher.schedule, torch.Generator().manual_seed(0)
    state = mdp.initial(
        torch.zeros(DIRECTIONS, *mdp.teacher.sample_shape, dtype=torch.float32, device=mdp.teacher.device)
    )
    zero = torch.zeros(DIRECTIONS, mdp.action_size, dtype=torch.float32, device=HOST)
    strayed = torch.randn(zero.shape, generator=generator, dtype=torch.float32, device=HOST) * SMALL
    strayed[:, 0] = 0  # the step size
    gains = []
    for _ in range(mdp.num_steps):
        ends = [mdp.with_action_prediction(state, action) for action in (strayed, zero)]
        moved, state = (mdp.advance(end, mdp.decode(end, zero)) for end in ends)
        apart = schedule.normalised(moved.x, moved.half_logsnr) - schedule.normalised(state.x, state.half_logsnr)
        gains.append(apart.norm().to(HOST) / strayed.norm())
    return torch.stack(gains).double()
