"""Early stopping of updates on the exact KL divergence of the policy."""

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
    """KL divergence ``(B,)`` of actions in nats, summed over dimensions."""
    return kl_divergence(old, new).sum(dim=1)


class AnalyticKLStop(BaseCallback):
    """Ends an update of PPO when the mean KL divergence from the rollout policy exceeds ``target``.

    The ``target_kl`` of PPO is estimated from ratios; if log-probabilities are means over thousands of dimensions, the
    estimate is below float32 resolution. Here the KL divergence of the two Gaussians is computed. The update is ended
    by setting the agent's ``target_kl`` so that the next minibatch exceeds it.

    Args:
        target: maximum mean KL divergence in nats, above 0.
        every: minibatches between two checks.
        rows: states of the rollout to average over.
    """

    def __init__(self, target: float, every: int = 1, rows: int = 128) -> None:
        super().__init__()
        if not target > 0 or every < 1 or rows < 1:
            raise ValueError(f"target, every and rows must be above 0, got {target}, {every} and {rows}")
        self.target, self.every, self.rows = target, every, rows
        self.updates, self.stops = 0, 0
        self._obs: dict[str, Tensor] = {}
        self._old: Normal | None = None

    def _on_training_start(self) -> None:
        agent, policy = self.model, self.model.policy
        if not isinstance(agent, PPO) or not isinstance(policy, StudentPolicy):
            raise ValueError(
                f"agent is a {type(agent).__name__} with a {type(policy).__name__}: only PPO with a StudentPolicy is "
                "supported"
            )
        policy.optimizer.register_step_post_hook(self._after_update)

    def _on_step(self) -> bool:
        return True

    @torch.no_grad()
    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, PPO)
        buffer = self.model.rollout_buffer
        chosen = np.linspace(0, buffer.buffer_size * buffer.n_envs - 1, self.rows).astype(int)
        self._obs = rows_of(buffer, chosen, self.model.device)
        self._old = self._policy.get_distribution(self._obs).distribution
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
        kl = divergence(self._old, self._policy.get_distribution(self._obs).distribution).mean().item()
        self.logger.record("train/analytic_kl", kl)
        if kl > self.target:
            self.stops += 1
            self.model.target_kl = -1.0  # type: ignore[union-attr]
