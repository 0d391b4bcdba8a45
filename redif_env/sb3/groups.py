"""Group-relative rewards where group members finish at different times: subtracted once a rollout is complete."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback


@dataclass(frozen=True)
class Finished:
    """One finished episode: where it ended in the rollout, what it started from, and its return."""

    step: int
    env: int
    start: tuple[int, int]
    value: float


class GroupRelativeReturns(BaseCallback):
    """Subtract from each episode's return the mean return of its group's episodes from the same noise.

    It does what ``GroupRelativeReward`` does where group members finish together, for adaptive step counts and
    on-policy agents (PPO, A2C): ``agent.learn(..., callback=GroupRelativeReturns())``. The subtraction is made in the
    rollout buffer before the agent learns from it. Episodes that finished in the rollout before count too; the relative
    return of an episode that finished first and alone is zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self._finished: list[Finished] = []
        self._known: dict[tuple[int, int], list[float]] = {}
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        """The last rollout's returns by noise, which the next one's are compared with."""
        return {"known": [[list(start), values] for start, values in self._known.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._known = {(start[0], start[1]): values for start, values in state["known"]}

    def _on_training_start(self) -> None:
        self.group_size = self.training_env.unwrapped.group_size
        if self.group_size < 2:
            raise ValueError("env has group_size=1, so there are no group members to compare with: make it with 8")

    def _on_rollout_start(self) -> None:
        self._finished, self._step = [], 0

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        for env in np.flatnonzero(self.locals["dones"]).tolist():
            start = (env // self.group_size, infos[env]["pair"])
            self._finished.append(Finished(self._step, env, start, infos[env]["episode"]["r"]))
        self._step += 1
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        returns: dict[tuple[int, int], list[float]] = defaultdict(list)
        for episode in self._finished:
            returns[episode.start].append(episode.value)
        for episode in self._finished:
            members = returns[episode.start] + self._known.get(episode.start, [])
            buffer.rewards[episode.step, episode.env] -= np.mean(members)
        self._known = dict(returns)
        buffer.compute_returns_and_advantage(last_values=self.locals["values"], dones=self.locals["dones"])
