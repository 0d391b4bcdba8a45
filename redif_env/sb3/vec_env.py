"""A ReDiF vector environment as a Stable-Baselines3 ``VecEnv``: one forward pass for all, one teacher."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from redif_env.envs.environments import REWARD, ReDiFVectorEnv, info_of, terms_of
from redif_env.envs.task import Task
from redif_env.envs.wrappers import GroupRelativeReward, VectorRewardTerm
from redif_env.mdp.arguments import takes
from redif_env.rewards.reward import Term, load_reward_states, reward_states


class ReDiFVecEnv(VecEnv):
    """Adapter for any ReDiF vector environment in autoreset mode ``SAME_STEP``, wrapped or not.

    Finished episodes report ``info["episode"]`` like SB3's ``Monitor``. The return is the sum of the reward terms, even
    if a wrapper changes the rewards for the agent. ``info["reward/<name>"]`` is the sum of each term.

    Args:
        env: the vector environment.

    Raises:
        ValueError: for another environment or autoreset mode.
    """

    def __init__(self, env: VectorEnv) -> None:
        if not isinstance(env.unwrapped, ReDiFVectorEnv):
            raise ValueError(f"env must be a ReDiFVectorEnv, wrapped or not, got {env.unwrapped!r}")
        if env.unwrapped.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"env must have autoreset_mode SAME_STEP, as SB3 expects, got {env.unwrapped.autoreset_mode}: make it "
                "with redif_env.sb3.make_vec_env, or with autoreset_mode='SameStep'"
            )
        self.env = env
        self._actions: NDArray[np.float32] | None = None
        self._start = time.monotonic()
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        self._returns: dict[str, NDArray[np.float64]] = {}
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    @property
    def unwrapped(self) -> ReDiFVectorEnv:  # type: ignore[override]
        """The environment below all wrappers."""
        base = self.env.unwrapped
        assert isinstance(base, ReDiFVectorEnv)
        return base

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed sub-environment i with ``seed + i`` at the next reset; without a seed, at random."""
        self._seeds = [None if seed is None else seed + index for index in range(self.num_envs)]
        return self._seeds

    def reset(self) -> VecEnvObs:
        # Gymnasium's own vector environments take a list too; their annotation has not caught up.
        observations, infos = self.env.reset(seed=list(self._seeds))  # type: ignore[arg-type]
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [info_of(infos, index) for index in range(self.num_envs)]
        self._lengths[:] = 0
        self._returns.clear()
        return cast(VecEnvObs, observations)

    def step_async(self, actions: NDArray[np.float32]) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        assert self._actions is not None
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        dones = terminated | truncated
        self._count(infos)
        # SB3 expects one dict an environment, and reads only those of finished episodes.
        rows: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(dones).tolist():
            rows[index] = self._finished(infos, index, bool(truncated[index]))
        return cast(VecEnvObs, observations), rewards.astype(np.float32), dones, rows

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        return self.unwrapped.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        value = getattr(self.env if hasattr(self.env, attr_name) else self.unwrapped, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ValueError("indices must be None: the sub-environments are one object and share their attributes")
        setattr(self.unwrapped, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        raise NotImplementedError(
            f"env_method({method_name!r}): the sub-environments are one object; call the method on .unwrapped instead"
        )

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def state_dict(self) -> dict[str, Any]:
        """The state of the environments and of reward wrappers."""
        return {
            "core": self.unwrapped.state_dict(),
            "rewards": reward_states(self._wrapped_terms()),
            "lengths": self._lengths,
            "returns": self._returns,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of :meth:`state_dict`, in an environment made with the same arguments."""
        self.unwrapped.load_state_dict(state["core"])
        load_reward_states(self._wrapped_terms(), state["rewards"])
        self._lengths = state["lengths"].copy()
        self._returns = {name: values.copy() for name, values in state["returns"].items()}

    def _wrapped_terms(self) -> list[Term]:
        terms, env = [], self.env
        while isinstance(env, VectorWrapper):
            if isinstance(env, VectorRewardTerm):
                terms.append(env.term)
            env = env.env
        return terms

    def _count(self, infos: dict[str, Any]) -> None:
        self._lengths += 1
        for source in (infos, infos.get("final_info", {})):
            for name, values in terms_of(source).items():
                self._returns[name] = self._returns.get(name, np.zeros(self.num_envs)) + values

    def _finished(self, infos: dict[str, Any], index: int, truncated: bool) -> dict[str, Any]:
        terms = {name: float(values[index]) for name, values in self._returns.items()}
        row = info_of(infos["final_info"], index)
        row["terminal_observation"] = infos["final_obs"][index]
        row["TimeLimit.truncated"] = truncated
        row |= {f"{REWARD}{name}": value for name, value in terms.items()}
        seconds = round(time.monotonic() - self._start, 6)
        row["episode"] = {"r": sum(terms.values()), "l": int(self._lengths[index]), "t": seconds}
        self._lengths[index] = 0
        for values in self._returns.values():
            values[index] = 0.0
        return row


@takes(Task)
def make_vec_env(
    num_envs: int, *, group_size: int = 1, render_mode: str | None = None, **arguments: Any
) -> ReDiFVecEnv:
    """Make ``ReDiF-v0`` as a Stable-Baselines3 ``VecEnv`` in which all episodes share each forward pass.

    Args:
        num_envs: number of episodes that run together.
        group_size: number of episodes that share their initial noise. From 2, each reward is relative to the mean of
            its group (``GroupRelativeReward``). If the number of steps is adaptive, use the callback
            :class:`~redif_env.sb3.GroupRelativeReturns` instead.
        render_mode: None or ``"rgb_array"``.
        arguments: the fields of :class:`redif_env.envs.task.Task`, which :class:`redif_env.ReDiFEnv` lists.
    """
    mode = AutoresetMode.SAME_STEP
    env = ReDiFVectorEnv(num_envs, group_size=group_size, autoreset_mode=mode, render_mode=render_mode, **arguments)
    return ReDiFVecEnv(GroupRelativeReward(env) if group_size > 1 and not env.mdp.adaptive else env)
