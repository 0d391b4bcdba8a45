"""The values that pass between the parts, and the tensor contract they all keep.

Contract, for a batch of B samples of shape S (for images ``(channels, height, width)``). On the device, in the
environment's ``dtype``, is what has the size of a sample:

* ``x``, ``x0``, ``eps``: ``(B, *S)``, images scaled to [-1, 1] (latents as their network takes them).

On the host (the CPU), whatever the device, is what has a number or a few a row:

* ``half_logsnr``: ``(B,)`` float64, ``log(alpha / sigma)``, increases while denoising, ``+inf`` is clean data;
* ``timestep``: ``(B,)`` float64, the conditioning timestep of the network, in the training schedule's units;
* ``condition``: ``(B,)`` int64, a row of the teacher's conditions (0 where there is but one);
* ``position``: ``(B,)`` float64, the coordinate of a ``Grid``: 0 is pure noise, 1 is clean data;
* actions, prices, guidance scales, step counts and masks.

Histories put the newest first along dimension 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import StrEnum

import torch
from torch import Tensor

from redif_env.diffusion.placement import expand


class PredictionType(StrEnum):
    """What a network's output means, by diffusers' names."""

    EPSILON = "epsilon"
    SAMPLE = "sample"
    V_PREDICTION = "v_prediction"
    FLOW_PREDICTION = "flow_prediction"


@dataclass(frozen=True)
class Level:
    """Signal and noise scales of ``x = alpha * x0 + sigma * eps``, each ``(B,)`` float64 on the host."""

    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Prediction:
    """One network prediction, in both coordinates: clean estimate and noise prediction, each ``(B, *S)``."""

    x0: Tensor
    eps: Tensor


@dataclass(frozen=True)
class State:
    """The states of B denoising episodes. Every field has B rows, so states can be merged row by row.

    ``x`` ``(B, *S)`` and ``history`` ``(B, 2 * K, *S)`` are on the device: the last K predictions, newest first, each
    as its clean estimate and its noise prediction; zero where there is none yet. All else is on the host:
    ``timestep`` is the conditioning timestep of the next network call, ``condition`` ``(B,)`` int64 the row of the
    teacher's conditions, ``guidance`` ``(B,)`` float64 the guidance scale (1 is none); ``predictions`` counts the
    predictions made, ``nfe`` the network calls they cost (a guided prediction costs two); ``steps_left`` the steps
    that the budget still allows; ``price`` ``(B,)`` float64 what a network call costs the episode in units of reward
    (0 unless the decision process draws prices); ``half_logsnr_history`` ``(B, K)`` the levels of the history.
    """

    x: Tensor
    position: Tensor
    half_logsnr: Tensor
    timestep: Tensor
    condition: Tensor
    guidance: Tensor
    predictions: Tensor
    nfe: Tensor
    steps_left: Tensor
    price: Tensor
    history: Tensor
    half_logsnr_history: Tensor

    @property
    def x0_history(self) -> Tensor:
        """The last K clean estimates ``(B, K, *S)``, newest first."""
        return self.history[:, 0::2]

    @property
    def eps_history(self) -> Tensor:
        """The last K noise predictions ``(B, K, *S)``, newest first."""
        return self.history[:, 1::2]

    def merge(self, mask: Tensor, other: State) -> State:
        """Rows of ``other`` where ``mask`` (``(B,)`` bool, on the host) is true, own rows elsewhere."""
        if bool(mask.all()):
            return other
        if not bool(mask.any()):
            return self
        return State(**{name: chosen(mask, getattr(other, name), own) for name, own in self.items()})

    def rows(self, index: Tensor) -> State:
        """The rows that ``index`` ``(N,)`` (int64, on the host) picks."""
        placed = index.to(self.x.device)
        return State(**{name: own[placed if name in _SAMPLES else index] for name, own in self.items()})

    def joined(self, other: State) -> State:
        """The rows of both, one below the other."""
        return State(**{name: torch.cat([own, getattr(other, name)]) for name, own in self.items()})

    def to(self, device: torch.device) -> State:
        """The same with its samples on a device."""
        return replace(self, x=self.x.to(device), history=self.history.to(device))

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Every field, by name."""
        for field in fields(self):
            yield field.name, getattr(self, field.name)


_SAMPLES = ("x", "history")
"""The fields of a state that are on the device."""


@dataclass(frozen=True)
class Decision:
    """What an action means once its units are known, and where it leads.

    ``position`` and ``half_logsnr``: grid position to step to and its level, both ``(B,)``; ``x0`` ``(B, *S)``: the
    clean estimate of the step; ``x`` ``(B, *S)``: the sample that it arrives at, the DDIM step with that estimate;
    ``timestep``: the conditioning timestep there, ``(B,)``; ``steps_left``: steps that the episode still takes, this
    one included, ``(B,)`` int64; ``guidance``: scale of the next network call ``(B,)``, None to leave it as it is.
    """

    position: Tensor
    half_logsnr: Tensor
    x0: Tensor
    x: Tensor
    timestep: Tensor
    steps_left: Tensor
    guidance: Tensor | None = None


@dataclass(frozen=True)
class Transition:
    """One environment step of B episodes: all that a reward may look at.

    ``state`` is before the step, ``next_state`` after it and before any reset; unless the episode ended, its history
    already holds the network's prediction there. ``endpoint`` ``(B, *S)``, on the device, is the teacher's endpoint of
    the same initial noise; ``pair`` ``(B,)`` int64 its row in the reference set; ``action`` ``(B, A)`` float32;
    ``terminated`` ``(B,)`` bool; ``live`` ``(B,)`` bool is false for rows that took no step (the dead step of autoreset
    mode ``NEXT_STEP``). All but the samples is on the host.
    """

    state: State
    action: Tensor
    decision: Decision
    next_state: State
    endpoint: Tensor
    pair: Tensor
    terminated: Tensor
    live: Tensor


def chosen(mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Rows of ``first`` where ``mask`` (``(B,)`` bool, on the host) is true, of ``second`` elsewhere."""
    if bool(mask.all()):
        return first
    if not bool(mask.any()):
        return second
    return torch.where(expand(mask.to(first.device), first), first, second)
