"""Schedules as diffusers' scheduler configs: how any of them is read, and one written that stands for ours."""

from __future__ import annotations

import inspect
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
_BETAS = (
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "RePaintScheduler",
    "SASolverScheduler",
    "UnCLIPScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers whose schedule is a table of betas."""
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


_READ = frozenset(
    (
        *_BETA_KEYS,
        *("trained_betas", "rescale_betas_zero_snr", "snr_shift_scale", "prediction_type", "timestep_type"),
        *("sigma_min", "sigma_max", "sigma_data", "rho"),
        *("shift", "flow_shift", "use_flow_sigmas", "invert_sigmas", "use_dynamic_shifting", "time_shift_type"),
        *("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
    )
)
"""Settings of schedulers that decide what level a timestep is, or what a network predicts there."""

_OF_SAMPLING = frozenset(
    (
        *("algorithm_type", "corrector_order", "disable_corrector", "eta", "euler_at_final", "final_sigmas_type"),
        *("interpolation_type", "lambda_min_clipped", "lower_order_final", "noise_sampler_seed", "order", "predict_x0"),
        *("predictor_order", "sampling_eps", "sigma_schedule", "skip_prk_steps", "snr", "solver_order", "solver_p"),
        *("solver_type", "stochastic_sampling", "shift_terminal", "tau_func", "variance_type", "correct_steps"),
        *("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
        *("set_alpha_to_one", "set_alpha_to_zero", "steps_offset", "timestep_spacing"),
        *("use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas"),
    )
)
"""Settings that decide which levels are stepped to, and how; not what they are."""


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

    Settings that the config lacks have the defaults of its class, as in diffusers.

    Args:
        config: of the scheduler, with ``_class_name``; without one it must hold the betas.
        name: the teacher's, for messages.
        tokens: that the network makes of a sample, where the shift depends on it.

    Raises:
        ValueError: if the scheduler is of a kind that cannot be used; the message says why.
    """
    kind = str(config.get("_class_name"))
    if kind == "ReDiFScheduler":
        return read_scheduler(config["process"]["noise"], name, tokens)
    if kind in _DISCRETE:
        raise ValueError(
            f"teacher={name!r} has a {kind}: discrete diffusion moves between tokens, which have no alpha, sigma and "
            "no probability flow to step along"
        )
    if kind in _CONSISTENCY:
        raise ValueError(
            f"teacher={name!r} has a {kind}: it is a few-step student already; use the many-step model that it was "
            "distilled from"
        )
    config = _with_defaults(config, name)
    if kind in _EDM:
        return _edm(config, name)
    if kind == "ScoreSdeVeScheduler":
        # Its network takes sigma and predicts the score.
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


def _with_defaults(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """``config`` with its class's defaults for what is missing, and without what the class does not take.

    Raises:
        ValueError: if the class is unknown, or changes its schedule by a setting that is not read here.
    """
    kind = config.get("_class_name")
    if kind is None:
        return _complete(config, name)
    if kind not in (*_BETAS, *_EDM, *_FLOW, "ScoreSdeVeScheduler"):
        raise ValueError(
            f"teacher={name!r} has the scheduler {kind!r}, whose alpha and sigma are unknown: schedulers can be "
            f"{', '.join((*_BETAS, *_EDM, *_FLOW, 'ScoreSdeVeScheduler'))}"
        )
    import diffusers

    taken = inspect.signature(getattr(diffusers, kind).__init__).parameters
    if "args" in taken:  # what stands for a class whose own packages are not installed
        return _complete(config, name)
    defaults = {key: value.default for key, value in taken.items() if key not in ("self", "kwargs")}
    unread = [
        key
        for key, default in defaults.items()
        if key not in _READ | _OF_SAMPLING and config.get(key, default) != default
    ]
    if unread:
        given = ", ".join(f"{key}={config[key]!r}" for key in unread)
        raise ValueError(
            f"teacher={name!r} has a {kind} with {given}, and what that does to its schedule is unknown: use another "
            "scheduler's config with the same schedule"
        )
    return {key: config.get(key, default) for key, default in defaults.items()} | {"_class_name": kind}


def _complete(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """``config`` of a class whose defaults are unknown.

    Raises:
        ValueError: if it does not hold its betas.
    """
    if config.get("trained_betas") is None and not all(config.get(key) is not None for key in _BETA_KEYS):
        raise ValueError(
            f"teacher={name!r} has a {config.get('_class_name')} without trained_betas and without "
            f"{', '.join(_BETA_KEYS)}: add them, or the _class_name of the scheduler whose defaults they have"
        )
    return dict(config)


def _edm(config: Mapping[str, Any], name: str) -> Parameterization:
    schedule = VarianceExplodingSchedule(config["sigma_min"], config["sigma_max"], config["rho"])
    kind = _prediction_type(config, name, PredictionType.EPSILON, PredictionType.V_PREDICTION)
    return Parameterization(schedule, kind, EDMPreconditioning(config["sigma_data"]))


def _flow(config: Mapping[str, Any], name: str, tokens: int | None) -> Parameterization:
    if config.get("invert_sigmas"):
        raise ValueError(f"teacher={name!r} has invert_sigmas: its time runs the other way, which is not supported")
    shift = float(config.get("flow_shift") or config.get("shift") or 1.0)
    if config.get("use_dynamic_shifting") and tokens is not None:
        shift = _dynamic_shift(config, tokens)
    schedule = FlowSchedule(shift, int(config.get("num_train_timesteps", 1000)))
    flow = PredictionType.FLOW_PREDICTION
    # The multistep solvers take other predictions on a flow's levels, which no student's file can say.
    kind = _prediction_type(config, name, flow) if "prediction_type" in config else flow
    return Parameterization(schedule, kind)


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
    kind = _prediction_type(config, name, PredictionType.V_PREDICTION)
    return Parameterization(VarianceExplodingSchedule(low, high), kind, EDMPreconditioning(1.0))


def _variance_preserving(config: Mapping[str, Any], name: str) -> VariancePreservingSchedule:
    zero = bool(config.get("rescale_betas_zero_snr"))
    given, known = config.get("trained_betas"), {key: config[key] for key in _BETA_KEYS if key in config}
    if given is not None:
        betas = torch.tensor(given, dtype=torch.float64, device=HOST)
        zero = zero or bool(betas[-1] >= 1)
    else:
        betas = VariancePreservingSchedule.from_diffusers(**known).betas
    betas = _snr_shifted(betas, float(config.get("snr_shift_scale") or 1.0))
    schedule = VariancePreservingSchedule(zero_terminal_snr(betas) if zero else betas)
    if zero and _prediction_type(config, name) is PredictionType.EPSILON:
        raise ValueError(
            f"teacher={name!r} has rescale_betas_zero_snr and predicts the noise: at its first level that is x itself "
            "and tells nothing of the sample; networks for such schedules predict v or the sample"
        )
    return schedule


def _snr_shifted(betas: torch.Tensor, scale: float) -> torch.Tensor:
    """Betas ``(T,)`` whose signal-to-noise ratios are ``1 / scale`` of those given (CogVideoX)."""
    if scale == 1:
        return betas
    alpha_bars = (1 - betas).cumprod(0)
    alpha_bars = alpha_bars / (scale + (1 - scale) * alpha_bars)
    return 1 - alpha_bars / torch.cat([torch.ones_like(alpha_bars[:1]), alpha_bars[:-1]])


def _prediction_type(config: Mapping[str, Any], name: str, *known: PredictionType) -> PredictionType:
    """What the network predicts.

    Raises:
        ValueError: if it is none of ``known``, of all if not given.
    """
    found, values = config.get("prediction_type", "epsilon"), [kind.value for kind in known or PredictionType]
    if found not in values:
        raise ValueError(
            f"teacher={name!r} has a {config.get('_class_name')} with prediction_type={found!r}: only "
            f"{', '.join(map(repr, values))} can be read there"
        )
    return PredictionType(found)
