"""Reward wrappers: thin, and aware of more than the scalar reward."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray

from redif_env.envs import ReDiFVectorEnv


class GroupRelativeReward(VectorWrapper):
    """Each reward minus its group's mean: how much better the actions were than their siblings from the same noise.

    What a sample's error is depends mostly on the noise drawn; within a group of sub-environments that share it, only
    the actions differ. The agent needs no change. ``info["rewards"]`` keeps the terms as they were.

    Args:
        env: a :class:`~redif_env.envs.ReDiFVectorEnv` with ``group_size`` of at least 2, wrapped or not.

    Raises:
        ValueError: for another environment, or groups of one, whose relative reward is always zero.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, ReDiFVectorEnv):
            raise ValueError(f"env must be a ReDiFVectorEnv, wrapped or not, got {env.unwrapped!r}")
        self.group_size = env.unwrapped.group_size
        if self.group_size < 2:
            raise ValueError(
                "env has group_size=1, so every relative reward would be 0: construct it with group_size=8"
            )

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        groups = rewards.reshape(-1, self.group_size)
        relative = (groups - groups.mean(axis=1, keepdims=True)).reshape(-1)
        return observations, relative, terminated, truncated, infos
