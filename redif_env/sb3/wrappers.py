"""What stands between a ReDiF environment and a Stable-Baselines3 policy: wrappers of both libraries."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
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

from redif_env.envs.between import PASSIVE as WATCHING
from redif_env.envs.between import Between, agreed, deep_copy, of_chain
from redif_env.envs.between import copied as copied_single
from redif_env.envs.environments import ReDiFEnv, ReDiFVectorEnv
from redif_env.sb3.vec_env import ReDiFVecEnv

PASSIVE = (*WATCHING, Monitor, VecCheckNan, VecMonitor, VecVideoRecorder)
"""Wrappers that only watch; some hold open files, which cannot be copied."""


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
        # Not by copy.copy: a wrapper without a venv yet looks for every attribute in its venv, without end.
        clone = object.__new__(type(env))
        held = {
            key: copy.deepcopy(value) for key, value in vars(env).items() if key not in ("venv", "class_attributes")
        }
        clone.__dict__.update(vars(env) | held)
        clone.venv = copied(env.venv)
        if isinstance(clone, VecNormalize):
            clone.training = False
        return clone
    if isinstance(env, ReDiFVecEnv):
        return deep_copy(env, [env.unwrapped])
    copies = [copied_single(single, PASSIVE) for single in singles_of(env)]
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
    """The single environments of a ``DummyVecEnv``; copies of those of a ``SubprocVecEnv``.

    Raises:
        ValueError: if they cannot be copied from their processes.
    """
    if not isinstance(env, SubprocVecEnv):
        return list(env.envs)  # type: ignore[attr-defined]
    try:
        return [_fetched(env, index) for index in range(env.num_envs)]
    except (EOFError, ConnectionError) as error:
        raise ValueError(
            "env holds something in other processes that cannot be sent from there (a reward without a name, an open "
            "file): pass env= with a DummyVecEnv of the same environments"
        ) from error


def _below(env: VecEnv) -> Between:
    if isinstance(env, ReDiFVecEnv):
        return of_chain(env.env, env.unwrapped)
    cores = cores_of(env)
    return agreed([of_chain(single, core) for single, core in zip(singles_of(env), cores, strict=True)])


def _fetched(env: SubprocVecEnv, index: int) -> Any:
    """A copy of one environment, without the outermost wrapper if that only watches, since it may hold open files."""
    (kind,) = env.get_attr("__class__", index)
    if issubclass(kind, PASSIVE):
        return env.get_attr("env", index)[0]
    fetched = object.__new__(kind)
    fetched.__dict__.update(env.get_attr("__dict__", index)[0])
    return fetched


def _with_vec_wrapper(found: Between, layer: VecEnvWrapper) -> Between:
    name = type(layer).__name__
    if isinstance(layer, VecNormalize) and layer.norm_obs:
        if found.clip is not None or layer.norm_obs_keys:
            raise ValueError(f"env has {name} around clipped or named observations, which a student cannot carry")
        scale = 1 / np.sqrt(layer.obs_rms.var + layer.epsilon)
        found = replace(found.normalised(layer.obs_rms.mean, scale), clip=float(layer.clip_obs))
    return replace(found, names=(*found.names, name))
