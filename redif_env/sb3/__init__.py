"""Stable-Baselines3: the adapter, and what its stock agents need besides. The only place that imports it."""

from redif_env.sb3.checkpoints import Checkpointer
from redif_env.sb3.groups import GroupRelativeReturns
from redif_env.sb3.vec_env import ReDiFVecEnv, make_vec_env

__all__ = ["Checkpointer", "GroupRelativeReturns", "ReDiFVecEnv", "make_vec_env"]
