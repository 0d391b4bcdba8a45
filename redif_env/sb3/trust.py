"""A trust region on the policy itself: an early stop on the divergence that can be computed, not estimated."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from redif_env.sb3.levels import rows_of
from redif_env.sb3.student_policy import StudentPolicy


def divergence(old: Normal, new: Normal) -> Tensor:
    """Kullback-Leibler divergence of whole actions ``(B,)``, in nats: summed over their numbers."""
    return kl_divergence(old, new).sum(dim=1)


class AnalyticKLStop(BaseCallback):
    """End an update of PPO's once the policy has moved ``target`` nats on average from the one that acted.

    PPO's own ``target_kl`` is estimated from ratios, and where log-probabilities are a mean over thousands of numbers
    it is below what float32 can tell from zero. Here the two Gaussians are compared, on ``rows`` states of the rollout,
    after every ``every`` minibatches. The agent is stock: the stop is its ``target_kl``, set so that the next minibatch
    exceeds it.

    Args:
        target: of the mean divergence, above 0.
        every: minibatches between two looks.
        rows: states of the rollout that are looked at.
    """

    def __init__(self, target: float, every: int = 1, rows: int = 128) -> None:
        super().__init__()
        if not target > 0 or every < 1 or rows < 1:
            raise ValueError(f"target, every and rows must be above 0, got {target}, {every} and {rows}")
        self.target, self.every, self.rows = target, every, rows
        self.updates, self.stops = 0, 0
        self._seen: dict[str, Tensor] = {}
        self._old: Normal | None = None

    def _on_training_start(self) -> None:
        agent, policy = self.model, self.model.policy
        if not isinstance(agent, PPO) or not isinstance(policy, StudentPolicy):
            raise ValueError(
                f"agent is a {type(agent).__name__} with a {type(policy).__name__}: only PPO with a StudentPolicy has "
                "updates that can be stopped so"
            )
        policy.optimizer.register_step_post_hook(self._after_update)

    def _on_step(self) -> bool:
        return True

    @torch.no_grad()
    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, PPO)
        buffer = self.model.rollout_buffer
        chosen = np.linspace(0, buffer.buffer_size * buffer.n_envs - 1, self.rows).astype(int)
        self._seen = rows_of(buffer, chosen, self.model.device)
        self._old = self._policy.get_distribution(self._seen).distribution
        self.model.target_kl, self.updates = None, 0

    @property
    def _policy(self) -> StudentPolicy:
        assert isinstance(self.model.policy, StudentPolicy)
        return self.model.policy

    @torch.no_grad()
    def _after_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._old is None:
            return
        self.updates += 1
        if self.updates % self.every:
            return
        moved = divergence(self._old, self._policy.get_distribution(self._seen).distribution).mean().item()
        self.logger.record("train/analytic_kl", moved)
        if moved > self.target:
            self.stops += 1
            self.model.target_kl = -1.0  # type: ignore[union-attr]
