"""Checkpoints of a Stable-Baselines3 run with its complete state, without pickle.

SB3's ``save`` omits environments, random states and callbacks, and uses pickle. A checkpoint here is a folder with one
safetensors and one JSON file with digests, written atomically.
"""

from __future__ import annotations

import random
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from redif_env.sb3.vec_env import ReDiFVecEnv
from redif_env.storage.checkpoints import add_state, newest_state


class Checkpointer(BaseCallback):
    """Saves a checkpoint at the start of a rollout, every ``every`` environment steps and when the run is stopped.

    At the start of a rollout, the state of an on-policy agent (PPO, A2C) is its parameters, its optimizer and the
    environments, so a resumed run gives the same result as an uninterrupted one. Put it first in the list of callbacks,
    so that it saves their state before the rollout. A checkpoint that cannot be written is a warning; training
    continues and the previous checkpoint remains.

    Args:
        folder: folder of the checkpoints, each in a subfolder named by its number of environment steps.
        every: environment steps between two checkpoints.
        components: further parts of the run to save, by name, each with ``state_dict`` and ``load_state_dict``.
        keep: number of checkpoints to keep.
    """

    def __init__(self, folder: Path, every: int, components: Mapping[str, Any], keep: int = 2) -> None:
        super().__init__()
        if every < 1 or keep < 1:
            raise ValueError(f"every and keep must be at least 1, got {every} and {keep}")
        self.folder, self.every, self.components, self.keep = folder, every, components, keep
        self.stopped_by: signal.Signals | None = None
        self._last = 0
        self._stopping = False

    def save(self) -> None:
        """Save a checkpoint now, and delete all but the newest ``keep`` checkpoints."""
        state = {
            "agent": agent_state(self.model),
            "components": {name: component.state_dict() for name, component in self.components.items()},
        }
        try:
            add_state(self.folder, self.model.num_timesteps, state, self.keep)
        except (OSError, SafetensorError) as error:
            warnings.warn(f"checkpoint in {self.folder} was not written ({error}): training continues", stacklevel=2)
            return
        self._last = self.model.num_timesteps

    def resume(self, agent: OnPolicyAlgorithm) -> bool:
        """Restore ``agent`` and the components from the newest valid checkpoint; a damaged one is a warning.

        Returns:
            Whether there was a checkpoint.

        Raises:
            CorruptFileError: if there are checkpoints, but none can be read.
        """
        state = newest_state(self.folder)
        if state is None:
            return False
        for name, component in self.components.items():
            component.load_state_dict(state["components"][name])
        # Last, because it restores the random states, and making modules draws random numbers.
        load_agent_state(agent, state["agent"])
        self._last = agent.num_timesteps
        return True

    @contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """Stop the run on SIGINT or SIGTERM at the next rollout with a checkpoint; on a second signal, at once."""
        previous: dict[signal.Signals, Any] = {}

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopped_by = signal.Signals(number)
            print(f"\n{self.stopped_by.name}: stopping with a checkpoint after this rollout; once more to stop at once")
            restore()

        def restore() -> None:
            for name, handler in previous.items():
                signal.signal(name, handler)

        for name in (signal.SIGINT, signal.SIGTERM):
            previous[name] = signal.signal(name, stop)
        try:
            yield
        finally:
            restore()

    def _on_rollout_start(self) -> None:
        self._stopping = self.stopped_by is not None
        if self._stopping or self.model.num_timesteps - self._last >= self.every:
            self.save()

    def _on_step(self) -> bool:
        return not self._stopping


def agent_state(agent: OnPolicyAlgorithm) -> dict[str, Any]:
    """The state of an agent between two rollouts: parameters, optimizer, environments, random states and counters.

    Raises:
        ValueError: if the agent is not on-policy, or its environment is not a ReDiF environment.
    """
    env = _checked_env(agent)
    return {
        "policy": dict(agent.policy.state_dict()),
        "optimizer": agent.policy.optimizer.state_dict(),
        "env": env.state_dict(),
        "normaliser": _normaliser_state(agent),
        "last_obs": agent._last_obs,
        "last_episode_starts": agent._last_episode_starts,
        "num_timesteps": agent.num_timesteps,
        "updates": agent._n_updates,
        "progress": agent._current_progress_remaining,
        "episodes": list(agent.ep_info_buffer or []),
        "torch": torch.get_rng_state(),
        "accelerator": accelerator_random_states(),
        "numpy": list(np.random.get_state()),  # noqa: NPY002 -- SB3 shuffles with the global one
        "python": list(random.getstate()),
    }


def load_agent_state(agent: OnPolicyAlgorithm, state: Mapping[str, Any]) -> None:
    """Restore a state of :func:`agent_state`; the agent must have the same settings."""
    env = _checked_env(agent)
    # Done now, because ``learn`` would otherwise do it later and reset the environment.
    agent._setup_learn(total_timesteps=1)
    agent.policy.load_state_dict(state["policy"])
    agent.policy.optimizer.load_state_dict(state["optimizer"])
    env.load_state_dict(state["env"])
    _load_normaliser_state(agent, state["normaliser"])
    agent._last_obs, agent._last_episode_starts = state["last_obs"], state["last_episode_starts"]
    agent.num_timesteps, agent._n_updates = state["num_timesteps"], state["updates"]
    agent._current_progress_remaining = state["progress"]
    assert agent.ep_info_buffer is not None
    agent.ep_info_buffer.extend(state["episodes"])
    torch.set_rng_state(state["torch"])
    set_accelerator_random_states(state["accelerator"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.astype(np.uint32), *rest))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


def accelerator_random_states() -> list[Tensor]:
    """Of the generators of this machine's accelerator, one a device; none where there is no accelerator."""
    if not torch.accelerator.is_available():
        return []
    module, count = torch.get_device_module(), torch.accelerator.device_count()
    # MPS has one generator, and takes no index.
    return [module.get_rng_state()] if count == 1 else [module.get_rng_state(index) for index in range(count)]


def set_accelerator_random_states(states: Sequence[Tensor]) -> None:
    """Continue from :func:`accelerator_random_states`; a machine with another number of devices keeps its own."""
    if not torch.accelerator.is_available() or len(states) != torch.accelerator.device_count():
        return
    module = torch.get_device_module()
    if len(states) == 1:
        module.set_rng_state(states[0])
        return
    for index, state in enumerate(states):
        module.set_rng_state(state, index)


def _normaliser_state(agent: OnPolicyAlgorithm) -> dict[str, Any] | None:
    """The state of the agent's ``VecNormalize``, or None."""
    normaliser = agent.get_vec_normalize_env()
    if normaliser is None:
        return None
    moments = {name: vars(getattr(normaliser, name)) for name in ("obs_rms", "ret_rms")}
    return {**moments, "returns": normaliser.returns, "last_original_obs": agent._last_original_obs}


def _load_normaliser_state(agent: OnPolicyAlgorithm, state: Mapping[str, Any] | None) -> None:
    normaliser = agent.get_vec_normalize_env()
    if normaliser is None or state is None:
        return
    for name in ("obs_rms", "ret_rms"):
        vars(getattr(normaliser, name)).update(state[name])
    normaliser.returns, agent._last_original_obs = state["returns"].copy(), state["last_original_obs"]


def _checked_env(agent: OnPolicyAlgorithm) -> ReDiFVecEnv:
    env = agent.get_env()
    if isinstance(env, VecNormalize):
        env = env.venv
    if not isinstance(agent, OnPolicyAlgorithm):
        raise ValueError(f"agent is a {type(agent).__name__}: only on-policy agents (PPO, A2C) have checkpoints")
    if not isinstance(env, ReDiFVecEnv):
        raise ValueError(f"agent's environment is a {type(env).__name__}: make it with make_vec_env")
    return env
