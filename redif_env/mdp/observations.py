"""Observations: what the agent sees of a state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from redif_env.diffusion.bands import split_bands
from redif_env.diffusion.noise_schedulers import Parameterization
from redif_env.diffusion.types import State, expand

BOUND = 10.0


class Observation(ABC):
    """Turns states into vectors."""

    history: int = 1
    """Past predictions that the observation looks at."""

    shows_condition: bool = False
    """Whether the decision process is to add the embedding of what the sample is to show."""

    @abstractmethod
    def size(self, sample_shape: tuple[int, ...], num_steps: int) -> int:
        """How many numbers an observation has, each in [-10, 10]."""

    @abstractmethod
    def observe(self, state: State, num_steps: int) -> Tensor:
        """Observations ``(B, size)`` float32.

        ``state.x`` is normalised (``Schedule.normalised``): its size says nothing of the level.
        """


@dataclass(frozen=True)
class Features(Observation):
    """A short vector, ``num_steps + 10`` numbers and three a frequency band for images, each clipped to [-10, 10].

    In order: steps left, one-hot (all zero once the sample is finished); grid position; ``half_logsnr`` / 5;
    mean and root mean square of ``x``; the same of the predicted clean sample, how far it leaves [-1, 1], and the root
    mean square of the noise prediction; root mean square of the change of the predicted clean sample and of the noise
    prediction since the last call; then, a band, the root mean square of the predicted clean sample and of its change,
    and the correlation of the two.
    """

    bands: int = 3
    shows_condition: bool = False
    history = 2

    def size(self, sample_shape: tuple[int, ...], num_steps: int) -> int:
        return num_steps + 10 + (3 * self.bands if len(sample_shape) == 3 else 0)

    def observe(self, state: State, num_steps: int) -> Tensor:
        x0, eps = state.x0_history[:, 0], state.eps_history[:, 0]
        changed = expand(state.predictions >= 2, x0)
        x0_change = torch.where(changed, x0 - state.x0_history[:, 1], 0.0)
        eps_change = torch.where(changed, eps - state.eps_history[:, 1], 0.0)
        # All at once: a dozen small operations would cost as much as the step itself.
        parts = torch.stack([state.x, x0, (x0.abs() - 1).clamp(min=0), eps, x0_change, eps_change])
        mean_x, mean_x0 = _mean(parts[:2])
        x_rms, x0_rms, beyond, eps_rms, x0_moved, eps_moved = _rms(parts)
        columns = [
            state.position,
            state.half_logsnr / 5,
            mean_x,
            x_rms,
            mean_x0,
            x0_rms,
            beyond,
            eps_rms,
            x0_moved,
            eps_moved,
        ]
        if x0.ndim == 4 and self.bands:
            columns += self._band_columns(x0, x0_change)
        numbers = torch.stack([column.float() for column in columns], dim=1)
        return torch.cat([_steps_left(state, num_steps), numbers], dim=1).clamp(-BOUND, BOUND)

    def _band_columns(self, x0: Tensor, x0_change: Tensor) -> list[Tensor]:
        both = split_bands(torch.cat([x0, x0_change]), self.bands)
        band, change = both.chunk(2, dim=1)
        size, moved = _rms(both).chunk(2, dim=1)
        together = _mean(band * change) / (size * moved + 1e-6)
        return list(torch.stack([size, moved, together], dim=1).flatten(0, 1))


@dataclass(frozen=True)
class StepsLeft(Observation):
    """The steps left, one-hot, and nothing of the sample: what an agent that is blind to the state sees."""

    def size(self, sample_shape: tuple[int, ...], num_steps: int) -> int:
        return num_steps

    def observe(self, state: State, num_steps: int) -> Tensor:
        return _steps_left(state, num_steps)


@dataclass(frozen=True)
class Sample:
    """What a network is given, as a dict of float32 tensors: what a student that is a network itself needs.

    =============  ===========  ===================================================================================
    ``sample``     ``(B, *S)``  the noisy sample, as the teacher's network is given it
    ``timestep``   ``(B, 1)``   what the network is told, in the training schedule's units
    ``level``      ``(B, 1)``   ``half_logsnr``, clipped to [-10, 10]
    ``nfe_left``   ``(B, 1)``   network calls left, this one included; 0 once the sample is finished
    ``condition``  ``(B, 1)``   the row of the teacher's conditions
    =============  ===========  ===================================================================================
    """

    history = 0
    shows_condition = False

    def observe(self, state: State, parameterization: Parameterization) -> dict[str, Tensor]:
        """The dict, of a state of a process whose teacher's network is read so."""
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
    """One-hot ``(B, num_steps)``; all zero once the sample is finished."""
    steps = torch.arange(1, num_steps + 1, device=state.x.device)
    return (state.steps_left[:, None] == steps).float()


def _mean(values: Tensor) -> Tensor:
    """Over all but the first two dimensions."""
    return values.flatten(2).mean(dim=2)


def _rms(values: Tensor) -> Tensor:
    """Root mean square over all but the first two dimensions."""
    return values.flatten(2).square().mean(dim=2).sqrt()
