"""Schedules as diffusers' scheduler configs: how any of them is read, and one written that stands for ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from redif_env.diffusion.placement import HOST
from redif_env.diffusion.predictions import PLAIN, EDMPreconditioning, Preconditioning, ScorePreconditioning
from redif_env.diffusion.schedules import (
    FlowSchedule,
    NoiseLabel,
    Schedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
    zero_terminal_snr,
)
from redif_env.diffusion.types import PredictionType

_BETA_KEYS = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_DISCRETE = (
    "VQDiffusionScheduler",
    "AmusedScheduler",
    "BlockRefinementScheduler",
    "DiscreteDDIMScheduler",
    "EntropyBoundScheduler",
)
_CONSISTENCY = (
    "CMStochasticIterativeScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "SCMScheduler",
    "FlowMatchLCMScheduler",
)


@dataclass(frozen=True)
class Parameterization:
    """What a scheduler's config says of a network."""

    schedule: Schedule
    prediction_type: PredictionType
    preconditioning: Preconditioning = PLAIN


def action_parameterization(parameterization: Parameterization) -> Parameterization:
    """In what form actions bring predictions, of a teacher whose answers are read so.

    Velocity in place of noise where the schedule preserves variance; the teacher's own form elsewhere. Networks of
    students answer in it too, unless they are copies of the teacher.
    """
    noisy = parameterization.prediction_type is PredictionType.EPSILON
    if (
        noisy
        and isinstance(parameterization.schedule, VariancePreservingSchedule)
        and parameterization.preconditioning == PLAIN
    ):
        return replace(parameterization, prediction_type=PredictionType.V_PREDICTION)
    return parameterization


def read_scheduler(config: Mapping[str, Any], name: str, tokens: int | None = None) -> Parameterization:
    """Schedule, prediction type and preconditioning that a diffusers scheduler's config describes.

    Args:
        config: of the scheduler, with ``_class_name``.
        name: the teacher's, for messages.
        tokens: that the network makes of a sample, where the shift depends on it.

    Raises:
        ValueError: if the scheduler is of a kind that cannot be used; the message says why.
    """
    kind = str(config.get("_class_name"))
    if kind in _DISCRETE:
        raise ValueError(
            f"teacher={name!r} has a {kind}: discrete diffusion moves between tokens, which have no alpha, sigma and "
            "no probability flow to step along"
        )
    if kind in _CONSISTENCY:
        raise ValueError(
            f"teacher={name!r} has a {kind}: it is a few-step student already; give the many-step model it was made of"
        )
    if kind in _EDM:
        return _edm(config)
    if kind == "ScoreSdeVeScheduler":
        # Its network is told sigma and answers with the score.
        schedule = VarianceExplodingSchedule(config["sigma_min"], config["sigma_max"], label=NoiseLabel.SIGMA)
        return Parameterization(schedule, PredictionType.EPSILON, ScorePreconditioning())
    if kind in _FLOW or config.get("use_flow_sigmas"):
        return _flow(config, name, tokens)
    if config.get("timestep_type") == "continuous":
        return _continuous(config, name)
    return Parameterization(_variance_preserving(config, name), _prediction_type(config, name))


def scheduler_config(parameterization: Parameterization) -> dict[str, Any]:
    """The config, with ``_class_name``, that :func:`read_scheduler` makes the same of, bit for bit.

    Raises:
        TypeError: if the schedule or the preconditioning is of a kind that no diffusers scheduler has.
    """
    schedule, preconditioning = parameterization.schedule, parameterization.preconditioning
    kind = parameterization.prediction_type.value
    if isinstance(schedule, VariancePreservingSchedule) and preconditioning == PLAIN:
        return {
            "_class_name": "DDPMScheduler",
            "num_train_timesteps": len(schedule.betas),
            "trained_betas": schedule.betas.tolist(),
            "prediction_type": kind,
        }
    if isinstance(schedule, FlowSchedule) and preconditioning == PLAIN and kind == "flow_prediction":
        return {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": schedule.num_train_timesteps,
            "shift": schedule.shift,
        }
    if isinstance(schedule, VarianceExplodingSchedule):
        ends = {"sigma_min": schedule.sigma_min, "sigma_max": schedule.sigma_max}
        if isinstance(preconditioning, EDMPreconditioning) and schedule.label is NoiseLabel.QUARTER_LOG:
            edm = {"rho": schedule.rho, "sigma_data": preconditioning.sigma_data, "prediction_type": kind}
            return {"_class_name": "EDMEulerScheduler", **ends, **edm}
        if isinstance(preconditioning, ScorePreconditioning) and schedule.label is NoiseLabel.SIGMA:
            return {"_class_name": "ScoreSdeVeScheduler", **ends}
    raise TypeError(
        f"teacher cannot be saved: no diffusers scheduler has a {type(schedule).__name__} with {kind} and "
        f"{type(preconditioning).__name__}"
    )


def _edm(config: Mapping[str, Any]) -> Parameterization:
    schedule = VarianceExplodingSchedule(config["sigma_min"], config["sigma_max"], config.get("rho", 7.0))
    prediction_type = PredictionType(config.get("prediction_type", "epsilon"))
    return Parameterization(schedule, prediction_type, EDMPreconditioning(config.get("sigma_data", 0.5)))


def _flow(config: Mapping[str, Any], name: str, tokens: int | None) -> Parameterization:
    if config.get("invert_sigmas"):
        raise ValueError(f"teacher={name!r} has invert_sigmas: its time runs the other way, which is not supported")
    shift = float(config.get("flow_shift") or config.get("shift") or 1.0)
    if config.get("use_dynamic_shifting") and tokens is not None:
        shift = _dynamic_shift(config, tokens)
    schedule = FlowSchedule(shift, int(config.get("num_train_timesteps", 1000)))
    return Parameterization(schedule, PredictionType.FLOW_PREDICTION)


def _dynamic_shift(config: Mapping[str, Any], tokens: int) -> float:
    """The shift at a resolution (Esser et al. 2024, Section 5.3.2), as diffusers' pipelines compute it."""
    low, high = config["base_shift"], config["max_shift"]
    slope = (high - low) / (config["max_image_seq_len"] - config["base_image_seq_len"])
    mu = low + slope * (tokens - config["base_image_seq_len"])
    return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu


def _continuous(config: Mapping[str, Any], name: str) -> Parameterization:
    """EulerDiscreteScheduler's continuous timesteps: EDM, for data of unit variance (Blattmann et al. 2023)."""
    low, high = config.get("sigma_min"), config.get("sigma_max")
    if low is None or high is None:
        raise ValueError(f"teacher={name!r} has continuous timesteps, but no sigma_min and sigma_max: add them")
    prediction_type = _prediction_type(config, name)
    if prediction_type is not PredictionType.V_PREDICTION:
        raise ValueError(
            f"teacher={name!r} has continuous timesteps with prediction_type={prediction_type.value!r}: "
            "only 'v_prediction' can be read"
        )
    return Parameterization(VarianceExplodingSchedule(low, high), prediction_type, EDMPreconditioning(1.0))


def _variance_preserving(config: Mapping[str, Any], name: str) -> VariancePreservingSchedule:
    zero = bool(config.get("rescale_betas_zero_snr"))
    given = config.get("trained_betas")
    if given is None and "beta_schedule" not in config and "beta_start" not in config:
        raise ValueError(
            f"teacher={name!r} has the scheduler {config.get('_class_name')!r}, which tells neither betas nor sigmas: "
            "its alpha and sigma are unknown"
        )
    if given is not None:
        betas = torch.tensor(given, dtype=torch.float64, device=HOST)
        zero = zero or bool(betas[-1] >= 1)
        if zero:
            betas = zero_terminal_snr(betas)
        schedule = VariancePreservingSchedule(betas)
    else:
        known = {key: config[key] for key in _BETA_KEYS if key in config}
        schedule = VariancePreservingSchedule.from_diffusers(**known, rescale_betas_zero_snr=zero)
    if zero and _prediction_type(config, name) is PredictionType.EPSILON:
        raise ValueError(
            f"teacher={name!r} has rescale_betas_zero_snr and predicts the noise: at its first level that is x itself "
            "and tells nothing of the sample; networks for such schedules predict v or the sample"
        )
    return schedule


def _prediction_type(config: Mapping[str, Any], name: str) -> PredictionType:
    found = config.get("prediction_type", "epsilon")
    try:
        return PredictionType(found)
    except ValueError as error:
        known = ", ".join(repr(kind.value) for kind in PredictionType)
        raise ValueError(f"teacher={name!r} has prediction_type={found!r}: only {known} can be read") from error
