"""Rows of a rollout buffer by step of the episode, and advantage normalisation per step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor


def steps_of_buffer(buffer: DictRolloutBuffer) -> NDArray[np.int64]:
    """The step of the episode, from 0, of each row ``(n_steps, num_envs)`` of a buffer.

    Raises:
        ValueError: if the observations are not of ``observation="sample"``.
    """
    if not isinstance(buffer, DictRolloutBuffer) or "nfe_left" not in buffer.observations:
        raise ValueError("agent's observations have no samples: make the environment with observation='sample'")
    most = buffer.observation_space["nfe_left"].high[0]  # type: ignore[attr-defined]
    steps: NDArray[np.int64] = (most - buffer.observations["nfe_left"][..., 0]).astype(np.int64)
    return steps


def levels_of(steps: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Each step that occurs, with the mask of its rows."""
    for step in np.unique(steps).tolist():
        yield step, steps == step


def rows_of(buffer: DictRolloutBuffer, chosen: NDArray[np.int64], device: torch.device) -> dict[str, Tensor]:
    """Observations at the ``chosen`` indices of the flattened buffer."""
    flat = {name: values.reshape(-1, *values.shape[2:])[chosen] for name, values in buffer.observations.items()}
    return {name: torch.as_tensor(values, device=device) for name, values in flat.items()}


class LevelNormalisedAdvantages(BaseCallback):
    """Normalises advantages before each update to mean 0 and standard deviation 1, separately per step of the episode.

    Agents normalise over a minibatch, in which steps with large rewards dominate. Make the agent with
    ``normalize_advantage=False``.
    """

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        advantages = buffer.advantages
        for _, rows in levels_of(steps_of_buffer(buffer)):
            own = advantages[rows]
            advantages[rows] = (own - own.mean()) / (own.std() + 1e-8)
