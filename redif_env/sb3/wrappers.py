"""What stands between a ReDiF environment and its policy: wrappers, and the affine maps that a student takes over."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorActionWrapper, VectorObservationWrapper, VectorWrapper
from gymnasium.wrappers import (
    NormalizeObservation,
    RecordEpisodeStatistics,
    RecordVideo,
    RescaleAction,
    RescaleObservation,
)
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
)

from redif_env.envs.environments import ReDiFEnv, ReDiFVectorEnv
from redif_env.sb3.vec_env import ReDiFVecEnv

PASSIVE = (Monitor, RecordEpisodeStatistics, RecordVideo, VecCheckNan, VecMonitor, VecVideoRecorder)
"""Wrappers that only watch; some hold open files, which cannot be copied."""


@dataclass(frozen=True)
class Between:
    """The affine maps between an environment and its policy, each array ``(F,)`` or ``(A,)``.

    The policy sees ``(observation - mean) * scale``, clipped to ``+-clip`` if that is given; the environment gets
    ``gain * action + offset``. ``names`` are the classes of all wrappers, the innermost first.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]
    clip: float | None = None
    names: tuple[str, ...] = ()

    def same(self, other: Between) -> bool:
        """Whether another one maps alike."""
        pairs = ((self.mean, other.mean), (self.scale, other.scale), (self.gain, other.gain))
        return self.clip == other.clip and all(np.array_equal(a, b) for a, b in (*pairs, (self.offset, other.offset)))


def between(env: VecEnv) -> Between:
    """What stands between the ReDiF environment below ``env`` and a policy that was trained on ``env``.

    Raises:
        ValueError: if that changes observations or actions by more than an affine map; naming the wrapper.
    """
    layers: list[VecEnvWrapper] = []
    while isinstance(env, VecEnvWrapper):
        layers.append(env)
        env = env.venv
    found = _below(env)
    for layer in reversed(layers):
        found = _with_vec_wrapper(found, layer)
    return found


def copied(env: VecEnv) -> VecEnv:
    """A copy of ``env`` that can be stepped while the original stays as it is; teacher and reference set are shared.

    Raises:
        ValueError: if a wrapper cannot be copied.
    """
    if isinstance(env, VecEnvWrapper):
        if type(env) in PASSIVE:
            return copied(env.venv)
        clone = copy.copy(env)
        clone.__dict__.update(
            {key: copy.deepcopy(value) for key, value in vars(env).items() if key not in ("venv", "class_attributes")}
        )
        clone.venv = copied(env.venv)
        if isinstance(clone, VecNormalize):
            clone.training = False
        return clone
    if isinstance(env, ReDiFVecEnv):
        return _deep_copy(env, [env.unwrapped])
    singles = [_bare(single) for single in singles_of(env)]
    copies = [_deep_copy(single, [single.unwrapped.batch]) for single in singles]
    for single in copies:
        for layer in _chain(single):
            if isinstance(layer, NormalizeObservation):
                layer.update_running_mean = False
    return DummyVecEnv([lambda single=single: single for single in copies])


def cores_of(env: VecEnv) -> list[ReDiFVectorEnv]:
    """The batched environments below ``env``: one, or one for each single environment.

    Raises:
        ValueError: if there are none.
    """
    base = env.unwrapped
    if isinstance(base, ReDiFVectorEnv):
        return [base]
    try:
        singles = [single.unwrapped for single in singles_of(base)]
    except (AttributeError, NotImplementedError):
        singles = []
    if not singles or not all(isinstance(single, ReDiFEnv) for single in singles):
        raise ValueError(f"env must be a ReDiF environment, wrapped or not, got {base!r}")
    return [single.batch for single in singles]


def singles_of(env: VecEnv) -> list[Any]:
    """The single environments of a ``DummyVecEnv``; copies of those of a ``SubprocVecEnv``, without the outermost."""
    if isinstance(env, SubprocVecEnv):
        return list(env.get_attr("env"))
    return list(env.envs)  # type: ignore[attr-defined]


def _below(env: VecEnv) -> Between:
    if isinstance(env, ReDiFVecEnv):
        return _of_chain(env.env, env.unwrapped)
    if isinstance(env, SubprocVecEnv):
        outermost = {kind.__name__ for kind in env.get_attr("__class__") if not issubclass(kind, PASSIVE)}
        if outermost:
            raise ValueError(
                f"env has {', '.join(sorted(outermost))} outermost in other processes, where it cannot be read: put it "
                "into Monitor, or pass env= with a DummyVecEnv"
            )
    cores = cores_of(env)
    each = [_of_chain(single, core) for single, core in zip(singles_of(env), cores, strict=True)]
    if not all(each[0].same(other) for other in each):
        raise ValueError(
            f"env has {len(each)} single environments with different statistics in {', '.join(each[0].names)}, which "
            "no one student can have: normalise with stable_baselines3's VecNormalize"
        )
    return each[0]


def _of_chain(env: Any, core: ReDiFVectorEnv) -> Between:
    """What a chain of Gymnasium wrappers, single or batched, does."""
    mdp = core.mdp
    size = 0 if not isinstance(core.single_observation_space, gym.spaces.Box) else mdp.observation_size
    numbers = (np.zeros(size), np.ones(size), np.ones(mdp.action_size), np.zeros(mdp.action_size))
    found = Between(*numbers)
    for layer in reversed(_chain(env)):
        found = replace(_with_wrapper(found, layer), names=(*found.names, type(layer).__name__))
    return found


def _with_wrapper(found: Between, layer: Any) -> Between:
    name = type(layer).__name__
    if type(layer) is RescaleAction:
        shape = layer.action_space.shape
        offset = layer.action(np.zeros(shape, np.float32)).astype(np.float64)
        gain = layer.action(np.ones(shape, np.float32)).astype(np.float64) - offset
        return replace(found, gain=found.gain * gain, offset=found.gain * offset + found.offset)
    if type(layer) is NormalizeObservation:
        return _normalised(found, layer.obs_rms.mean, 1 / np.sqrt(layer.obs_rms.var + layer.epsilon))
    if type(layer) is RescaleObservation:
        shape = layer.env.observation_space.shape
        at_zero, at_one = (layer.observation(fill(shape, np.float32)).astype(float) for fill in (np.zeros, np.ones))
        return _normalised(found, -at_zero / (at_one - at_zero), at_one - at_zero)
    changes = (gym.ObservationWrapper, gym.ActionWrapper, VectorObservationWrapper, VectorActionWrapper)
    if isinstance(layer, changes):
        raise ValueError(
            f"env has the wrapper {name}, which changes what the policy sees or does, and a student cannot carry it: "
            "train without it, or with RescaleAction, RescaleObservation, NormalizeObservation or VecNormalize"
        )
    return found  # passive, or found out by the check of the agent's own decisions


def _with_vec_wrapper(found: Between, layer: VecEnvWrapper) -> Between:
    name = type(layer).__name__
    if isinstance(layer, VecNormalize) and layer.norm_obs:
        if found.clip is not None or layer.norm_obs_keys:
            raise ValueError(f"env has {name} around clipped or named observations, which a student cannot carry")
        scale = 1 / np.sqrt(layer.obs_rms.var + layer.epsilon)
        found = replace(_normalised(found, layer.obs_rms.mean, scale), clip=float(layer.clip_obs))
    return replace(found, names=(*found.names, name))


def _normalised(found: Between, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> Between:
    """``found`` followed by ``(x - mean) * scale``."""
    return replace(found, mean=found.mean + mean / found.scale, scale=found.scale * scale)


def _chain(env: Any) -> list[Any]:
    """Gymnasium wrappers, the outermost first."""
    layers = []
    while isinstance(env, gym.Wrapper | VectorWrapper):
        layers.append(env)
        env = env.env
    return layers


def _bare(env: Any) -> Any:
    """``env`` without the passive wrappers on top."""
    while isinstance(env, PASSIVE):
        env = env.env
    return env


def _deep_copy(env: Any, cores: list[ReDiFVectorEnv]) -> Any:
    shared = {id(core.reference): core.reference for core in cores}
    try:
        return copy.deepcopy(env, shared)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"env cannot be copied ({error}), so the student cannot be held against the agent: pass env=, made anew"
        ) from error
