"""Observations: what the agent sees of a state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from redif_env.diffusion.bands import band_moments
from redif_env.diffusion.noise_schedulers import Parameterization
from redif_env.diffusion.placement import HOST
from redif_env.diffusion.types import State

BOUND = 10.0


class Observation(ABC):
    """Turns states into vectors."""

    history: int = 1
    """Number of past predictions that the observation uses."""

    shows_condition: bool = False
    """Whether the decision process appends the embedding of the condition."""

    @abstractmethod
    def size(self, sample_shape: tuple[int, ...], num_steps: int) -> int:
        """The size of an observation. Each number is in [-10, 10]."""

    @abstractmethod
    def observe(self, state: State, size: Tensor, num_steps: int) -> Tensor:
        """Observations ``(B, size)`` float32 on the host.

        ``size`` ``(B,)`` is the size of samples at the state's level (``Schedule.size``). Observe ``state.x`` divided
        by it, whose scale does not depend on the level.
        """


@dataclass(frozen=True)
class Features(Observation):
    """A short vector: ``num_steps + 10`` numbers, and three per frequency band for images, each clipped to [-10, 10].

    In order:

    - steps left, one-hot; all zero once the sample is finished
    - grid position
    - ``half_logsnr`` / 5
    - mean and root mean square of ``x``
    - mean and root mean square of the clean estimate
    - root mean square of the part of the clean estimate outside [-1, 1]
    - root mean square of the noise prediction
    - root mean square of the change of the clean estimate since the last call
    - root mean square of the change of the noise prediction since the last call
    - for each band: root mean square of the clean estimate, root mean square of its change, and the correlation of both
    """

    bands: int = 3
    shows_condition: bool = False
    history = 2

    def size(self, sample_shape: tuple[int, ...], num_steps: int) -> int:
        return num_steps + 10 + (3 * self.bands if len(sample_shape) == 3 else 0)

    def observe(self, state: State, size: Tensor, num_steps: int) -> Tensor:
        count = math.prod(state.x.shape[1:])
        bands = self.bands if state.x.ndim == 4 else 0
        found = self._statistics(state, bands).to(HOST, torch.float64)
        means, norms, moments = found.split([6, 6, 4 * bands], dim=1)
        shown = torch.cat([means, norms / math.sqrt(count)], dim=1)[:, _SHOWN]
        unchanged = (state.predictions < 2)[:, None]
        columns = [
            _steps_left(state, num_steps),
            torch.stack([state.position, state.half_logsnr / 5], dim=1),
            shown[:, :2] / size[:, None],
            shown[:, 2:6],
            shown[:, 6:].masked_fill(unchanged, 0.0),
        ]
        if bands:
            columns.append(_band_columns(moments.unflatten(1, (4, bands)), unchanged))
        return torch.cat(columns, dim=1).clamp(-BOUND, BOUND).float()

    @staticmethod
    def _statistics(state: State, bands: int) -> Tensor:
        """All statistics of samples, ``(B, 12 + 4 * bands)`` on their device, to be fetched in one copy.

        Means and norms of ``x``, of the clean estimate beyond [-1, 1], of the clean estimate, of the noise prediction
        and of the changes of those two; then the mean products of the clean estimate and its change in each band.
        """
        newest, older = state.history[:, :2], state.history[:, 2:4]
        beyond = F.softshrink(newest[:, :1], 1.0)
        parts = torch.cat([state.x[:, None], beyond, newest, newest - older], dim=1)
        flat = parts.flatten(2)
        columns = [flat.mean(dim=2), torch.linalg.vector_norm(flat, dim=2)]
        if bands:
            columns.append(band_moments(parts[:, 2::2], bands).flatten(1))
        return torch.cat(columns, dim=1)


_SHOWN = torch.tensor([0, 6, 2, 8, 7, 9, 10, 11], device=HOST)
"""Which of the six means and six norms of ``Features`` are observed, in order."""


def _band_columns(moments: Tensor, unchanged: Tensor) -> Tensor:
    """Root mean squares and correlation of a sample and its change in each band, from their mean products."""
    size, moved = moments[:, ::3].sqrt().unbind(dim=1)
    moved, together = (values.masked_fill(unchanged, 0.0) for values in (moved, moments[:, 1]))
    return torch.stack([size, moved, together / (size * moved + 1e-6)], dim=2).flatten(1)


@dataclass(frozen=True)
class StepsLeft(Observation):
    """Only the number of steps left, one-hot."""

    def size(self, sample_shape: tuple[int, ...], num_steps: int) -> int:
        return num_steps

    def observe(self, state: State, size: Tensor, num_steps: int) -> Tensor:
        return _steps_left(state, num_steps).float()


@dataclass(frozen=True)
class Sample:
    """The inputs of a network as a dict of float32 tensors, for students that are networks.

    =============  ===========  ===================================================================================
    ``sample``     ``(B, *S)``  the noisy sample, as the teacher's network takes it
    ``timestep``   ``(B, 1)``   conditioning timestep, in the training schedule's units
    ``level``      ``(B, 1)``   ``half_logsnr``, clipped to [-10, 10]
    ``nfe_left``   ``(B, 1)``   network calls left, this one included; 0 once the sample is finished
    ``condition``  ``(B, 1)``   the index of the condition among the teacher's
    =============  ===========  ===================================================================================

    The sample is on the device, the others on the host.
    """

    history = 0
    shows_condition = False

    def observe(self, state: State, parameterization: Parameterization) -> dict[str, Tensor]:
        """The dict of a state, for a teacher with this parameterization."""
        level = parameterization.schedule.level(state.half_logsnr)
        columns = {
            "timestep": state.timestep,
            "level": state.half_logsnr.clamp(-BOUND, BOUND),
            "nfe_left": state.steps_left,
            "condition": state.condition,
        }
        seen = {"sample": parameterization.preconditioning.inputs(state.x, level).float()}
        return seen | {name: values[:, None].float() for name, values in columns.items()}


OBSERVATIONS: dict[str, Observation | Sample] = {
    "features": Features(),
    "features+condition": Features(shows_condition=True),
    "steps": StepsLeft(),
    "sample": Sample(),
}
"""The observations by the names used at the command line and in ``gym.make``."""


def _steps_left(state: State, num_steps: int) -> Tensor:
    """One-hot ``(B, num_steps)`` bool; all false once the sample is finished."""
    return state.steps_left[:, None] == torch.arange(1, num_steps + 1, device=HOST)
