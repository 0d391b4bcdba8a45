"""Observations: what the agent sees of a state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from redif_env.bands import split_bands
from redif_env.types import State, expand

BOUND = 10.0


class Observation(ABC):
    """Turns states into observations."""

    history: int = 1
    """Past predictions that the observation looks at."""

    @abstractmethod
    def size(self, sample_shape: tuple[int, ...], num_steps: int) -> int:
        """How many numbers an observation has, each in [-10, 10]."""

    @abstractmethod
    def observe(self, state: State, num_steps: int) -> Tensor:
        """Observations ``(B, size)`` float32."""


@dataclass(frozen=True)
class Features(Observation):
    """A short vector, ``num_steps + 10`` numbers and three a frequency band for images, each clipped to [-10, 10].

    In order: NFE left, one-hot (all zero once the sample is finished); grid position; ``half_logsnr`` / 5;
    mean and root mean square of ``x``; the same of the predicted clean sample, how far it leaves [-1, 1], and the root
    mean square of the noise prediction; root mean square of the change of the predicted clean sample and of the noise
    prediction since the last call; then, a band, the root mean square of the predicted clean sample and of its change,
    and the correlation of the two.
    """

    bands: int = 3
    history = 2

    def size(self, sample_shape: tuple[int, ...], num_steps: int) -> int:
        return num_steps + 10 + (3 * self.bands if len(sample_shape) == 3 else 0)

    def observe(self, state: State, num_steps: int) -> Tensor:
        x0, eps = state.x0_history[:, 0], state.eps_history[:, 0]
        changed = expand(state.nfe >= 2, x0)
        x0_change = torch.where(changed, x0 - state.x0_history[:, 1], 0.0)
        eps_change = torch.where(changed, eps - state.eps_history[:, 1], 0.0)
        steps = torch.arange(1, num_steps + 1, device=x0.device)
        columns = [
            state.position,
            state.half_logsnr / 5,
            _mean(state.x),
            _rms(state.x),
            _mean(x0),
            _rms(x0),
            _rms((x0.abs() - 1).clamp(min=0)),
            _rms(eps),
            _rms(x0_change),
            _rms(eps_change),
        ]
        if x0.ndim == 4 and self.bands:
            columns += self._band_columns(x0, x0_change)
        numbers = torch.stack([column.float() for column in columns], dim=1)
        one_hot = (state.steps_left[:, None] == steps).float()
        return torch.cat([one_hot, numbers], dim=1).clamp(-BOUND, BOUND)

    def _band_columns(self, x0: Tensor, x0_change: Tensor) -> list[Tensor]:
        columns = []
        # One transform for both: many small ones would cost more than the rest of the step.
        for band, change in (both.chunk(2) for both in split_bands(torch.cat([x0, x0_change]), self.bands)):
            size, moved = _rms(band), _rms(change)
            columns += [size, moved, _mean(band * change) / (size * moved + 1e-6)]
        return columns


OBSERVATIONS: dict[str, Observation] = {"features": Features()}
"""The observations by the names used at the command line and in ``gym.make``."""


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1)


def _rms(values: Tensor) -> Tensor:
    return values.flatten(1).square().mean(dim=1).sqrt()
