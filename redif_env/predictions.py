"""Predictions: the forms in which a network answers, and how each is turned into the others."""

from __future__ import annotations

from torch import Tensor

from redif_env.types import Level, Prediction, PredictionType, expand


def clean_estimate(x: Tensor, eps: Tensor, level: Level) -> Tensor:
    """``x0`` from ``x = alpha * x0 + sigma * eps``."""
    alpha, sigma = expand(level.alpha, x).to(x.dtype), expand(level.sigma, x).to(x.dtype)
    return (x - sigma * eps) / alpha


def noise_estimate(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """``eps`` from ``x = alpha * x0 + sigma * eps``."""
    alpha, sigma = expand(level.alpha, x).to(x.dtype), expand(level.sigma, x).to(x.dtype)
    return (x - alpha * x0) / sigma


def read_output(output: Tensor, x: Tensor, level: Level, prediction_type: PredictionType) -> Prediction:
    """What a network's ``output`` ``(B, *S)`` at ``x`` ``(B, *S)`` says, in both coordinates."""
    if prediction_type is PredictionType.EPSILON:
        return Prediction(x0=clean_estimate(x, output, level), eps=output)
    if prediction_type is PredictionType.SAMPLE:
        return Prediction(x0=output, eps=noise_estimate(x, output, level))
    # v = alpha * eps - sigma * x0 (Salimans and Ho 2022, Appendix D), for alpha**2 + sigma**2 = 1.
    alpha, sigma = expand(level.alpha, x).to(x.dtype), expand(level.sigma, x).to(x.dtype)
    return Prediction(x0=alpha * x - sigma * output, eps=alpha * output + sigma * x)
