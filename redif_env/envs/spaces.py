"""The Gymnasium spaces of a decision process. The process itself and its students need no Gymnasium."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium.spaces import Box, Dict

from redif_env.diffusion.placement import HOST
from redif_env.mdp.observations import BOUND, Sample
from redif_env.mdp.process import DenoisingMDP


def action_space(mdp: DenoisingMDP) -> Box:
    """One action: a flat float32 box in [-1, 1]."""
    return Box(-1.0, 1.0, (mdp.action_size,), np.float32)


def observation_space(mdp: DenoisingMDP) -> Box | Dict:
    """One observation: a flat float32 box, or a dict of boxes (:class:`~redif_env.mdp.observations.Sample`)."""
    return _sample_space(mdp) if isinstance(mdp.observation, Sample) else _vector_space(mdp)


def _vector_space(mdp: DenoisingMDP) -> Box:
    """Within [-10, 10]; where episodes have prices, the last number lies in [0, 1]."""
    low = np.full(mdp.observation_size, -BOUND, np.float32)
    high = np.full(mdp.observation_size, BOUND, np.float32)
    if mdp.prices is not None:
        low[-1], high[-1] = 0, 1
    return Box(low, high, dtype=np.float32)


def _sample_space(mdp: DenoisingMDP) -> Dict:
    schedule, rows = mdp.teacher.schedule, float(len(mdp.teacher.conditions) - 1)
    ends = schedule.half_logsnr_at(torch.tensor([0.0, 1.0], dtype=torch.float64, device=HOST))
    timesteps = schedule.timestep(torch.cat([ends, torch.full_like(ends[:1], torch.inf)])).float()
    return Dict(
        {
            "sample": Box(-np.inf, np.inf, mdp.teacher.sample_shape, np.float32),
            "timestep": Box(timesteps.min().item(), timesteps.max().item(), (1,), np.float32),
            "level": Box(-BOUND, BOUND, (1,), np.float32),
            "nfe_left": Box(0.0, float(mdp.num_steps), (1,), np.float32),
            "condition": Box(0.0, max(rows, 1.0), (1,), np.float32),
        }
    )
