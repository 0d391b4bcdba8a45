"""The border to diffusers: what a pipeline folder or hub id holds, and how to write one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from redif_env.mixtures import GaussianMixture
from redif_env.schedules import Schedule, VariancePreservingSchedule
from redif_env.types import PredictionType

if TYPE_CHECKING:
    from diffusers import ModelMixin

_SCHEDULE_KEYS = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")


@dataclass(frozen=True)
class Pipeline:
    """What makes a teacher of a diffusers pipeline."""

    network: nn.Module
    schedule: Schedule
    sample_shape: tuple[int, ...]
    prediction_type: PredictionType


def read_pipeline(name_or_path: str | Path, name: str) -> Pipeline:
    """An unconditional network with its scheduler's schedule and prediction type.

    Args:
        name_or_path: a folder with ``unet/`` (a ``UNet2DModel``, or the ``GaussianMixtureModel`` that this library
            writes) and ``scheduler/``, or a hub id.
        name: what messages call it.

    Raises:
        ValueError: if nothing is there, the weights are pickled, or the model or scheduler is of another kind.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    from redif_env.mixture_model import GaussianMixtureModel

    try:
        config = DDPMScheduler.load_config(str(name_or_path), subfolder="scheduler")
        found = UNet2DModel.load_config(str(name_or_path), subfolder="unet")
        kind = GaussianMixtureModel if found["_class_name"] == GaussianMixtureModel.__name__ else UNet2DModel
        # Stored weights may be half precision; a teacher computes in float32 unless moved elsewhere. The last option
        # is the default where accelerate is installed, and a warning where it is not.
        network = kind.from_pretrained(
            str(name_or_path),
            subfolder="unet",
            use_safetensors=True,
            torch_dtype=torch.float64 if found.get("double") else torch.float32,
            low_cpu_mem_usage=False,
        )
    except OSError as error:
        raise ValueError(
            f"teacher={name!r} cannot be loaded: it is no built-in name ('digits', 'gaussian-ring'), and no diffusers "
            f"folder or reachable hub id with unet/ (config.json, safetensors) and scheduler/. diffusers said: {error}"
        ) from error
    return Pipeline(
        network=network,
        schedule=schedule_of(config, name),
        sample_shape=sample_shape_of(network, name),
        prediction_type=PredictionType(config.get("prediction_type", "epsilon")),
    )


def write_pipeline(pipeline: Pipeline, folder: Path) -> None:
    """Write a ``DDPMPipeline`` folder with safetensors.

    Raises:
        TypeError: if the network is no diffusers model, or the schedule not variance-preserving.
    """
    from diffusers import DDPMPipeline, DDPMScheduler

    scheduler = DDPMScheduler(**scheduler_settings(pipeline.schedule, pipeline.prediction_type), clip_sample=False)
    DDPMPipeline(as_model(pipeline.network), scheduler).save_pretrained(str(folder), safe_serialization=True)


def as_model(network: nn.Module) -> ModelMixin:
    """The network as a diffusers model.

    Raises:
        TypeError: if it is none, and no Gaussian mixture either.
    """
    from diffusers import ModelMixin

    if isinstance(network, GaussianMixture):
        from redif_env.mixture_model import GaussianMixtureModel

        return GaussianMixtureModel.of(network)
    if not isinstance(network, ModelMixin):
        raise TypeError(
            f"teacher cannot be saved: its network is a {type(network).__name__}, and only diffusers models have a "
            "folder format"
        )
    return network


def scheduler_settings(schedule: Schedule, prediction_type: PredictionType) -> dict[str, Any]:
    """The arguments by which diffusers' schedulers know a schedule; :func:`schedule_of` is the way back, bit for bit.

    Raises:
        TypeError: if the schedule is not variance-preserving.
    """
    if not isinstance(schedule, VariancePreservingSchedule):
        raise TypeError(f"teacher cannot be saved: a {type(schedule).__name__} is not variance-preserving")
    return {
        "num_train_timesteps": len(schedule.betas),
        "trained_betas": schedule.betas.tolist(),
        "prediction_type": prediction_type.value,
    }


def schedule_of(config: dict[str, Any], name: str) -> VariancePreservingSchedule:
    """The schedule that a scheduler's config describes; ``name`` is the teacher's, for messages.

    Raises:
        ValueError: if it is of another kind than variance-preserving.
    """
    if config.get("rescale_betas_zero_snr"):
        raise ValueError(f"teacher={name!r} has rescale_betas_zero_snr: its first level has no signal to step from")
    if config.get("trained_betas") is not None:
        return VariancePreservingSchedule(torch.tensor(config["trained_betas"], dtype=torch.float64))
    if "beta_schedule" not in config and "beta_start" not in config:
        raise ValueError(
            f"teacher={name!r} has the scheduler {config.get('_class_name')!r} without betas: "
            "only variance-preserving schedules can be used"
        )
    return VariancePreservingSchedule.from_diffusers(**{key: config[key] for key in _SCHEDULE_KEYS if key in config})


def sample_shape_of(network: ModelMixin, name: str) -> tuple[int, ...]:
    """Shape S of what a diffusers model denoises.

    Raises:
        ValueError: if the model is conditional, predicts something besides, or does not say its size.
    """
    config = network.config
    if "sample_shape" in config:
        return tuple(config.sample_shape)
    if config.num_class_embeds or config.class_embed_type:
        raise ValueError(f"teacher={name!r} is class-conditional: only unconditional models can be used")
    if config.sample_size is None:
        raise ValueError(f"teacher={name!r} names no sample_size in unet/config.json: add it")
    if config.in_channels != config.out_channels:
        raise ValueError(
            f"teacher={name!r} predicts {config.out_channels} channels for {config.in_channels}: "
            "models that also predict a variance cannot be used"
        )
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return (config.in_channels, height, width)
