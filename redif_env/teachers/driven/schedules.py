"""Schedules that pipelines have and directly called networks do not: what the network is given differs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST, place
from redif_env.diffusion.predictions import Preconditioning
from redif_env.diffusion.schedules import FlowSchedule, Schedule, VarianceExplodingSchedule, VariancePreservingSchedule
from redif_env.diffusion.types import Level, Prediction, PredictionType


class InvertedFlowSchedule(FlowSchedule):
    """A flow whose network is given ``T * (1 - sigma)`` (Mochi)."""

    def half_logsnr(self, timestep: Tensor) -> Tensor:
        return super().half_logsnr(self.num_train_timesteps - timestep.double())

    def timestep(self, half_logsnr: Tensor) -> Tensor:
        return self.num_train_timesteps * torch.sigmoid(half_logsnr.double())


class UnshiftedFlowSchedule(FlowSchedule):
    """A flow whose network is given ``T * time``, the time before the shift (CogView4)."""

    def half_logsnr(self, timestep: Tensor) -> Tensor:
        return self.half_logsnr_at((timestep.double() / self.num_train_timesteps).clamp(0, 1))

    def timestep(self, half_logsnr: Tensor) -> Tensor:
        return self.num_train_timesteps * self.time(half_logsnr)


@dataclass(frozen=True)
class ArctanSchedule(VarianceExplodingSchedule):
    """Variance exploding, whose network is given ``2 / pi * atan(sigma)`` (Stable Audio)."""

    def half_logsnr(self, timestep: Tensor) -> Tensor:
        sigma = torch.tan(timestep.double() * (math.pi / 2))
        return -sigma.clamp(self.sigma_min, self.sigma_max).log()

    def timestep(self, half_logsnr: Tensor) -> Tensor:
        sigma = torch.exp(-half_logsnr.double()).clamp(self.sigma_min, self.sigma_max)
        return torch.atan(sigma) * (2 / math.pi)


class DiscreteExplodingSchedule(VariancePreservingSchedule):
    """The levels of a variance-preserving schedule, with samples in units in which ``alpha = 1`` (latent upscaling)."""

    def level(self, half_logsnr: Tensor) -> Level:
        sigma = torch.exp(-half_logsnr.double())
        return Level(alpha=torch.ones_like(sigma), sigma=sigma)

    def size(self, half_logsnr: Tensor) -> Tensor:
        return Schedule.size(self, half_logsnr)

    def normalised(self, x: Tensor, half_logsnr: Tensor) -> Tensor:
        return Schedule.normalised(self, x, half_logsnr)


class ScaledInputs(Preconditioning):
    """The network is given ``x / sqrt(1 + sigma**2)``, as Euler's scheduler scales it; outputs are as they are."""

    def inputs(self, x: Tensor, level: Level) -> Tensor:
        return x / place((level.sigma**2 + 1) ** 0.5, x)

    def samples(self, inputs: Tensor, level: Level) -> Tensor:
        return inputs * place((level.sigma**2 + 1) ** 0.5, inputs)


class ReversedOutput(Preconditioning):
    """The network's output has the opposite sign (Mochi, whose time runs backwards)."""

    def read(self, output: Tensor, x: Tensor, level: Level, prediction_type: PredictionType) -> Prediction:
        return super().read(-output, x, level, prediction_type)

    def write(self, prediction: Prediction, level: Level, prediction_type: PredictionType) -> Tensor:
        return -super().write(prediction, level, prediction_type)


@dataclass(frozen=True)
class LaterSchedule(Schedule):
    """``whole`` from its level at ``start`` in (0, 1] of its time on: what remains where an image is started from."""

    whole: Schedule
    start: float

    @property
    def init_noise_sigma(self) -> float:
        return self.whole.init_noise_sigma

    def half_logsnr_at(self, time: Tensor) -> Tensor:
        return self.whole.half_logsnr_at(time * self.start)

    def time(self, half_logsnr: Tensor) -> Tensor:
        return (self.whole.time(half_logsnr) / self.start).clamp(max=1)

    def half_logsnr(self, timestep: Tensor) -> Tensor:
        return self.whole.half_logsnr(timestep)

    def timestep(self, half_logsnr: Tensor) -> Tensor:
        return self.whole.timestep(half_logsnr)

    def level(self, half_logsnr: Tensor) -> Level:
        return self.whole.level(half_logsnr)

    def size(self, half_logsnr: Tensor) -> Tensor:
        return self.whole.size(half_logsnr)

    def normalised(self, x: Tensor, half_logsnr: Tensor) -> Tensor:
        return self.whole.normalised(x, half_logsnr)

    @property
    def ends(self) -> tuple[float, float]:
        noisiest, cleanest = self.whole.ends
        first = self.half_logsnr_at(torch.ones(1, dtype=torch.float64, device=HOST))
        return max(noisiest, float(first)), cleanest
