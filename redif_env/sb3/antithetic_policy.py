"""A Stable-Baselines3 policy whose exploration comes in pairs of opposite sign."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor


class AntitheticPolicy(ActorCriticPolicy):
    """An ``MlpPolicy`` that explores in antithetic pairs: the noise of sub-environment 2k + 1 is minus that of 2k.

    For on-policy agents and environments with an even ``group_size``, where both members of a pair start from the same
    noise and stay in step::

        PPO(AntitheticPolicy, make_vec_env(64, group_size=8), ...)

    Each action has the distribution that it would have alone, so ratios and updates are PPO's. Over a pair, what is
    even in the noise (the return at the mean, the curvature) cancels in the policy gradient, which lowers its variance
    at no cost (Salimans et al. 2017, "Evolution strategies as a scalable alternative to reinforcement learning",
    section 2, mirrored sampling). A last sub-environment without a partner explores alone.

    Raises:
        ValueError: if the actions are not a plain Gaussian's (a space that is no ``Box``, or ``use_sde=True``).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if type(self.action_dist) is not DiagGaussianDistribution:
            raise ValueError(
                f"AntitheticPolicy has a {type(self.action_dist).__name__}: it needs a Box of actions and use_sde=False"
            )

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions ``(B, A)``, values and log-probabilities of a rollout's step."""
        actions, values, log_prob = super().forward(obs, deterministic)
        pairs = len(actions) // 2
        if deterministic or not pairs:
            return actions, values, log_prob
        distribution = self.get_distribution(obs)
        mean = distribution.mode().reshape(actions.shape)
        noise = actions - mean
        noise[1 : 2 * pairs : 2] = -noise[0 : 2 * pairs : 2]
        actions = mean + noise
        return actions, values, distribution.log_prob(actions.flatten(1))
