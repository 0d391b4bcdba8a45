"""Prediction types: what a network's output means, and how each form is turned into the others.

Every form is linear in the clean sample and the noise, so at a level both directions are a few numbers: the output is
turned into a clean estimate and a noise prediction (:meth:`Preconditioning.read`) and back (``write``); the two are
inverse at any level with signal and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redif_env.diffusion.placement import combine, expand, place
from redif_env.diffusion.types import Level, Prediction, PredictionType

Pair = tuple[Tensor, Tensor]
"""Two factors, one a row."""


def clean_estimate(x: Tensor, eps: Tensor, level: Level) -> Tensor:
    """``x0`` from ``x = alpha * x0 + sigma * eps``."""
    alpha, sigma = _scales(level, x)
    return (x - sigma * eps) / alpha


def noise_estimate(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """``eps`` from ``x = alpha * x0 + sigma * eps``."""
    alpha, sigma = _scales(level, x)
    return (x - alpha * x0) / sigma


class Preconditioning:
    """The scales of a network's inputs and outputs; this one has none of its own."""

    def input_scale(self, level: Level) -> Tensor | None:
        """What the network's input is ``x`` times of, ``(B,)``; None if it is ``x`` itself."""
        return None

    def inputs(self, x: Tensor, level: Level) -> Tensor:
        """The network's input for ``x`` ``(B, *S)``."""
        scale = self.input_scale(level)
        return x if scale is None else x * place(scale, x)

    def samples(self, inputs: Tensor, level: Level) -> Tensor:
        """The inverse of :meth:`inputs`."""
        scale = self.input_scale(level)
        return inputs if scale is None else inputs / place(scale, inputs)

    def read(self, output: Tensor, x: Tensor, level: Level, prediction_type: PredictionType) -> Prediction:
        """Clean estimate and noise prediction of a network's ``output`` at ``x``, all ``(B, *S)``.

        No form but ``epsilon`` (and ``sample``) divides by alpha (sigma), so the others can be read at pure noise.
        """
        if prediction_type is PredictionType.EPSILON:
            return Prediction(x0=clean_estimate(x, output, level), eps=output)
        if prediction_type is PredictionType.SAMPLE:
            return Prediction(x0=output, eps=noise_estimate(x, output, level))
        alpha, sigma = level.alpha, level.sigma
        if prediction_type is PredictionType.FLOW_PREDICTION:
            # u = eps - x0 (Lipman et al. 2023), so x = (alpha + sigma) x0 + sigma u.
            both = alpha + sigma
            return _read((1 / both, -sigma / both), (1 / both, alpha / both), x, output)
        # v = alpha * eps - sigma * x0 (Salimans and Ho 2022, Appendix D), for alpha**2 + sigma**2 = 1.
        return _read((alpha, -sigma), (sigma, alpha), x, output)

    def write(self, prediction: Prediction, level: Level, prediction_type: PredictionType) -> Tensor:
        """The inverse of :meth:`read`."""
        if prediction_type is PredictionType.EPSILON:
            return prediction.eps
        if prediction_type is PredictionType.SAMPLE:
            return prediction.x0
        if prediction_type is PredictionType.FLOW_PREDICTION:
            return prediction.eps - prediction.x0
        alpha, sigma = _scales(level, prediction.x0)
        return alpha * prediction.eps - sigma * prediction.x0


PLAIN = Preconditioning()


@dataclass(frozen=True)
class EDMPreconditioning(Preconditioning):
    """Inputs and outputs of unit variance (Karras et al. 2022, Table 1), on a variance-exploding schedule.

    ``x0 = c_skip * x + c_out * output``, where the network's input is ``c_in * x``. As in diffusers the output of a
    ``v_prediction`` network has the opposite sign of an ``epsilon`` one's.

    Args:
        sigma_data: standard deviation of the data, above 0.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data must be above 0, got {self.sigma_data}")

    def input_scale(self, level: Level) -> Tensor:
        return self._total(level) ** -0.5

    def read(self, output: Tensor, x: Tensor, level: Level, prediction_type: PredictionType) -> Prediction:
        skip, out = self._scales(level, prediction_type)
        # (x - x0) / sigma, written so that small noise loses no digits.
        return _read((skip, out), (level.sigma / self._total(level), -out / level.sigma), x, output)

    def write(self, prediction: Prediction, level: Level, prediction_type: PredictionType) -> Tensor:
        skip, out = self._scales(level, prediction_type)
        weights = torch.stack([(1 - skip) / out, -skip * level.sigma / out], dim=1)
        return combine(weights[:, None], torch.stack([prediction.x0, prediction.eps], dim=1))[:, 0]

    def _total(self, level: Level) -> Tensor:
        return level.sigma**2 + self.sigma_data**2

    def _scales(self, level: Level, prediction_type: PredictionType) -> Pair:
        """c_skip and c_out."""
        total = self._total(level)
        out = level.sigma * self.sigma_data / total**0.5
        return self.sigma_data**2 / total, -out if prediction_type is PredictionType.V_PREDICTION else out


@dataclass(frozen=True)
class ScorePreconditioning(Preconditioning):
    """The network predicts the score, ``-eps / sigma`` (Song et al. 2021); its prediction type is ``epsilon``."""

    def read(self, output: Tensor, x: Tensor, level: Level, prediction_type: PredictionType) -> Prediction:
        return super().read(-place(level.sigma, x) * output, x, level, prediction_type)

    def write(self, prediction: Prediction, level: Level, prediction_type: PredictionType) -> Tensor:
        return -super().write(prediction, level, prediction_type) / place(level.sigma, prediction.eps)


def _scales(level: Level, like: Tensor) -> Pair:
    """Alpha and sigma as factors of samples ``like`` ``(B, *S)``, sent together."""
    alpha, sigma = torch.stack([level.alpha, level.sigma]).to(like)
    return expand(alpha, like), expand(sigma, like)


def _read(x0: Pair, eps: Pair, x: Tensor, output: Tensor) -> Prediction:
    """The prediction whose parts are sums of ``x`` and the output, by host factors ``(B,)``."""
    weights = torch.stack([torch.stack(pair, dim=1) for pair in (x0, eps)], dim=1)
    both = combine(weights, torch.stack([x, output], dim=1))
    return Prediction(x0=both[:, 0], eps=both[:, 1])
