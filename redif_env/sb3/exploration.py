"""How widely a network student explores: as far in the sample at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from redif_env.actions import NoiseMap
from redif_env.mdp import DenoisingMDP


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
    """How far a step of the base solver lands from zero for actions of 1, from where those of 0 land at zero.

    ``(num_steps,)``: steps are linear in the prediction, so this is their slope.
    """
    shape, schedule = mdp.teacher.sample_shape, mdp.teacher.schedule
    state = mdp.initial(torch.zeros(1, *shape, device=mdp.teacher.device))
    zero = torch.zeros(1, mdp.action_size, device=mdp.teacher.device)
    one = torch.cat([zero[:, :1], torch.ones_like(zero[:, 1:])], dim=1)
    gains = []
    for _ in range(mdp.num_steps):
        ends = [mdp.answered(state, action) for action in (one, zero)]
        landed, state = (mdp.advance(end, mdp.decode(end, zero)) for end in ends)
        gains.append(schedule.normalised(landed.x, landed.half_logsnr).square().mean().sqrt())
    return torch.stack(gains).double().cpu()
