"""A Stable-Baselines3 policy whose exploration comes in pairs of opposite sign."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
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

    action_dist: Distribution

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if type(self.action_dist) is not DiagGaussianDistribution:
            raise ValueError(
                f"AntitheticPolicy has a {type(self.action_dist).__name__}: it needs a Box of actions and use_sde=False"
            )
        self.action_dist = AntitheticGaussian(get_action_dim(self.action_space))


class AntitheticGaussian(DiagGaussianDistribution):
    """A Gaussian whose samples come in pairs around the mean; a last row without a partner has noise of its own."""

    def sample(self) -> Tensor:
        """Actions ``(B, A)``: the noise of row 2k + 1 is minus that of row 2k."""
        actions, mean = super().sample(), self.mode()
        paired = len(actions) // 2 * 2
        actions[1:paired:2] = mean[1:paired:2] - (actions[0:paired:2] - mean[0:paired:2])
        return actions
