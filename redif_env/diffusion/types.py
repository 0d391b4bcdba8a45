"""The values that pass between the parts, and the tensor contract they all keep.

Contract, for a batch of B samples of shape S (for images ``(channels, height, width)``):

* ``x``, ``x0``, ``eps``: ``(B, *S)``, floating point in the environment's dtype, images scaled to [-1, 1]
  (latents as their network takes them);
* ``half_logsnr``: ``(B,)`` float64, ``log(alpha / sigma)``, increases while denoising, ``+inf`` is clean data;
* ``timestep``: ``(B,)`` float64, what the network is told, in the training schedule's units;
* ``condition``: ``(B,)`` int64, a row of the teacher's conditions (0 where there is but one);
* ``position``: ``(B,)`` float64, the coordinate of a ``Grid``: 0 is pure noise, 1 is clean data;
* histories put the newest first along dimension 1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class PredictionType(StrEnum):
    """What a network's output means, by diffusers' names."""

    EPSILON = "epsilon"
    SAMPLE = "sample"
    V_PREDICTION = "v_prediction"
    FLOW_PREDICTION = "flow_prediction"


@dataclass(frozen=True)
class Level:
    """Signal and noise scales of ``x = alpha * x0 + sigma * eps``, each ``(B,)`` float64."""

    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Prediction:
    """One network answer, in both coordinates: clean estimate and noise prediction, each ``(B, *S)``.

    ``x`` ``(B, *S)`` is the sample it was made at, where that is not the one it was requested for (pipelines that blend
    an image in); ``wave`` ``(B,)`` int64 the number of the suspended pipeline call that made it.
    """

    x0: Tensor
    eps: Tensor
    x: Tensor | None = None
    wave: Tensor | None = None


@dataclass(frozen=True)
class State:
    """Where B denoising episodes stand. Every field has B rows, so states can be merged row by row.

    ``timestep`` is what the network is told at its next call, ``condition`` ``(B,)`` int64 the row of the teacher's
    conditions that it is asked for, ``guidance`` ``(B,)`` float64 the guidance scale there (1 is none); ``predictions``
    the answers had, ``nfe`` the network calls they cost (a guided answer costs two); ``steps_left`` the answers that
    the budget still allows plus the pending step (the last step needs none); ``price`` ``(B,)`` float64 what a
    call costs the episode in units of reward (0 unless the decision process draws prices); ``wave`` the number of the
    suspended pipeline call that makes its predictions (0 for none). Histories hold the last K predictions, newest
    first, the unused places zero.
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
    x0_history: Tensor
    eps_history: Tensor
    half_logsnr_history: Tensor

    def merge(self, mask: Tensor, other: State) -> State:
        """Rows of ``other`` where ``mask`` (``(B,)`` bool) is true, own rows elsewhere."""
        if bool(mask.all()):
            return other
        return State(
            **{
                field.name: torch.where(
                    expand(mask, getattr(self, field.name)), getattr(other, field.name), getattr(self, field.name)
                )
                for field in dataclasses.fields(self)
            }
        )

    def rows(self, index: Tensor) -> State:
        """The rows that ``index`` (integer or bool, first dimension) picks."""
        return State(**{field.name: getattr(self, field.name)[index] for field in dataclasses.fields(self)})


@dataclass(frozen=True)
class Decision:
    """What an action means once its units are known.

    ``position`` and ``half_logsnr``: grid position to step to and its level, both ``(B,)``; ``x0``: clean estimate to
    step with, ``(B, *S)``; ``timestep``: what the network is told there, ``(B,)``; ``steps_left``: steps that the
    episode still takes, this one included, ``(B,)`` int64; ``guidance``: scale of the next network call ``(B,)``, None
    to leave it as it is.
    """

    position: Tensor
    half_logsnr: Tensor
    x0: Tensor
    timestep: Tensor
    steps_left: Tensor
    guidance: Tensor | None = None


@dataclass(frozen=True)
class Transition:
    """One environment step of B episodes: all that a reward may look at.

    ``state`` is before the step, ``next_state`` after it and before any reset; unless the episode ended, its histories
    already hold the network's prediction there. ``endpoint`` ``(B, *S)`` is what the teacher makes of the same initial
    noise; ``pair`` ``(B,)`` int64 its row in the reference set; ``terminated`` ``(B,)`` bool; ``live`` ``(B,)`` bool is
    false for rows that took no step (the dead step of autoreset mode ``NEXT_STEP``).
    """

    state: State
    action: Tensor
    decision: Decision
    next_state: State
    endpoint: Tensor
    pair: Tensor
    terminated: Tensor
    live: Tensor


def expand(values: Tensor, like: Tensor) -> Tensor:
    """``(B,)`` values shaped ``(B, 1, ..., 1)``, to broadcast against ``like`` ``(B, ...)``."""
    return values.reshape(values.shape[0], *([1] * (like.ndim - 1)))
