"""What stands between a ReDiF environment and its policy: wrappers, and the affine maps that a student takes over."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorActionWrapper, VectorObservationWrapper, VectorWrapper
from gymnasium.wrappers import (
    ClipAction,
    FlattenObservation,
    NormalizeObservation,
    RecordEpisodeStatistics,
    RecordVideo,
    RescaleAction,
    RescaleObservation,
)
from gymnasium.wrappers import vector as batched
from numpy.typing import NDArray

from redif_env.envs.environments import ReDiFEnv, ReDiFVectorEnv

PASSIVE = (RecordEpisodeStatistics, RecordVideo, batched.RecordEpisodeStatistics)
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

    @classmethod
    def nothing(cls, core: ReDiFVectorEnv) -> Between:
        """The maps of an environment without wrappers."""
        mdp = core.mdp
        size = mdp.observation_size if isinstance(core.single_observation_space, gym.spaces.Box) else 0
        return cls(np.zeros(size), np.ones(size), np.ones(mdp.action_size), np.zeros(mdp.action_size))

    def normalised(self, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> Between:
        """These maps followed by ``(x - mean) * scale``."""
        return replace(self, mean=self.mean + mean / self.scale, scale=self.scale * scale)

    def rescaled(self, gain: NDArray[np.float64], offset: NDArray[np.float64]) -> Between:
        """These maps with ``gain * action + offset`` before them."""
        return replace(self, gain=self.gain * gain, offset=self.gain * offset + self.offset)

    def same(self, other: Between) -> bool:
        """Whether another one maps alike."""
        pairs = ((self.mean, other.mean), (self.scale, other.scale), (self.gain, other.gain))
        return self.clip == other.clip and all(np.array_equal(a, b) for a, b in (*pairs, (self.offset, other.offset)))


def as_gymnasium(env: Any) -> Any:
    """``env`` itself, if it is Gymnasium's; the same task of a TorchRL environment.

    Raises:
        ValueError: if TorchRL transforms change observations or actions.
    """
    transform = getattr(env, "transform", None)
    for layer in [] if transform is None else list(transform) if hasattr(transform, "__iter__") else [transform]:
        keys = [*layer.in_keys, *layer.in_keys_inv, *layer.out_keys, *layer.out_keys_inv]
        if "observation" in keys or "action" in keys:
            raise ValueError(
                f"env has the transform {type(layer).__name__}, which cannot be read: give the environment below it "
                "(env.base_env), with observation= and action= for what the transform does"
            )
    env = getattr(env, "base_env", env)
    return env.gymnasium() if hasattr(env, "gymnasium") else env


def between(env: Any) -> Between:
    """What stands between the ReDiF environment below a Gymnasium one, single or batched, and its policy.

    Raises:
        ValueError: if that changes observations or actions by more than an affine map; naming the wrapper.
    """
    cores, base = cores_of(env), env.unwrapped
    if not isinstance(base, SyncVectorEnv):
        return of_chain(env, cores[0])
    return of_chain(
        env, cores[0], agreed([of_chain(single, core) for single, core in zip(base.envs, cores, strict=True)])
    )


def cores_of(env: Any) -> list[ReDiFVectorEnv]:
    """The batched environments below a Gymnasium environment: one, or one for each single environment.

    Raises:
        ValueError: if there are none.
    """
    base = env.unwrapped
    singles: list[Any] = [single.unwrapped for single in base.envs] if isinstance(base, SyncVectorEnv) else [base]
    if isinstance(base, ReDiFVectorEnv):
        return [base]
    if not all(isinstance(single, ReDiFEnv) for single in singles):
        raise ValueError(f"env must be a ReDiF environment of this process, wrapped or not, got {base!r}")
    return [single.batch for single in singles]


def copied(env: Any, passive: tuple[type, ...] = PASSIVE) -> Any:
    """A copy of a Gymnasium environment that can be stepped while the original stays as it is.

    Decision process and reference set are shared; observation normalisers are frozen; ``passive`` wrappers on top are
    left out.

    Raises:
        ValueError: if a wrapper cannot be copied.
    """
    while isinstance(env, passive):
        env = env.env  # type: ignore[attr-defined]
    clone = deep_copy(env, cores_of(env))
    singles = clone.unwrapped.envs if isinstance(clone.unwrapped, SyncVectorEnv) else []
    for layer in (layer for each in (clone, *singles) for layer in chain(each)):
        if isinstance(layer, NormalizeObservation | batched.NormalizeObservation):
            layer.update_running_mean = False
    return clone


def agreed(each: Sequence[Between]) -> Between:
    """The maps of single environments that act side by side.

    Raises:
        ValueError: if they differ.
    """
    if not all(each[0].same(other) for other in each):
        raise ValueError(
            f"env has {len(each)} single environments with different statistics in {', '.join(each[0].names)}, which "
            "no one student can have: normalise above all of them, by gymnasium.wrappers.vector.NormalizeObservation "
            "or stable_baselines3's VecNormalize"
        )
    return each[0]


def of_chain(env: Any, core: ReDiFVectorEnv, below: Between | None = None) -> Between:
    """What a chain of Gymnasium wrappers, single or batched, does around ``below``."""
    found = below or Between.nothing(core)
    for layer in reversed(chain(env)):
        found = replace(_with_wrapper(found, layer), names=(*found.names, type(layer).__name__))
    return found


def _with_wrapper(found: Between, layer: Any) -> Between:
    name, kind = type(layer).__name__, type(layer)
    if kind in (RescaleAction, batched.RescaleAction):
        at_zero, at_one = _ends(layer, layer.action_space, "action" if kind is RescaleAction else "actions")
        return found.rescaled(at_one - at_zero, at_zero)
    if kind in (NormalizeObservation, batched.NormalizeObservation):
        return found.normalised(layer.obs_rms.mean, 1 / np.sqrt(layer.obs_rms.var + layer.epsilon))
    if kind in (RescaleObservation, batched.RescaleObservation):
        name = "observation" if kind is RescaleObservation else "observations"
        at_zero, at_one = _ends(layer, layer.env.observation_space, name)
        return found.normalised(-at_zero / (at_one - at_zero), at_one - at_zero)
    if kind in (ClipAction, batched.ClipAction) and _clips_at_the_ends(found, layer):
        return found
    if kind in (FlattenObservation, batched.FlattenObservation) and found.mean.size:
        return found
    changes = (gym.ObservationWrapper, gym.ActionWrapper, VectorObservationWrapper, VectorActionWrapper)
    if isinstance(layer, changes):
        raise ValueError(
            f"env has the wrapper {name}, which changes what the policy sees or does, and a student cannot carry it: "
            "train without it, or with ClipAction, RescaleAction, RescaleObservation, NormalizeObservation or "
            "VecNormalize"
        )
    return found  # passive, or found out by the check of the agent's own decisions


def _ends(layer: Any, space: gym.Space, method: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What an affine wrapper makes of zeros and of ones, each ``(F,)``."""
    zero, one = (getattr(layer, method)(fill(space.shape or (), np.float32)) for fill in (np.zeros, np.ones))
    size = zero.shape[-1]
    return zero.reshape(-1, size)[0].astype(np.float64), one.reshape(-1, size)[0].astype(np.float64)


def _clips_at_the_ends(found: Between, layer: Any) -> bool:
    """Whether the bounds at which actions are clipped are those at which the environment clips them itself."""
    space = layer.env.action_space
    ends = (np.asarray(bound).reshape(-1, found.gain.size)[0] for bound in (space.low, space.high))
    return all(np.allclose(found.gain * end + found.offset, sign) for end, sign in zip(ends, (-1, 1), strict=True))


def chain(env: Any) -> list[Any]:
    """Gymnasium wrappers, the outermost first."""
    layers = []
    while isinstance(env, gym.Wrapper | VectorWrapper):
        layers.append(env)
        env = env.env
    return layers


def deep_copy(env: Any, cores: list[ReDiFVectorEnv]) -> Any:
    """A copy of ``env`` that shares decision process and reference set with it."""
    shared = {id(thing): thing for core in cores for thing in (core.reference, core.mdp)}
    try:
        return copy.deepcopy(env, shared)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"env cannot be copied ({error}), so the student cannot be held against the agent: pass env=, made anew"
        ) from error
