"""A baseline that knows the teacher's endpoint: what an action found when its turn came, it is not to blame for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from redif_env.envs.groups import relative
from redif_env.mdp.process import DenoisingMDP
from redif_env.measures.distances import Distance, root_mean_square
from redif_env.rewards.feature import feature_distance
from redif_env.teachers.teacher import Teacher

Array = NDArray[np.float64]


class PrivilegedBaseline(BaseCallback):
    """Before each update: take from every advantage what could be foretold from where its action began.

    In training the endpoint is known, which the policy never sees. How far the teacher's prediction of the clean sample
    is from it before an action is chosen foretells most of the return in an episode's last steps: what siblings'
    returns differ by is then the doing of the actions before, and drowns the little that the last ones do. That
    distance does not depend on the action, so it is a baseline, and the gradient's expectation stays what it was
    (Williams 1992); that a critic may know more than the actor is Pinto et al. 2018. It is linear: at each step of the
    episode the coefficient is that of least squares over the rollouts before, of which the newer count more.

    For on-policy agents (PPO, A2C) whose rollouts are whole episodes:
    ``agent.learn(..., callback=PrivilegedBaseline())``.

    Args:
        distance: of predictions and endpoints ``(B, *S)``; if not given, of what they show in the features that
            :class:`~redif_env.rewards.feature.FeatureAlignment` looks at, or the root mean square of latents.
        decay: of the sums that the coefficients are made of, a rollout.

    Raises:
        ValueError: when training starts, if episodes differ in length, rollouts are not whole episodes, or actions
            bring the prediction.
    """

    def __init__(self, distance: Distance | None = None, decay: float = 0.9) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        self.distance, self.decay = distance, decay
        self._sums: Array | None = None  # (2, num_steps): of distance times advantage, of distance squared
        self._found: list[Array] = []

    @property
    def coefficients(self) -> Array:
        """What a unit of distance foretells of the advantage at each step, ``(num_steps,)``; 0 if nothing is known."""
        if self._sums is None:
            return np.zeros(self._num_steps)
        covariance, variance = self._sums
        return np.divide(covariance, variance, out=np.zeros_like(variance), where=variance > 0)

    def state_dict(self) -> dict[str, Any]:
        """The sums over past rollouts."""
        return {"sums": None if self._sums is None else self._sums.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._sums = None if state["sums"] is None else np.array(state["sums"])

    def _on_training_start(self) -> None:
        assert isinstance(self.model, OnPolicyAlgorithm)
        core = self.training_env.unwrapped
        mdp, self._core = core.mdp, core
        self._num_steps = mdp.num_steps
        check_privileged(mdp)
        if self.model.n_steps % mdp.num_steps:
            raise ValueError(
                f"agent has n_steps={self.model.n_steps}, which are no whole episodes of num_steps={mdp.num_steps}: "
                "make it with a multiple"
            )
        self._distance = self.distance or default_distance(mdp.teacher)

    def _on_rollout_start(self) -> None:
        self._found = []
        self._note()

    def _on_step(self) -> bool:
        assert isinstance(self.model, OnPolicyAlgorithm)
        # What follows the last step is the next rollout's.
        if len(self._found) < self.model.n_steps:
            self._note()
        return True

    def _note(self) -> None:
        self._found.append(self._distance(*self._core.privileged_information()).cpu().double().numpy())

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, OnPolicyAlgorithm)
        advantages = self.model.rollout_buffer.advantages
        # Without groups, all of a step are compared with each other.
        size = self._core.group_size if self._core.group_size > 1 else advantages.shape[1]
        found = relative(np.stack(self._found), size)
        blame = relative(advantages.astype(np.float64), size)
        steps = np.arange(len(found)) % self._num_steps
        advantages -= (self.coefficients[steps, None] * found).astype(advantages.dtype)
        self._remember(np.stack([found * blame, found**2]))

    def _remember(self, products: Array) -> None:
        """Add a rollout's products ``(2, n_steps, num_envs)`` to the sums."""
        sums = products.reshape(2, -1, self._num_steps, products.shape[2]).mean(axis=(1, 3))
        self._sums = sums if self._sums is None else self.decay * self._sums + (1 - self.decay) * sums


def default_distance(teacher: Teacher) -> Distance:
    """In features of what samples show; of latents themselves, which would have to be decoded at every step."""
    return feature_distance(teacher) if teacher.decoder is None else root_mean_square


def check_privileged(mdp: DenoisingMDP) -> None:
    """Refuse what a :class:`PrivilegedBaseline` cannot be used for.

    Raises:
        ValueError: if episodes differ in length, or actions bring the prediction.
    """
    if mdp.adaptive:
        raise ValueError(
            f"env has min_steps={mdp.min_steps} below num_steps={mdp.num_steps}, so siblings are at different "
            "steps: leave PrivilegedBaseline out"
        )
    if mdp.action_map.predicts:
        raise ValueError(
            "env has action='noise', whose prediction is not there before the action: leave PrivilegedBaseline out"
        )
