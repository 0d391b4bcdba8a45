"""Rewards: what one is, the weighted term that an environment makes of it, and what some remember.

A reward is any object with a ``name`` and a call from a :class:`~redif_env.diffusion.types.Transition` of B episodes to
``(B,)``. Those of this room are scaled so that what they pay an episode is known beforehand: 0 for the teacher and,
where a ``scale`` is taken from the base solver, -1 for the base solver, both on average over noises. ``calibrated``
makes a reward with that scale for a decision process and its reference set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST, fetch
from redif_env.diffusion.types import Transition
from redif_env.measures.distances import Distance


class Reward(Protocol):
    """A named reward term: ``(B,)`` from a transition of B episodes."""

    @property
    def name(self) -> str: ...

    def __call__(self, transition: Transition) -> Tensor: ...


@runtime_checkable
class Remembering(Protocol):
    """A reward with a memory of past episodes: environments call ``restart`` when they are seeded.

    Checkpoints keep the memory: ``state_dict`` gives it, ``load_state_dict`` takes it back.
    """

    def restart(self) -> None:
        """Forget all that was seen since construction."""

    def state_dict(self) -> dict[str, Any]:
        """What is remembered: tensors and JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember this instead."""


def restart(reward: Reward) -> None:
    """Make a reward with a memory forget; the others have nothing to forget."""
    if isinstance(reward, Remembering):
        reward.restart()


def memories(terms: Sequence[Term]) -> dict[str, dict[str, Any]]:
    """What the rewards of ``terms`` remember, by name."""
    return {term.name: term.reward.state_dict() for term in terms if isinstance(term.reward, Remembering)}


def load_memories(terms: Sequence[Term], state: Mapping[str, dict[str, Any]]) -> None:
    """Make the rewards of ``terms`` remember what :func:`memories` gave."""
    for term in terms:
        if isinstance(term.reward, Remembering):
            term.reward.load_state_dict(state[term.name])


@dataclass(frozen=True)
class Term:
    """A reward and its weight in a sum; its values are checked before an agent sees them."""

    reward: Reward
    weight: float = 1.0

    @property
    def name(self) -> str:
        return self.reward.name

    def __call__(self, transition: Transition) -> Tensor:
        """Weighted values ``(B,)`` float64 on the host; 0 where no step was taken.

        Raises:
            ValueError: if the reward returns something else than B finite numbers.
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
        values = torch.where(live, values.to(HOST).double(), 0.0)
        if not bool(values.isfinite().all()):
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
    """Refuse a scale that is not above 0.

    Raises:
        ValueError: if it is not.
    """
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}: the base solver already equals the teacher")


def when_finished(name: str, transition: Transition, of: Distance) -> Tensor:
    """``of(samples, endpoints)`` of the episodes that ended, 0 for the others, ``(B,)``."""
    terminated = transition.terminated
    if not bool(terminated.any()):
        return torch.zeros(len(terminated), dtype=torch.float64, device=HOST)
    samples, endpoints = transition.next_state.x, transition.endpoint
    ended = None if bool(terminated.all()) else terminated.nonzero()[:, 0].to(samples.device)
    if ended is not None:
        samples, endpoints = samples[ended], endpoints[ended]
    found = of(samples, endpoints)
    if found.shape != (len(samples),):
        raise ValueError(
            f"reward {name!r}: its distance returned shape {tuple(found.shape)} for {len(samples)} samples: return "
            f"one number a sample"
        )
    return found if ended is None else found.new_zeros(len(terminated)).index_copy(0, ended, found)
