"""Noise schedules: timestep <-> half log signal-to-noise ratio, and the scales at a level.

Everything is computed from ``half_logsnr`` in float64 on the host, so that neither end of a schedule loses digits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST, place
from redif_env.diffusion.types import Level


class Schedule(ABC):
    """A noise schedule ``x = alpha * x0 + sigma * eps``, continuous in time.

    Three numbers name a level, and each is a function of the next: the schedule's own ``time`` in [0, 1] (0 is the
    cleanest level, 1 the noisiest; even steps in it are the ones its authors take), ``half_logsnr``, and the
    ``timestep`` that a network is conditioned on. ``half_logsnr(timestep)`` and ``timestep(half_logsnr)`` are exact
    inverses on the schedule's range; ``level`` gives alpha and sigma at any ``half_logsnr``, also of clean data
    (``+inf``).
    Tensors are ``(B,)``, float64 on the host.
    """

    @property
    @abstractmethod
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial sample, as in diffusers."""

    @abstractmethod
    def half_logsnr_at(self, time: Tensor) -> Tensor:
        """``log(alpha / sigma)`` at a time in [0, 1]; ``-inf`` where there is no signal."""

    @abstractmethod
    def time(self, half_logsnr: Tensor) -> Tensor:
        """The time at which the schedule has this ``half_logsnr``; outside the range, its nearest end."""

    @abstractmethod
    def half_logsnr(self, timestep: Tensor) -> Tensor:
        """``log(alpha / sigma)`` at a timestep; outside the range, at its nearest end."""

    @abstractmethod
    def timestep(self, half_logsnr: Tensor) -> Tensor:
        """The timestep at which the schedule has this ``half_logsnr``; outside the range, its nearest end."""

    @abstractmethod
    def level(self, half_logsnr: Tensor) -> Level:
        """Alpha and sigma at a ``half_logsnr``."""

    @property
    @abstractmethod
    def ends(self) -> tuple[float, float]:
        """``half_logsnr`` of the noisiest and of the cleanest level that are finite."""

    def size(self, half_logsnr: Tensor) -> Tensor:
        """``sqrt(alpha**2 + sigma**2)`` at a level: the standard deviation of samples, if that of clean data is 1."""
        level = self.level(half_logsnr)
        return (level.alpha**2 + level.sigma**2).sqrt()

    def scaled(self, x: Tensor, half_logsnr: Tensor) -> Tensor:
        """``x`` ``(B, *S)``, of the size that variance-preserving schedules have, times the ``size`` at a level."""
        return x * place(self.size(half_logsnr), x)

    def normalised(self, x: Tensor, half_logsnr: Tensor) -> Tensor:
        """The inverse of :meth:`scaled`: ``x`` ``(B, *S)`` at a level, over its ``size``."""
        return x / place(self.size(half_logsnr), x)


def noise_share(level: Level) -> Tensor:
    """``sigma / sqrt(alpha**2 + sigma**2)``: 1 at pure noise, 0 at clean data, on any schedule."""
    return level.sigma / (level.alpha.square() + level.sigma.square()).sqrt()  # ONNX has no hypot


@lru_cache(maxsize=64)
def late_time(schedule: Schedule, sigma_max: float) -> float:
    """The schedule's time at which ``sigma / alpha`` is ``sigma_max``; 1 if it is never so large."""
    return float(schedule.time(torch.tensor(-math.log(sigma_max), dtype=torch.float64, device=HOST)))


def preserving_level(half_logsnr: Tensor) -> Level:
    """Alpha and sigma at a ``half_logsnr`` where ``alpha**2 + sigma**2 = 1``."""
    doubled = 2 * half_logsnr
    return Level(alpha=torch.sigmoid(doubled).sqrt(), sigma=torch.sigmoid(-doubled).sqrt())


@dataclass(frozen=True, eq=False)
class VariancePreservingSchedule(Schedule):
    """``alpha**2 + sigma**2 = 1`` (Ho et al. 2020), through the discrete levels a network was trained on.

    Between two training timesteps ``half_logsnr`` is linear in time: the interpolation by which diffusers itself turns
    a sigma into a timestep (``_sigma_to_t``), so continuous grids agree with its schedulers.

    Args:
        betas: ``(T,)``, variances of the forward process, each in (0, 1). They are stored, so that a saved schedule
            is read back bit for bit.

    ``knots`` ``(T,)`` float64 is ``half_logsnr`` at timesteps 0, ..., T-1.
    """

    betas: Tensor
    knots: Tensor = field(init=False)
    _ends: tuple[float, float] = field(init=False, repr=False)
    _falls: Tensor = field(init=False, repr=False)
    _rising: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        betas = self.betas.to(HOST, torch.float64)
        if betas.ndim != 1 or len(betas) < 2:
            raise ValueError(f"betas must be one-dimensional and at least 2, got shape {tuple(betas.shape)}")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(
                f"betas must lie in (0, 1), got {float(betas.min())} to {float(betas.max())}; where the last one is 1, "
                "the noisiest level has no signal: zero_terminal_snr makes betas of them that can be stepped from"
            )
        log_alphas_cumprod = torch.log1p(-betas).cumsum(0)
        # log(alpha / sigma) = (log abar - log(1 - abar)) / 2, with 1 - abar = -expm1(log abar) exact near both ends.
        knots = (log_alphas_cumprod - torch.log(-torch.expm1(log_alphas_cumprod))) / 2
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "knots", knots)
        object.__setattr__(self, "_falls", knots[:-1] - knots[1:])
        object.__setattr__(self, "_rising", -knots[1:-1])
        object.__setattr__(self, "_ends", (float(knots[-1]), float(knots[0])))

    @classmethod
    def from_diffusers(
        cls,
        beta_schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        num_train_timesteps: int = 1000,
        rescale_betas_zero_snr: bool = False,
    ) -> VariancePreservingSchedule:
        """The schedule that a diffusers scheduler config names.

        Args:
            beta_schedule: ``linear`` (Ho et al. 2020), ``scaled_linear`` (Rombach et al. 2022), ``squaredcos_cap_v2``
                (Nichol and Dhariwal 2021, Eq. 17), ``sigmoid`` (Xu et al. 2022), ``laplace`` (Hang and Gu 2024) or
                ``exp``.
            beta_start, beta_end: first and last variance, of the linear ones and ``sigmoid``.
            num_train_timesteps: number T of discrete levels.
            rescale_betas_zero_snr: whether the noisiest level holds no signal (:func:`zero_terminal_snr`).

        Raises:
            TypeError, ValueError: for any other ``beta_schedule``.
        """
        if not isinstance(beta_schedule, str):
            raise TypeError(
                f"beta_schedule must be a name, got a {type(beta_schedule).__name__}: of a scheduler, give "
                "read_scheduler(scheduler.config, 'its name').schedule (redif_env.diffusion.noise_schedulers)"
            )
        count = num_train_timesteps
        if beta_schedule == "linear":
            betas = torch.linspace(beta_start, beta_end, count, dtype=torch.float64, device=HOST)
        elif beta_schedule == "scaled_linear":
            betas = torch.linspace(beta_start**0.5, beta_end**0.5, count, dtype=torch.float64, device=HOST) ** 2
        elif beta_schedule == "sigmoid":
            betas = (
                torch.linspace(-6, 6, count, dtype=torch.float64, device=HOST).sigmoid() * (beta_end - beta_start)
                + beta_start
            )
        elif beta_schedule in _ALPHA_BARS:
            alpha_bars = _ALPHA_BARS[beta_schedule](torch.arange(count + 1, dtype=torch.float64, device=HOST) / count)
            betas = (1 - alpha_bars[1:] / alpha_bars[:-1]).clamp(max=0.999)
        else:
            known = ", ".join(map(repr, ("linear", "scaled_linear", "sigmoid", *_ALPHA_BARS)))
            raise ValueError(f"beta_schedule must be one of {known}, got {beta_schedule!r}")
        return cls(zero_terminal_snr(betas) if rescale_betas_zero_snr else betas)

    @property
    def max_timestep(self) -> float:
        """The timestep of the noisiest level."""
        return float(len(self.knots) - 1)

    @property
    def init_noise_sigma(self) -> float:
        return 1.0

    def half_logsnr_at(self, time: Tensor) -> Tensor:
        return self.half_logsnr(self.max_timestep * time)

    def time(self, half_logsnr: Tensor) -> Tensor:
        return self.timestep(half_logsnr) / self.max_timestep

    def half_logsnr(self, timestep: Tensor) -> Tensor:
        timestep = timestep.double().clamp(0.0, self.max_timestep)
        below = timestep.long().clamp(max=len(self._falls) - 1)
        return torch.lerp(self.knots[below], self.knots[below + 1], timestep - below)

    def timestep(self, half_logsnr: Tensor) -> Tensor:
        half_logsnr = half_logsnr.double().clamp(*self._ends)
        if torch.compiler.is_compiling():
            # The same as below, as a count: not every exporter of traced programs knows searchsorted.
            below = (self._rising < -half_logsnr.detach()[..., None]).sum(-1)
        else:
            below = torch.searchsorted(self._rising, -half_logsnr.detach())
        return below + (self.knots[below] - half_logsnr) / self._falls[below]

    def level(self, half_logsnr: Tensor) -> Level:
        return preserving_level(half_logsnr)

    def size(self, half_logsnr: Tensor) -> Tensor:
        return torch.ones_like(half_logsnr, dtype=torch.float64, device=HOST)

    def scaled(self, x: Tensor, half_logsnr: Tensor) -> Tensor:
        return x

    def normalised(self, x: Tensor, half_logsnr: Tensor) -> Tensor:
        return x

    @property
    def ends(self) -> tuple[float, float]:
        return self._ends


def _laplace_alpha_bars(times: Tensor) -> Tensor:
    """Log-SNR by a Laplace distribution's quantiles with mu 0 and b 0.5; the square root is diffusers' own."""
    half = 0.5 - times
    sign = torch.where(half < 0, -1.0, 1.0)
    snr = torch.exp(-0.5 * sign * torch.log(1 - 2 * half.abs() + 1e-6))
    return (snr / (1 + snr)).sqrt()


_ALPHA_BARS: dict[str, Callable[[Tensor], Tensor]] = {
    "squaredcos_cap_v2": lambda times: torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2,
    "exp": lambda times: torch.exp(times * -12.0),
    "laplace": _laplace_alpha_bars,
}
"""Share of signal left at times in [0, 1], by diffusers' names of the schedules that are given so."""

LEAST_ALPHA_BAR = 2.0**-24
"""What diffusers' fast schedulers put in the place of a signal of 0, so that the noisiest level can be stepped from."""


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas ``(T,)`` whose noisiest level holds no signal (Lin et al. 2024, Algorithm 1), but for 2**-24 of it or less.

    Less where the level before it holds less already, as on the linear schedule: levels must stay in order.
    """
    roots = (1 - betas.double()).cumprod(0).sqrt()
    alpha_bars = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    alpha_bars[-1] = min(LEAST_ALPHA_BAR, alpha_bars[-2].item() / 4)
    return 1 - alpha_bars / torch.cat([torch.ones_like(alpha_bars[:1]), alpha_bars[:-1]])


class NoiseLabel(StrEnum):
    """What networks of variance-exploding schedules are conditioned on."""

    QUARTER_LOG = "quarter_log"
    """``log(sigma) / 4`` (Karras et al. 2022, Table 1)."""
    SIGMA = "sigma"
    """``sigma`` itself (Song et al. 2021)."""


@dataclass(frozen=True)
class VarianceExplodingSchedule(Schedule):
    """``alpha = 1`` and sigma from ``sigma_min`` to ``sigma_max`` (Song et al. 2021; Karras et al. 2022).

    Its time is Karras's: even steps are even in ``sigma ** (1 / rho)`` (Eq. 5).

    Args:
        sigma_min, sigma_max: smallest and largest noise level, above 0.
        rho: how much denser the steps are at small noise.
        label: what the network is conditioned on.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    label: NoiseLabel = NoiseLabel.QUARTER_LOG

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min and sigma_max must be above 0, the smaller first, got {self.sigma_min}, {self.sigma_max}"
            )
        if not self.rho > 0:
            raise ValueError(f"rho must be above 0, got {self.rho}")

    @property
    def _root_ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    @property
    def init_noise_sigma(self) -> float:
        return math.sqrt(self.sigma_max**2 + 1)

    def half_logsnr_at(self, time: Tensor) -> Tensor:
        low, high = self._root_ends
        return -self.rho * (low + time.double() * (high - low)).log()

    def time(self, half_logsnr: Tensor) -> Tensor:
        low, high = self._root_ends
        return ((torch.exp(-half_logsnr.double() / self.rho) - low) / (high - low)).clamp(0, 1)

    def half_logsnr(self, timestep: Tensor) -> Tensor:
        timestep = timestep.double()
        log_sigma = 4 * timestep if self.label is NoiseLabel.QUARTER_LOG else timestep.clamp(min=self.sigma_min).log()
        return -log_sigma.clamp(math.log(self.sigma_min), math.log(self.sigma_max))

    def timestep(self, half_logsnr: Tensor) -> Tensor:
        log_sigma = (-half_logsnr.double()).clamp(math.log(self.sigma_min), math.log(self.sigma_max))
        return log_sigma / 4 if self.label is NoiseLabel.QUARTER_LOG else log_sigma.exp()

    def level(self, half_logsnr: Tensor) -> Level:
        sigma = torch.exp(-half_logsnr.double())
        return Level(alpha=torch.ones_like(sigma), sigma=sigma)

    @property
    def ends(self) -> tuple[float, float]:
        return -math.log(self.sigma_max), -math.log(self.sigma_min)


@dataclass(frozen=True)
class FlowSchedule(Schedule):
    """Straight paths: ``alpha = 1 - sigma`` (Liu et al. 2022, Lipman et al. 2023).

    At its noisiest level ``sigma`` is 1 and ``half_logsnr`` is ``-inf``: there is no signal at all. Networks are
    conditioned on ``num_train_timesteps * sigma``.

    Args:
        shift: how much of the time is spent at high noise: ``sigma = shift * t / (1 + (shift - 1) * t)`` at time t
            (Esser et al. 2024, Eq. 23).
        num_train_timesteps: unit T of the timesteps. Grids that need finite ends lie between sigmas 1 / T and
            1 - 1 / T.
    """

    shift: float = 1.0
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"shift must be above 0, got {self.shift}")
        if self.num_train_timesteps < 2:
            raise ValueError(f"num_train_timesteps must be at least 2, got {self.num_train_timesteps}")

    @property
    def init_noise_sigma(self) -> float:
        return 1.0

    def half_logsnr_at(self, time: Tensor) -> Tensor:
        time = time.double()
        # alpha / sigma = (1 - t) / (shift * t), exact near both ends.
        return torch.log((1 - time) / (self.shift * time))

    def time(self, half_logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-half_logsnr.double() - math.log(self.shift))

    def half_logsnr(self, timestep: Tensor) -> Tensor:
        sigma = (timestep.double() / self.num_train_timesteps).clamp(0, 1)
        return torch.log((1 - sigma) / sigma)

    def timestep(self, half_logsnr: Tensor) -> Tensor:
        return self.num_train_timesteps * torch.sigmoid(-half_logsnr.double())

    def level(self, half_logsnr: Tensor) -> Level:
        half_logsnr = half_logsnr.double()
        return Level(alpha=torch.sigmoid(half_logsnr), sigma=torch.sigmoid(-half_logsnr))

    @property
    def ends(self) -> tuple[float, float]:
        cleanest = math.log(self.num_train_timesteps - 1)
        return -cleanest, cleanest
