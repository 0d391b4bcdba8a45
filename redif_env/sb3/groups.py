"""Group-relative returns for episodes of different lengths, computed at the end of a rollout."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback


@dataclass(frozen=True)
class Finished:
    """A finished episode: its last step in the rollout, its environment, its group and noise, and its return."""

    step: int
    env: int
    group: tuple[int, int]
    value: float


class GroupRelativeReturns(BaseCallback):
    """Subtracts from each episode's return the mean return of the episodes of its group with the same noise.

    The counterpart of ``GroupRelativeReward`` for adaptive step counts, where the members of a group finish at
    different times. For on-policy agents (PPO, A2C): ``agent.learn(..., callback=GroupRelativeReturns())``. The rollout
    buffer is changed before the update. Group members that finished in the previous rollout count too. An episode
    without other group members has a return of 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self._finished: list[Finished] = []
        self._previous: dict[tuple[int, int], list[float]] = {}
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        """The returns of the last rollout by group and noise."""
        return {"previous": [[list(group), values] for group, values in self._previous.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of :meth:`state_dict`."""
        self._previous = {(group[0], group[1]): values for group, values in state["previous"]}

    def _on_training_start(self) -> None:
        self.group_size = self.training_env.unwrapped.group_size
        if self.group_size < 2:
            raise ValueError("env has group_size=1, so no group has other members: make it with group_size=8")

    def _on_rollout_start(self) -> None:
        self._finished, self._step = [], 0

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        for env in np.flatnonzero(self.locals["dones"]).tolist():
            group = (env // self.group_size, infos[env]["pair"])
            self._finished.append(Finished(self._step, env, group, infos[env]["episode"]["r"]))
        self._step += 1
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        returns: dict[tuple[int, int], list[float]] = defaultdict(list)
        for episode in self._finished:
            returns[episode.group].append(episode.value)
        for episode in self._finished:
            values = returns[episode.group] + self._previous.get(episode.group, [])
            buffer.rewards[episode.step, episode.env] -= np.mean(values)
        self._previous = dict(returns)
        buffer.compute_returns_and_advantage(last_values=self.locals["values"], dones=self.locals["dones"])
