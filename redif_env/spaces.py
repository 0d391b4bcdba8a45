"""The Gymnasium spaces of a decision process. The process itself and its students need no Gymnasium."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box

from redif_env.mdp import DenoisingMDP
from redif_env.observations import BOUND


def action_space(mdp: DenoisingMDP) -> Box:
    """One action: a flat float32 box in [-1, 1]."""
    return Box(-1.0, 1.0, (mdp.action_size,), np.float32)


def observation_space(mdp: DenoisingMDP) -> Box:
    """One observation: a flat float32 box; where episodes have prices, the last number lies in [0, 1]."""
    low = np.full(mdp.observation_size, -BOUND, np.float32)
    high = np.full(mdp.observation_size, BOUND, np.float32)
    if mdp.prices is not None:
        low[-1], high[-1] = 0, 1
    return Box(low, high, dtype=np.float32)
