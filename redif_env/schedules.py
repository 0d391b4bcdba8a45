"""Noise schedules: timestep <-> half log signal-to-noise ratio, and the scales at a level.

Everything is computed from ``half_logsnr`` in float64, so that neither end of a schedule loses digits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from redif_env.types import Level


class Schedule(ABC):
    """A noise schedule, continuous in time.

    ``half_logsnr(timestep)`` and ``timestep(half_logsnr)`` are exact inverses on the schedule's range; ``level`` gives
    alpha and sigma at any ``half_logsnr``, clean data (``+inf``) included. Tensors are ``(B,)``, float64 inside.
    """

    @property
    @abstractmethod
    def max_timestep(self) -> float:
        """The timestep of the noisiest level."""

    @property
    @abstractmethod
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial sample, as in diffusers."""

    @abstractmethod
    def half_logsnr(self, timestep: Tensor) -> Tensor:
        """``log(alpha / sigma)`` at a timestep; outside the range, at its nearest end."""

    @abstractmethod
    def timestep(self, half_logsnr: Tensor) -> Tensor:
        """The timestep at which the schedule has this ``half_logsnr``; outside the range, its nearest end."""

    @abstractmethod
    def level(self, half_logsnr: Tensor) -> Level:
        """Alpha and sigma at a ``half_logsnr``."""

    @abstractmethod
    def to(self, device: torch.device) -> Schedule:
        """The same schedule with its tensors on ``device``."""


@dataclass(frozen=True)
class VariancePreservingSchedule(Schedule):
    """``alpha**2 + sigma**2 = 1`` (Ho et al. 2020), through the discrete levels a network was trained on.

    Between two training timesteps ``half_logsnr`` is linear in time: the interpolation by which diffusers itself turns
    a sigma into a timestep (``_sigma_to_t``), so continuous grids agree with its schedulers.

    Args:
        betas: ``(T,)``, variances of the forward process, each in (0, 1). They are kept, so that a saved schedule comes
            back bit for bit.

    ``knots`` ``(T,)`` float64 is ``half_logsnr`` at timesteps 0, ..., T-1.
    """

    betas: Tensor
    knots: Tensor = field(init=False)

    def __post_init__(self) -> None:
        betas = self.betas.double()
        if betas.ndim != 1 or len(betas) < 2:
            raise ValueError(f"betas must be one-dimensional and at least 2, got shape {tuple(betas.shape)}")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(
                f"betas must lie in (0, 1), got {float(betas.min())} to {float(betas.max())}; a beta of 1 comes from "
                "rescale_betas_zero_snr: use the schedule without it"
            )
        log_alphas_cumprod = torch.log1p(-betas).cumsum(0)
        # log(alpha / sigma) = (log abar - log(1 - abar)) / 2, with 1 - abar = -expm1(log abar) exact near both ends.
        knots = (log_alphas_cumprod - torch.log(-torch.expm1(log_alphas_cumprod))) / 2
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "knots", knots)

    @classmethod
    def from_diffusers(
        cls,
        beta_schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        num_train_timesteps: int = 1000,
    ) -> VariancePreservingSchedule:
        """The schedule that a diffusers scheduler config names.

        Args:
            beta_schedule: ``linear`` (Ho et al. 2020), ``scaled_linear`` (Rombach et al. 2022) or
                ``squaredcos_cap_v2`` (Nichol and Dhariwal 2021, Eq. 17).
            beta_start, beta_end: first and last variance; unused by ``squaredcos_cap_v2``.
            num_train_timesteps: number T of discrete levels.

        Raises:
            ValueError: for any other ``beta_schedule``.
        """
        count = num_train_timesteps
        if beta_schedule == "linear":
            betas = torch.linspace(beta_start, beta_end, count, dtype=torch.float64)
        elif beta_schedule == "scaled_linear":
            betas = torch.linspace(beta_start**0.5, beta_end**0.5, count, dtype=torch.float64) ** 2
        elif beta_schedule == "squaredcos_cap_v2":
            times = torch.arange(count + 1, dtype=torch.float64) / count
            alpha_bars = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - alpha_bars[1:] / alpha_bars[:-1]).clamp(max=0.999)
        else:
            raise ValueError(
                f"beta_schedule must be 'linear', 'scaled_linear' or 'squaredcos_cap_v2', got {beta_schedule!r}"
            )
        return cls(betas)

    @property
    def max_timestep(self) -> float:
        return float(len(self.knots) - 1)

    @property
    def init_noise_sigma(self) -> float:
        return 1.0

    def half_logsnr(self, timestep: Tensor) -> Tensor:
        timestep = timestep.double().clamp(0.0, self.max_timestep)
        below = timestep.floor().long().clamp(max=len(self.knots) - 2)
        return torch.lerp(self.knots[below], self.knots[below + 1], timestep - below)

    def timestep(self, half_logsnr: Tensor) -> Tensor:
        half_logsnr = half_logsnr.double().clamp(self.knots[-1], self.knots[0])
        if torch.compiler.is_compiling():
            # The same as below, as a count: not every exporter of traced programs knows searchsorted.
            above = (self.knots > half_logsnr.detach()[..., None]).sum(-1)
        else:
            above = torch.searchsorted(-self.knots, -half_logsnr.detach())
        above = above.clamp(1, len(self.knots) - 1)
        upper, lower = self.knots[above - 1], self.knots[above]
        return (above - 1) + (upper - half_logsnr) / (upper - lower)

    def level(self, half_logsnr: Tensor) -> Level:
        doubled = 2 * half_logsnr.double()
        return Level(alpha=torch.sigmoid(doubled).sqrt(), sigma=torch.sigmoid(-doubled).sqrt())

    def to(self, device: torch.device) -> VariancePreservingSchedule:
        return VariancePreservingSchedule(self.betas.to(device))
