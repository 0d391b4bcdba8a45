"""The dataclasses that the parts exchange, and the convention for their tensors.

A batch has B samples of shape S, ``(channels, height, width)`` for images. Tensors of samples are on the teacher's
device, in the environment's ``dtype``:

* ``x``, ``x0``, ``eps``: ``(B, *S)``; images are scaled to [-1, 1], latents are as their network takes them.

Tensors with one or a few numbers per row are on the host (the CPU):

* ``half_logsnr``: ``(B,)`` float64, ``log(alpha / sigma)``; increases while denoising, ``+inf`` for clean data
* ``timestep``: ``(B,)`` float64, the network's conditioning timestep, in the units of the training schedule
* ``condition``: ``(B,)`` int64, index of the teacher's conditions; 0 if there is only one
* ``position``: ``(B,)`` float64, the coordinate of a ``Grid``: 0 is pure noise, 1 is clean data
* actions, prices, guidance scales, step counts and masks

Histories have the newest entry first along dimension 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """One network prediction as clean estimate and noise prediction, each ``(B, *S)``.

    ``x`` ``(B, *S)`` is the sample of the prediction if it differs from the requested one (for pipelines that blend in
    an image). ``wave`` ``(B,)`` int64 is the number of the suspended pipeline call that made the prediction.
    """

    x0: Tensor
    eps: Tensor
    x: Tensor | None = None
    wave: Tensor | None = None


@dataclass(frozen=True)
class State:
    """The states of B denoising episodes. Every field has B rows, so states can be merged row by row.

    On the device:

    * ``x`` ``(B, *S)``: the samples
    * ``history`` ``(B, 2 * K, *S)``: the last K predictions, newest first, each as clean estimate and noise prediction;
      zero for missing predictions

    On the host:

    * ``timestep``: conditioning timestep of the next network call
    * ``condition`` ``(B,)`` int64: index of the teacher's conditions
    * ``guidance`` ``(B,)`` float64: guidance scale; 1 is no guidance
    * ``predictions``: number of predictions made
    * ``nfe``: number of network calls made; a guided prediction makes two
    * ``steps_left``: number of steps left in the budget
    * ``price`` ``(B,)`` float64: price of a network call in units of reward; 0 without prices
    * ``wave``: number of the suspended pipeline call that makes the predictions; 0 for none
    * ``half_logsnr_history`` ``(B, K)``: levels of the history
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
    wave: Tensor
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

    @classmethod
    def joined(cls, parts: Sequence[State]) -> State:
        """The rows of all ``parts``, one below the other."""
        return cls(**{item.name: torch.cat([getattr(part, item.name) for part in parts]) for item in fields(cls)})

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
    """A decoded action.

    * ``position``, ``half_logsnr`` ``(B,)``: the next grid position and its level
    * ``x0`` ``(B, *S)``: the clean estimate of the step
    * ``x`` ``(B, *S)``: the next sample, which is the DDIM step with that estimate
    * ``timestep`` ``(B,)``: the conditioning timestep of the next network call
    * ``steps_left`` ``(B,)`` int64: number of steps left, this one included
    * ``guidance`` ``(B,)``: guidance scale of the next network call; None to keep it
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
    """One environment step of B episodes, the argument of rewards.

    ``state`` is the state before the step. ``next_state`` is the state after it and before any reset; unless the
    episode ended, its history includes the network's prediction there. ``action`` is ``(B, A)`` float32, and
    ``decision`` the decoded action. ``endpoint`` ``(B, *S)`` is the teacher's endpoint of the same initial noise, and
    ``pair`` ``(B,)`` int64 its index in the reference set. ``terminated`` ``(B,)`` bool marks finished episodes.
    ``live`` ``(B,)`` bool is false for rows that took no step (the reset step of autoreset mode ``NEXT_STEP``). Samples
    are on the teacher's device, everything else is on the CPU.
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
