"""Health checks of runs with a :class:`~redif_env.sb3.StudentPolicy`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from redif_env.sb3.levels import levels_of, rows_of, steps_of_buffer
from redif_env.sb3.student_policy import StudentPolicy
from redif_env.training.runs import UnhealthyRunError

RATIO_TOLERANCE = 1e-5


def divergence(old: Normal, new: Normal) -> Tensor:
    """Kullback-Leibler divergence of whole actions ``(B,)`` in nats: the sum over their dimensions."""
    return kl_divergence(old, new).sum(dim=1)


class HealthCheck(BaseCallback):
    """Checks and logs the state of training. Put it first in the list of callbacks.

    Checks: before the first update, the importance ratio of the rollout's actions is 1 to within 1e-5, so rollouts and
    updates use the same policy; after every update, all parameters are finite.

    Logs: ``health/reward_std``, the standard deviation of rewards, and ``health/reward_std_in_group``, that within
    groups of equal noise. For each step of the episode (suffix ``_0`` for the first): ``health/exploration``, the
    standard deviation of the network output; ``health/kl``, the KL divergence of the last update in nats per action;
    and, every ``every`` rollouts, ``health/gradient``, the norm of the policy gradient.

    Args:
        every: rollouts between two gradient norms; each costs a backward pass.
        rows: states per step of the episode for norms and divergences.

    Raises:
        UnhealthyRunError: during ``learn``, if a check fails.
    """

    def __init__(self, every: int = 20, rows: int = 64) -> None:
        super().__init__()
        if every < 1 or rows < 1:
            raise ValueError(f"every and rows must be at least 1, got {every} and {rows}")
        self.every, self.rows = every, rows
        self._rollouts = 0
        self._before: dict[int, tuple[dict[str, Tensor], Normal]] = {}

    def _on_training_start(self) -> None:
        if not isinstance(self.model.policy, StudentPolicy):
            raise ValueError(f"agent has a {type(self.model.policy).__name__}: health checks are for a StudentPolicy")

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._check_finite()
        self._log_divergence()

    def _on_training_end(self) -> None:
        self._check_finite()

    def _on_rollout_end(self) -> None:
        if self._rollouts == 0:
            self._check_ratio()
        self._log_rewards()
        self._store_distributions()
        if self._rollouts % self.every == 0:
            self._log_gradients()
        self._rollouts += 1

    @property
    def _policy(self) -> StudentPolicy:
        assert isinstance(self.model.policy, StudentPolicy)
        return self.model.policy

    def _check_finite(self) -> None:
        broken = [name for name, values in self._policy.state_dict().items() if not bool(values.isfinite().all())]
        if broken:
            raise UnhealthyRunError(
                f"the policy is not finite after {self.num_timesteps:,} steps (first in {broken[0]}): lower the "
                "learning rate or max_grad_norm"
            )

    @torch.no_grad()
    def _check_ratio(self) -> None:
        """Compare log-probabilities in the batches of the rollout, so that rounding is the same."""
        buffer, worst = self.model.rollout_buffer, 0.0
        for index in range(buffer.buffer_size):
            obs = {name: values[index] for name, values in buffer.observations.items()}
            actions = torch.as_tensor(buffer.actions[index], device=self.model.device)
            log_prob = self._policy.evaluate_actions(obs_as_tensor(obs, self.model.device), actions)[1]
            old = torch.as_tensor(buffer.log_probs[index], device=self.model.device)
            worst = max(worst, ((log_prob - old).exp() - 1).abs().max().item())
        self.logger.record("health/first_ratio_error", worst)
        if not worst <= RATIO_TOLERANCE:
            raise UnhealthyRunError(
                f"the importance ratio before the first update is off 1 by {worst:.2g} (allowed: {RATIO_TOLERANCE}): "
                "the policy differs between rollouts and updates; disable randomness and changes of precision in it"
            )

    def _log_rewards(self) -> None:
        rewards = self.model.rollout_buffer.rewards
        size = self.training_env.unwrapped.group_size
        groups = rewards.reshape(len(rewards), -1, size)
        self.logger.record("health/reward_std", float(rewards.std()))
        if size > 1:
            self.logger.record("health/reward_std_in_group", float(groups.std(axis=2).mean()))

    @torch.no_grad()
    def _store_distributions(self) -> None:
        """Store the action distributions before the update, and log their exploration."""
        self._before = {}
        for step, chosen in self._chosen():
            obs = rows_of(self.model.rollout_buffer, chosen, self.model.device)
            distribution = self._policy.get_distribution(obs).distribution
            self._before[step] = (obs, distribution)
            std = self._policy.log_std[step, 1].exp().item() * self._policy.settings["max_output"]
            self.logger.record(f"health/exploration_{step}", std)

    @torch.no_grad()
    def _log_divergence(self) -> None:
        for step, (obs, old) in self._before.items():
            mean = self._policy.get_distribution(obs).distribution.mean
            kl = divergence(old, Normal(mean, old.stddev)).mean().item()
            self.logger.record(f"health/kl_{step}", kl)

    def _log_gradients(self) -> None:
        buffer, device = self.model.rollout_buffer, self.model.device
        parameters = [parameter for parameter in self._policy.unet.parameters() if parameter.requires_grad]
        for step, chosen in self._chosen():
            actions, advantages = (
                torch.as_tensor(values.reshape(-1, *values.shape[2:])[chosen], device=device)
                for values in (buffer.actions, buffer.advantages)
            )
            log_prob = self._policy.evaluate_actions(rows_of(buffer, chosen, device), actions)[1]
            gradients = torch.autograd.grad((log_prob * advantages).mean(), parameters, allow_unused=True)
            norm = torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm().item()
            self.logger.record(f"health/gradient_{step}", norm)

    def _chosen(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Indices into the flattened buffer of some rows of each step of the episode."""
        for step, rows in levels_of(steps_of_buffer(self.model.rollout_buffer)):
            yield step, np.flatnonzero(rows)[: self.rows]
