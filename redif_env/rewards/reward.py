"""The reward protocol, weighted reward terms, and the state of rewards that depend on past episodes.

A reward is a callable with a ``name`` that maps a :class:`~redif_env.diffusion.types.Transition` of B episodes to
``(B,)``. Built-in rewards are scaled: the mean return over noises is 0 for the teacher and, for rewards with a
``scale``, -1 for the base solver. ``calibrated`` makes such a reward for a decision process and its reference set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST, fetch
from redif_env.diffusion.types import Transition
from redif_env.measures.distances import Distance


class Reward(Protocol):
    """A named function from a transition of B episodes to ``(B,)``."""

    @property
    def name(self) -> str: ...

    def __call__(self, transition: Transition) -> Tensor: ...


@runtime_checkable
class StatefulReward(Protocol):
    """A reward that depends on past episodes.

    Environments call ``reset`` when they are seeded; checkpoints save ``state_dict``.
    """

    def reset(self) -> None:
        """Return to the state at construction."""

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of :meth:`state_dict`."""


def reset_reward(reward: Reward) -> None:
    """Reset a reward, if it is stateful."""
    if isinstance(reward, StatefulReward):
        reward.reset()


def reward_states(terms: Sequence[Term]) -> dict[str, dict[str, Any]]:
    """States of the stateful rewards among ``terms``, by name."""
    return {term.name: term.reward.state_dict() for term in terms if isinstance(term.reward, StatefulReward)}


def load_reward_states(terms: Sequence[Term], states: Mapping[str, dict[str, Any]]) -> None:
    """Restore the states of :func:`reward_states`."""
    for term in terms:
        if isinstance(term.reward, StatefulReward):
            term.reward.load_state_dict(states[term.name])


@dataclass(frozen=True)
class Term:
    """A reward and its weight in the sum; values are checked before they reach the agent."""

    reward: Reward
    weight: float = 1.0

    @property
    def name(self) -> str:
        return self.reward.name

    def __call__(self, transition: Transition) -> Tensor:
        """Weighted values ``(B,)`` float64 on the host; 0 where no step was taken.

        Raises:
            ValueError: if the reward does not return B finite numbers.
        """
        return self.checked(self.reward(transition), transition)

    def checked(self, values: Tensor, transition: Transition) -> Tensor:
        """What the term pays where its reward returned ``values``."""
        live = transition.live
        if not isinstance(values, Tensor):
            raise ValueError(f"reward {self.name!r} returned {type(values).__name__}: return a torch tensor (B,)")
        if values.shape != live.shape:
            raise ValueError(
                f"reward {self.name!r} returned shape {tuple(values.shape)}: return one number an episode, "
                f"shape {tuple(live.shape)}"
            )
        if values.device not in (HOST, transition.endpoint.device):
            raise ValueError(
                f"reward {self.name!r} returned a tensor on {values.device}: return it on the host or on "
                f"{transition.endpoint.device}, where the samples are"
            )
        values = torch.where(live, values.to(HOST, torch.float64), 0.0)
        if not np.isfinite(values.numpy()).all():
            bad = int((~values.isfinite()).nonzero()[0, 0])
            raise ValueError(
                f"reward {self.name!r} returned {float(values[bad])} in sub-environment {bad} at step "
                f"{int(transition.state.predictions[bad])} of its episode: rewards must be finite"
            )
        return self.weight * values


def pay(terms: Sequence[Term], transition: Transition) -> dict[str, Tensor]:
    """What each of ``terms`` pays, by name; values on the device are fetched in one copy.

    Raises:
        ValueError: if a reward returns something else than B finite numbers.
    """
    values = [term.reward(transition) for term in terms]
    place = transition.endpoint.device
    far = [
        index
        for index, value in enumerate(values)
        if isinstance(value, Tensor) and value.device == place and place != HOST
    ]
    for index, value in zip(far, fetch([values[index].to(transition.endpoint.dtype) for index in far]), strict=True):
        values[index] = value
    return {term.name: term.checked(value, transition) for term, value in zip(terms, values, strict=True)}


def check_scale(scale: float) -> None:
    """Check that a reward's scale is above 0.

    Raises:
        ValueError: if it is not.
    """
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}: the base solver already equals the teacher")


def terminal_values(name: str, transition: Transition, distance: Distance) -> Tensor:
    """``distance(samples, endpoints)`` of terminated episodes and 0 for the others, ``(B,)``.

    Args:
        name: name of the reward, for messages.
        transition: transition of B episodes.
        distance: evaluated on the final samples alone.

    Raises:
        ValueError: if ``distance`` does not return one number per sample.
    """
    terminated = transition.terminated
    if not bool(terminated.any()):
        return torch.zeros(len(terminated), dtype=torch.float64, device=HOST)
    samples, endpoints = transition.next_state.x, transition.endpoint
    ended = None if bool(terminated.all()) else terminated.nonzero()[:, 0].to(samples.device)
    if ended is not None:
        samples, endpoints = samples[ended], endpoints[ended]
    found = distance(samples, endpoints)
    if found.shape != (len(samples),):
        raise ValueError(
            f"reward {name!r}: its distance returned shape {tuple(found.shape)} for {len(samples)} samples: return "
            f"one number a sample"
        )
    return found if ended is None else found.new_zeros(len(terminated)).index_copy(0, ended, found)
