"""Reward wrappers for ``Env`` and ``VectorEnv``, which can be stacked.

Gymnasium's ``RewardWrapper`` sees a number; these wrappers see the whole step (``env.unwrapped.last_transition``). Each
adds its weighted term to the reward and reports it as ``info["reward/<name>"]``, so the terms sum to the reward. The
formulas and their scales are in :mod:`redif_env.rewards`.

    env = FeatureAlignment(StepCost(env, cost=0.01), weight=0.5)
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from torch import Tensor, nn

from redif_env.diffusion.placement import full_precision
from redif_env.diffusion.types import Transition
from redif_env.envs.environments import ReDiFEnv, ReDiFVectorEnv, add_term, term_key
from redif_env.measures.distances import Distance, root_mean_square
from redif_env.measures.features import load_features
from redif_env.measures.kernels import Kernel
from redif_env.rewards import cost as costs
from redif_env.rewards import custom, distribution, endpoint, feature, path, teacher
from redif_env.rewards.reward import Reward, Term, reset_reward

AnyEnv = TypeVar("AnyEnv", gym.Env[Any, Any], VectorEnv[Any, Any, Any])


@dataclass(frozen=True)
class Recipe:
    """How ``env.spec`` says to make a wrapper again: a function of this module and its arguments."""

    function: str
    arguments: dict[str, Any]

    @property
    def plain(self) -> bool:
        """Whether a spec can hold it: no networks and functions, since specs are copied often and written as JSON."""
        return all(isinstance(value, str | float | int | tuple | None) for value in self.arguments.values())

    def spec(self) -> WrapperSpec:
        return WrapperSpec(self.function, f"{__name__}:{self.function}", dict(self.arguments))


class RewardTerm(gym.Wrapper):
    """Adds a reward term to a single environment.

    Args:
        env: a :class:`~redif_env.envs.environments.ReDiFEnv`, wrapped or not.
        term: what to add.
        recipe: how to make this wrapper again.
    """

    def __init__(self, env: gym.Env[Any, Any], term: Term, recipe: Recipe | None = None) -> None:
        super().__init__(env)
        self.core = core_of(env)
        self.term, self.recipe = term, recipe

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            reset_reward(self.term.reward)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        transition = self.core.last_transition
        assert transition is not None
        with full_precision(transition.endpoint.device):
            value = float(self.term(transition))
        info[term_key(info, self.term.name)] = value
        return observation, float(reward) + value, terminated, truncated, info

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """The spec of the environment below and how to wrap it; None if that holds a network or a function."""
        below = self.env.spec
        if below is None or self.recipe is None or not self.recipe.plain:
            return None
        spec = deepcopy(below)
        spec.additional_wrappers += (self.recipe.spec(),)
        return spec


class VectorRewardTerm(VectorWrapper):
    """Adds a reward term to every sub-environment, in any autoreset mode.

    Args:
        env: a :class:`~redif_env.envs.environments.ReDiFVectorEnv`, wrapped or not.
        term: what to add.
    """

    def __init__(self, env: VectorEnv, term: Term) -> None:
        super().__init__(env)
        self.core = core_of(env)
        self.term = term

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            reset_reward(self.term.reward)
        return self.env.reset(seed=seed, options=options)

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        transition = self.core.last_transition
        assert transition is not None
        with full_precision(transition.endpoint.device):
            values = self.term(transition).numpy()
        live = transition.live.numpy()
        ended = live & terminated if self.core.autoreset_mode is AutoresetMode.SAME_STEP else np.zeros_like(live)
        add_term(infos, self.term.name, values, live & ~ended)
        if ended.any():
            add_term(infos["final_info"], self.term.name, values, ended)
        return observations, rewards + values, terminated, truncated, infos


def core_of(env: gym.Env[Any, Any] | VectorEnv) -> ReDiFVectorEnv:
    """The batched environment below all wrappers.

    Raises:
        ValueError: if there is none.
    """
    base = env.unwrapped
    if isinstance(base, ReDiFVectorEnv):
        return base
    if isinstance(base, ReDiFEnv):
        return base.batch
    raise ValueError(f"env must be a ReDiF environment, wrapped or not, got {base!r}")


def add_reward(env: AnyEnv, reward: Reward, weight: float = 1.0, recipe: Recipe | None = None) -> AnyEnv:
    """Add any reward (module :mod:`redif_env.rewards`, or your own) to an environment of either kind.

    Args:
        env: a ReDiF environment, wrapped or not.
        reward: what each step pays.
        weight: factor of it.
        recipe: for ``env.spec``.
    """
    term = Term(reward, weight)
    if isinstance(env, VectorEnv):
        return VectorRewardTerm(env, term)
    return RewardTerm(env, term, recipe)


def EndpointAlignment(
    env: AnyEnv, distance: Distance = root_mean_square, weight: float = 1.0, name: str = "endpoint_distance"
) -> AnyEnv:
    """Add ``EndpointAlignment`` with a distance of :mod:`redif_env.measures.distances` or your own."""
    return _add_alignment(env, endpoint.EndpointAlignment, distance, weight, name)


def FeatureAlignment(
    env: AnyEnv, features: str | nn.Module | None = None, weight: float = 1.0, name: str = "feature"
) -> AnyEnv:
    """Add :class:`redif_env.rewards.feature.FeatureAlignment`.

    ``features`` is a network from samples to ``(B, D)``, or a name for
    :func:`redif_env.measures.features.load_features`.
    """
    core = core_of(env)
    network = load_features(features, core.mdp.teacher.image_shape) if isinstance(features, str) else features
    reward = feature.FeatureAlignment.calibrated(core.mdp, core.reference, network, name)
    return add_reward(
        env, reward, weight, Recipe("FeatureAlignment", {"features": features, "weight": weight, "name": name})
    )


def TrajectoryAlignment(
    env: AnyEnv, distance: Distance = root_mean_square, weight: float = 1.0, name: str = "trajectory"
) -> AnyEnv:
    """Add :class:`redif_env.rewards.endpoint.TrajectoryAlignment`, the dense form of the endpoint reward."""
    return _add_alignment(env, endpoint.TrajectoryAlignment, distance, weight, name)


def PathAlignment(env: AnyEnv, weight: float = 1.0, name: str = "path") -> AnyEnv:
    """Add :class:`redif_env.rewards.path.PathAlignment`, the distance of each step to the teacher's trajectory."""
    core = core_of(env)
    reward = path.PathAlignment.calibrated(core.mdp, core.reference, name)
    return add_reward(env, reward, weight, Recipe("PathAlignment", {"weight": weight, "name": name}))


def ScoreAgreement(env: AnyEnv, weight: float = 1.0, name: str = "score") -> AnyEnv:
    """Add :class:`redif_env.rewards.teacher.ScoreAgreement`."""
    core = core_of(env)
    reward = teacher.ScoreAgreement.calibrated(core.mdp, core.reference, name)
    return add_reward(env, reward, weight, Recipe("ScoreAgreement", {"weight": weight, "name": name}))


def TeacherResidual(
    env: AnyEnv, times: tuple[float, ...] = (0.1, 0.3), weight: float = 1.0, name: str = "residual"
) -> AnyEnv:
    """Add :class:`redif_env.rewards.teacher.TeacherResidual`."""
    core = core_of(env)
    reward = teacher.TeacherResidual.calibrated(core.mdp, core.reference, tuple(times), name)
    given = {"weight": weight, "name": name, "times": times}
    return add_reward(env, reward, weight, Recipe("TeacherResidual", given))


def DistributionAlignment(
    env: AnyEnv,
    kernel: Kernel | None = None,
    features: str | nn.Module | None = None,
    weight: float = 1.0,
    name: str = "mmd",
) -> AnyEnv:
    """Add ``DistributionAlignment``; ``features`` as in :func:`FeatureAlignment`."""
    core = core_of(env)
    network = load_features(features, core.mdp.teacher.image_shape) if isinstance(features, str) else features
    reward = distribution.DistributionAlignment.calibrated(core.mdp, core.reference, kernel, network, name)
    given = {"features": features, "weight": weight, "name": name} | ({} if kernel is None else {"kernel": kernel})
    return add_reward(env, reward, weight, Recipe("DistributionAlignment", given))


def StepCost(env: AnyEnv, cost: float | None = None, name: str = "step_cost") -> AnyEnv:
    """Add ``StepCost``. If ``cost`` is None, each episode uses the price that it drew (``prices``)."""
    if cost is None and core_of(env).mdp.prices is None:
        raise ValueError("cost is missing, and the environment draws no prices: give cost=0.01, or make it with prices")
    return add_reward(env, costs.StepCost(cost, name), 1.0, Recipe("StepCost", {"cost": cost, "name": name}))


def CallableReward(
    env: AnyEnv, fn: Callable[[Transition], Tensor], name: str = "custom", weight: float = 1.0
) -> AnyEnv:
    """Add any function of the transition (:class:`redif_env.rewards.custom.CallableReward`)."""
    given = {"fn": fn, "name": name, "weight": weight}
    return add_reward(env, custom.CallableReward(fn, name), weight, Recipe("CallableReward", given))


def _add_alignment(
    env: AnyEnv, kind: type[endpoint.EndpointAlignment], distance: Distance, weight: float, name: str
) -> AnyEnv:
    core = core_of(env)
    given = {"weight": weight, "name": name} | ({} if distance is root_mean_square else {"distance": distance})
    reward = kind.calibrated(core.mdp, core.reference, distance, name)
    return add_reward(env, reward, weight, Recipe(kind.__name__, given))


class GroupRelativeReward(VectorWrapper):
    """Subtracts from each reward the mean of its group, so it compares the actions with those of other group members.

    A sample's error depends mostly on its initial noise. The sub-environments of a group share the noise, so only their
    actions differ. The terms in ``info`` are not changed. Make this the outermost reward wrapper, so that it sees the
    sum of all terms.

    Args:
        env: a :class:`~redif_env.envs.environments.ReDiFVectorEnv` with ``group_size`` of at least 2, wrapped or not.

    Raises:
        ValueError: for other environments; for groups of one, whose relative reward is always zero; and for an adaptive
            number of steps, where group members do not finish together.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        core = core_of(env)
        self.group_size = core.group_size
        if self.group_size < 2:
            raise ValueError(
                "env has group_size=1, so every relative reward would be 0: construct it with group_size=8"
            )
        if core.mdp.adaptive:
            raise ValueError(
                f"env has min_steps={core.mdp.min_steps} below num_steps={core.mdp.num_steps}, so group members finish "
                "at different times: use redif_env.sb3.GroupRelativeReturns, which compares whole episodes"
            )

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        groups = rewards.reshape(-1, self.group_size)
        relative = (groups - groups.mean(axis=1, keepdims=True)).reshape(rewards.shape)
        return observations, relative, terminated, truncated, infos
