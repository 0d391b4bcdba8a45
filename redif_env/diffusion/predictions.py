"""Predictions: the forms in which a network answers, and how each is turned into the others.

Each form is a linear function of the clean sample and the noise, so it can be read (:func:`read_output`) and written
(:func:`write_output`); the two are inverse at any level with signal and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from redif_env.diffusion.types import Level, Prediction, PredictionType, expand


def clean_estimate(x: Tensor, eps: Tensor, level: Level) -> Tensor:
    """``x0`` from ``x = alpha * x0 + sigma * eps``."""
    alpha, sigma = scales(level, x)
    return (x - sigma * eps) / alpha


def noise_estimate(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """``eps`` from ``x = alpha * x0 + sigma * eps``."""
    alpha, sigma = scales(level, x)
    return (x - alpha * x0) / sigma


def read_output(output: Tensor, x: Tensor, level: Level, prediction_type: PredictionType) -> Prediction:
    """What a network's ``output`` ``(B, *S)`` at ``x`` ``(B, *S)`` says, in both coordinates.

    No form but ``epsilon`` (and ``sample``) divides by alpha (sigma), so the others can be read at pure noise.
    """
    if prediction_type is PredictionType.EPSILON:
        return Prediction(x0=clean_estimate(x, output, level), eps=output)
    if prediction_type is PredictionType.SAMPLE:
        return Prediction(x0=output, eps=noise_estimate(x, output, level))
    alpha, sigma = scales(level, x)
    if prediction_type is PredictionType.FLOW_PREDICTION:
        # u = eps - x0 (Lipman et al. 2023), so x = (alpha + sigma) x0 + sigma u.
        both = alpha + sigma
        return Prediction(x0=(x - sigma * output) / both, eps=(x + alpha * output) / both)
    # v = alpha * eps - sigma * x0 (Salimans and Ho 2022, Appendix D), for alpha**2 + sigma**2 = 1.
    return Prediction(x0=alpha * x - sigma * output, eps=alpha * output + sigma * x)


def write_output(prediction: Prediction, level: Level, prediction_type: PredictionType) -> Tensor:
    """The output ``(B, *S)`` of a network that predicts so: what :func:`read_output` reads."""
    if prediction_type is PredictionType.EPSILON:
        return prediction.eps
    if prediction_type is PredictionType.SAMPLE:
        return prediction.x0
    if prediction_type is PredictionType.FLOW_PREDICTION:
        return prediction.eps - prediction.x0
    alpha, sigma = scales(level, prediction.x0)
    return alpha * prediction.eps - sigma * prediction.x0


def velocity(x: Tensor, eps: Tensor, level: Level) -> Tensor:
    """``v = alpha * eps - sigma * x0`` from ``x = alpha * x0 + sigma * eps``, for ``alpha**2 + sigma**2 = 1``."""
    alpha, sigma = scales(level, x)
    return (eps - sigma * x) / alpha


def scales(level: Level, like: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma, to multiply samples ``like`` ``(B, *S)`` by."""
    return expand(level.alpha, like).to(like.dtype), expand(level.sigma, like).to(like.dtype)


class Preconditioning:
    """What stands between a sample and its network; this one: nothing."""

    def inputs(self, x: Tensor, level: Level) -> Tensor:
        """What the network is given for ``x`` ``(B, *S)``."""
        return x

    def samples(self, inputs: Tensor, level: Level) -> Tensor:
        """The inverse of :meth:`inputs`."""
        return inputs

    def read(self, output: Tensor, x: Tensor, level: Level, prediction_type: PredictionType) -> Prediction:
        """What an ``output`` says."""
        return read_output(output, x, level, prediction_type)

    def write(self, prediction: Prediction, level: Level, prediction_type: PredictionType) -> Tensor:
        """The inverse of :meth:`read`."""
        return write_output(prediction, level, prediction_type)


PLAIN = Preconditioning()


@dataclass(frozen=True)
class EDMPreconditioning(Preconditioning):
    """Inputs and outputs of unit variance (Karras et al. 2022, Table 1), on a variance-exploding schedule.

    ``x0 = c_skip * x + c_out * output``, where the network is given ``c_in * x``. As in diffusers the output of a
    ``v_prediction`` network has the opposite sign of an ``epsilon`` one's.

    Args:
        sigma_data: standard deviation of the data, above 0.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data must be above 0, got {self.sigma_data}")

    def inputs(self, x: Tensor, level: Level) -> Tensor:
        _, sigma = scales(level, x)
        return x / (sigma**2 + self.sigma_data**2) ** 0.5

    def samples(self, inputs: Tensor, level: Level) -> Tensor:
        _, sigma = scales(level, inputs)
        return inputs * (sigma**2 + self.sigma_data**2) ** 0.5

    def read(self, output: Tensor, x: Tensor, level: Level, prediction_type: PredictionType) -> Prediction:
        skip, out = self._scales(level, x, prediction_type)
        x0 = skip * x + out * output
        # (x - x0) / sigma, put so that small noise loses no digits.
        _, sigma = scales(level, x)
        eps = sigma / (sigma**2 + self.sigma_data**2) * x - (out / sigma) * output
        return Prediction(x0=x0, eps=eps)

    def write(self, prediction: Prediction, level: Level, prediction_type: PredictionType) -> Tensor:
        skip, out = self._scales(level, prediction.x0, prediction_type)
        _, sigma = scales(level, prediction.x0)
        return (prediction.x0 - skip * (prediction.x0 + sigma * prediction.eps)) / out

    def _scales(self, level: Level, like: Tensor, prediction_type: PredictionType) -> tuple[Tensor, Tensor]:
        """c_skip and c_out."""
        _, sigma = scales(level, like)
        total = sigma**2 + self.sigma_data**2
        out = sigma * self.sigma_data / total**0.5
        return self.sigma_data**2 / total, -out if prediction_type is PredictionType.V_PREDICTION else out


@dataclass(frozen=True)
class ScorePreconditioning(Preconditioning):
    """The network answers with the score, ``-eps / sigma`` (Song et al. 2021); its prediction type is ``epsilon``."""

    def read(self, output: Tensor, x: Tensor, level: Level, prediction_type: PredictionType) -> Prediction:
        _, sigma = scales(level, x)
        return read_output(-sigma * output, x, level, prediction_type)

    def write(self, prediction: Prediction, level: Level, prediction_type: PredictionType) -> Tensor:
        _, sigma = scales(level, prediction.eps)
        return -write_output(prediction, level, prediction_type) / sigma
