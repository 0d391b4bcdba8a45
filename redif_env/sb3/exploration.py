"""Exploration of a student that is a network: equally large in the sample at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from redif_env.mdp.actions import NoiseMap
from redif_env.mdp.process import DenoisingMDP

DIRECTIONS, SMALL = 64, 1 / 32
"""Directions in which the outputs of an action are perturbed, and by how much, to measure its effect."""


def student_exploration(mdp: DenoisingMDP, target: float, shift: float) -> Tensor:
    """Standard deviations ``(num_steps, 2)`` of a :class:`~redif_env.sb3.StudentPolicy`, in units of its actions.

    Every step explores equally far in the sample: by how much the network's output moves a step's target differs by
    several times between levels, and so does the effect of an update of the weights.

    Args:
        mdp: that it is trained in.
        target: root mean square distance of a step's target from what it is without exploration, in samples of the
            size that variance-preserving schedules have.
        shift: standard deviation of the step size's shift, in logits.
    """
    action_map = mdp.action_map
    assert isinstance(action_map, NoiseMap)
    outputs = target / target_gains(mdp)
    return torch.stack([torch.full_like(outputs, shift / action_map.max_shift), outputs], dim=1)


@torch.no_grad()
def target_gains(mdp: DenoisingMDP) -> Tensor:
    """By how much the target of a step of the base solver moves, relative to a change of its action's outputs.

    ``(num_steps,)``, of root mean squares over ``DIRECTIONS`` random directions. Steps are linear in the prediction,
    except those that clip it: the changes are small, so that these are their slopes at zero.
    """
    schedule, generator = mdp.teacher.schedule, torch.Generator().manual_seed(0)
    state = mdp.initial(torch.zeros(DIRECTIONS, *mdp.teacher.sample_shape, device=mdp.teacher.device))
    zero = torch.zeros(DIRECTIONS, mdp.action_size, device=mdp.teacher.device)
    changed = torch.randn(zero.shape, generator=generator).to(zero) * SMALL
    changed[:, 0] = 0  # the step size
    gains = []
    for _ in range(mdp.num_steps):
        ends = [mdp.with_action_prediction(state, action) for action in (changed, zero)]
        moved, state = (mdp.advance(end, mdp.decode(end, zero)) for end in ends)
        apart = schedule.normalised(moved.x, moved.half_logsnr) - schedule.normalised(state.x, state.half_logsnr)
        gains.append(apart.norm() / changed.norm())
    return torch.stack(gains).double().cpu()
