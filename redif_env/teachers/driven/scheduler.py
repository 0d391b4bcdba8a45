"""The scheduler of a driven pipeline: the stock first-order one of its family, whose steps are taken elsewhere."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from redif_env.diffusion.noise_schedulers import Parameterization
from redif_env.diffusion.predictions import PLAIN, EDMPreconditioning
from redif_env.diffusion.schedules import (
    LEAST_ALPHA_BAR,
    FlowSchedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from redif_env.diffusion.types import PredictionType
from redif_env.teachers.driven.refused import REFUSED_SCHEDULERS
from redif_env.teachers.driven.schedules import (
    ArctanSchedule,
    DiscreteExplodingSchedule,
    InvertedFlowSchedule,
    ReversedOutput,
    ScaledInputs,
)

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from redif_env.teachers.driven.wave import Wave


def first_order(scheduler: SchedulerMixin, sigmas: bool = False) -> SchedulerMixin:
    """The stock deterministic first-order scheduler of the noise schedule that ``scheduler`` was made for.

    The last step lands on clean data, nothing is clipped, and the config keeps the keys of the original.

    Args:
        scheduler: of the pipeline.
        sigmas: whether it must have ``sigmas``, and samples be in their units.

    Raises:
        ValueError: if there is none.
    """
    import diffusers

    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    name = scheduler.config.get("_class_name") or type(scheduler).__name__
    if name in REFUSED_SCHEDULERS:
        raise ValueError(f"a pipeline with a {name} cannot be driven: {REFUSED_SCHEDULERS[name]}")
    kind = config.get("prediction_type", "flow_prediction")
    if config.get("use_flow_sigmas") and not name.startswith("FlowMatch") and kind != "flow_prediction":
        raise ValueError(
            f"a pipeline with a {name} with use_flow_sigmas and prediction_type={kind!r} cannot be driven: only "
            "'flow_prediction' can be read there"
        )
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas") or name == "LTXEulerAncestralRFScheduler":
        shift = config.get("flow_shift") or config.get("shift") or 1.0
        return _made(diffusers.FlowMatchEulerDiscreteScheduler, config, shift=shift, stochastic_sampling=False)
    if name.startswith("EDM"):
        return _made(diffusers.EDMEulerScheduler, config)
    if name.startswith("CosineDPM"):
        return _made(diffusers.CosineDPMSolverMultistepScheduler, config, solver_order=1)
    if config.get("timestep_type") == "continuous" or (sigmas and "beta_schedule" in config):
        return _made(diffusers.EulerDiscreteScheduler, config)
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise ValueError(f"a pipeline with a {name} cannot be driven: it has neither betas nor sigmas")
    if name.startswith("CogVideoX"):
        return _made(diffusers.CogVideoXDDIMScheduler, config, clip_sample=False, set_alpha_to_one=True)
    return _made(diffusers.DDIMScheduler, config, clip_sample=False, thresholding=False, set_alpha_to_one=True)


def _made(kind: type, config: Mapping[str, Any], **override: Any) -> SchedulerMixin:
    known = set(inspect.signature(kind.__init__).parameters) - {"self"}  # type: ignore[misc]
    made = kind(**{key: value for key, value in {**config, **override}.items() if key in known})
    # Pipelines read keys that only their own scheduler has.
    made._internal_dict = type(made._internal_dict)({**config, **made._internal_dict})
    return made


def parameterization_of(stock: SchedulerMixin) -> Parameterization:
    """Schedule, prediction type and preconditioning of a :func:`first_order` scheduler.

    A flow is not shifted: its shift may depend on the number of tokens.

    Raises:
        ValueError: if its networks predict something that cannot be read.
    """
    config, kind = stock.config, type(stock).__name__
    if kind.startswith("FlowMatch"):
        kind_of_flow = InvertedFlowSchedule if config.invert_sigmas else FlowSchedule
        sign = ReversedOutput() if config.invert_sigmas else PLAIN
        schedule = kind_of_flow(1.0, config.num_train_timesteps)
        return Parameterization(schedule, PredictionType.FLOW_PREDICTION, sign)
    prediction_type = PredictionType(config.get("prediction_type", "epsilon"))
    if kind == "EulerDiscreteScheduler" and config.timestep_type == "discrete":
        discrete = DiscreteExplodingSchedule(_preserving(stock, prediction_type).betas)
        return Parameterization(discrete, prediction_type, ScaledInputs())
    if kind == "EulerDiscreteScheduler":
        continuous = VarianceExplodingSchedule(config.sigma_min, config.sigma_max)
        return Parameterization(continuous, prediction_type, EDMPreconditioning(1.0))
    if kind in ("EDMEulerScheduler", "CosineDPMSolverMultistepScheduler"):
        exploding = (VarianceExplodingSchedule if kind.startswith("EDM") else ArctanSchedule)(
            config.sigma_min, config.sigma_max, config.get("rho", 7.0)
        )
        return Parameterization(exploding, prediction_type, EDMPreconditioning(config.sigma_data))
    return Parameterization(_preserving(stock, prediction_type), prediction_type)


def _preserving(stock: SchedulerMixin, prediction_type: PredictionType) -> VariancePreservingSchedule:
    """From the scheduler's own table, in which shifts and rescalings are done."""
    alpha_bars = stock.alphas_cumprod.cpu().double()
    if alpha_bars[-1] < 1e-12:
        if prediction_type is PredictionType.EPSILON:
            raise ValueError(
                "a pipeline with rescale_betas_zero_snr whose network predicts the noise cannot be driven: at its "
                "first level that is x itself and holds nothing of the sample"
            )
        alpha_bars[-1] = min(LEAST_ALPHA_BAR, alpha_bars[-2].item() / 4)
    return VariancePreservingSchedule(1 - alpha_bars / torch.cat([torch.ones(1).double(), alpha_bars[:-1]]))


def driven(stock: SchedulerMixin, wave: Wave) -> Any:
    """A copy of ``stock`` that leaves its steps to ``wave``.

    An instance of the stock class with the stock methods' signatures, since pipelines look at both.
    """
    made = copy.deepcopy(stock)
    made.__class__ = _driven_class(type(stock))  # type: ignore[arg-type]
    made.wave, made.leads = wave, True
    return made


class _Driven:
    """What a driven scheduler does in the place of the stock one."""

    order = 1
    wave: Wave
    leads: bool

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # Pipelines with two states step a copy along.
        follower = object.__new__(type(self))
        follower.__dict__.update(self.__dict__)
        follower.leads = False
        return follower

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return self.wave.scaled(sample)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        return self.wave.noised(original_samples, noise)

    def scale_noise(self, sample: Tensor, timestep: Any = None, noise: Tensor | None = None) -> Tensor:
        assert noise is not None
        return self.wave.noised(sample, noise)


@functools.cache
def _driven_class(kind: Any) -> type:
    @functools.wraps(kind.set_timesteps)  # type: ignore[attr-defined]
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.set_timesteps(self, *args, **kwargs)  # type: ignore[attr-defined]
        if self.leads:
            self.wave.begin(self, kwargs.get("mu"))

    @functools.wraps(kind.step)  # type: ignore[attr-defined]
    def step(
        self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, return_dict: bool = True, **rest: Any
    ) -> Any:
        from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

        if rest.get("per_token_timesteps") is not None:
            raise ValueError("tokens have levels of their own (per_token_timesteps), which no step common to all takes")
        moved = self.wave.step(model_output, timestep, sample) if self.leads else self.wave.follow(model_output, sample)
        return DDIMSchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    init_noise_sigma = property(lambda self: self.wave.start_size, lambda self, value: None)
    body = {"set_timesteps": set_timesteps, "step": step, "init_noise_sigma": init_noise_sigma}
    return type(f"Driven{kind.__name__}", (_Driven, kind), body)
