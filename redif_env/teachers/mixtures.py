"""A Gaussian mixture seen through a noise schedule: its predictions are known in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from redif_env.diffusion.placement import HOST, double, place
from redif_env.diffusion.predictions import PLAIN, Preconditioning
from redif_env.diffusion.schedules import Schedule
from redif_env.diffusion.types import Prediction, PredictionType


class GaussianMixture(nn.Module):
    """The exact predictions at ``x = alpha * x0 + sigma * eps`` for ``x0`` from a mixture of axis-aligned Gaussians.

    The marginal at any level is again a mixture, of means ``alpha * mean`` and variances
    ``alpha**2 * std**2 + sigma**2``, and the best noise prediction is ``-sigma`` times the gradient of its log
    density (Song et al. 2021, Eq. 9 with the score of Vincent 2011).

    Args:
        means: ``(K, *S)``.
        stds: broadcast against ``means``.
        weights: ``(K,)``, positive; equal if not given.
        schedule: turns a timestep into a level.
        prediction_type, preconditioning: the form of its output and of its input.
    """

    means: Tensor
    stds: Tensor
    log_weights: Tensor

    def __init__(
        self,
        means: Tensor,
        stds: Tensor | float,
        weights: Tensor | None,
        schedule: Schedule,
        prediction_type: PredictionType = PredictionType.EPSILON,
        preconditioning: Preconditioning = PLAIN,
    ) -> None:
        super().__init__()
        stds = (
            torch.as_tensor(stds, dtype=means.dtype, device=means.device)
            .expand_as(means)
            .clone(memory_format=torch.contiguous_format)
        )
        weights = torch.ones(len(means), dtype=means.dtype, device=means.device) if weights is None else weights
        if not bool((stds > 0).all()):
            raise ValueError(f"stds must be above 0, got a smallest of {float(stds.min())}")
        if weights.shape != (len(means),) or not bool((weights > 0).all()):
            raise ValueError(f"weights must be {len(means)} positive numbers, one a component, got {weights}")
        self.schedule, self.prediction_type, self.preconditioning = schedule, prediction_type, preconditioning
        self.register_buffer("means", means)
        self.register_buffer("stds", stds)
        self.register_buffer("log_weights", torch.log_softmax(weights.log(), dim=0))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """The output ``(B, *S)`` of a network, given ``x`` ``(B, *S)`` and ``timestep`` ``(B,)``."""
        half_logsnr = self.schedule.half_logsnr(timestep.to(HOST))
        level = self.schedule.level(half_logsnr)
        prediction = self.prediction(self.preconditioning.samples(x, level), half_logsnr)
        return self.preconditioning.write(prediction, level, self.prediction_type)

    def prediction(self, x: Tensor, half_logsnr: Tensor) -> Prediction:
        """Clean estimate and noise prediction at a level, ``half_logsnr`` ``(B,)``: their conditional means."""
        residual, variance, alpha, sigma = self._components(x, half_logsnr)
        responsibility = torch.softmax(self._log_joint(residual, variance), dim=1)
        share = responsibility.reshape(*responsibility.shape, *([1] * (residual.ndim - 2)))
        shrink = alpha * double(self.stds) ** 2 * residual / variance
        x0 = (share * (double(self.means) + shrink)).sum(dim=1)
        eps = (sigma * share * residual / variance).sum(dim=1)
        return Prediction(x0=x0.to(x), eps=eps.to(x))

    def log_prob(self, x: Tensor, half_logsnr: Tensor) -> Tensor:
        """Log density ``(B,)`` in nats of the noisy marginal at ``x``."""
        residual, variance, _, _ = self._components(x, half_logsnr)
        return torch.logsumexp(self._log_joint(residual, variance), dim=1)

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Clean samples ``(num_samples, *S)``, drawn on the host."""
        chosen = torch.multinomial(self.log_weights.to(HOST).exp(), num_samples, replacement=True, generator=generator)
        shape = (num_samples, *self.means.shape[1:])
        noise = torch.randn(shape, generator=generator, dtype=torch.float32, device=HOST)
        return (self.means.to(HOST)[chosen] + self.stds.to(HOST)[chosen] * noise).to(self.means.device)

    def _components(self, x: Tensor, half_logsnr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``x - alpha * mean`` and its variance, ``(B, K, *S)``, and alpha and sigma to match; float64."""
        level = self.schedule.level(half_logsnr)
        x = double(x)[:, None]
        alpha, sigma = place(level.alpha, x), place(level.sigma, x)
        return x - alpha * double(self.means), (alpha * double(self.stds)) ** 2 + sigma**2, alpha, sigma

    def _log_joint(self, residual: Tensor, variance: Tensor) -> Tensor:
        per_dim = -0.5 * (residual**2 / variance + variance.log() + math.log(2 * math.pi))
        return double(self.log_weights) + per_dim.flatten(2).sum(dim=2)
