"""The border to diffusers: what a pipeline folder or hub id holds, and how to write one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redif_env.schedules import Schedule, VariancePreservingSchedule
from redif_env.types import PredictionType

_SCHEDULE_KEYS = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")


@dataclass(frozen=True)
class Pipeline:
    """What makes a teacher of a diffusers pipeline."""

    network: nn.Module
    schedule: Schedule
    sample_shape: tuple[int, ...]
    prediction_type: PredictionType


def read_pipeline(name_or_path: str | Path, name: str) -> Pipeline:
    """An unconditional ``UNet2DModel`` with its scheduler's schedule and prediction type.

    Args:
        name_or_path: a folder with ``unet/`` and ``scheduler/``, or a hub id.
        name: what messages call it.

    Raises:
        ValueError: if nothing is there, the weights are pickled, or the model or scheduler is of another kind.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    try:
        config = DDPMScheduler.load_config(str(name_or_path), subfolder="scheduler")
        # Stored weights may be half precision; a teacher computes in float32 unless moved elsewhere. The last option
        # is the default where accelerate is installed, and a warning where it is not.
        network = UNet2DModel.from_pretrained(
            str(name_or_path),
            subfolder="unet",
            use_safetensors=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
        )
    except OSError as error:
        raise ValueError(
            f"teacher={name!r} cannot be loaded: it is no built-in name ('digits', 'gaussian-ring'), and no diffusers "
            f"folder or reachable hub id with unet/ (config.json, safetensors) and scheduler/. diffusers said: {error}"
        ) from error
    _refuse_unsupported(network.config, name)
    return Pipeline(
        network=network,
        schedule=_read_schedule(config, name),
        sample_shape=_sample_shape(network.config),
        prediction_type=PredictionType(config.get("prediction_type", "epsilon")),
    )


def write_pipeline(pipeline: Pipeline, folder: Path) -> None:
    """Write a ``DDPMPipeline`` folder with safetensors.

    Raises:
        TypeError: if the network is no diffusers model, or the schedule not variance-preserving.
    """
    from diffusers import DDPMPipeline, DDPMScheduler, ModelMixin

    network, schedule = pipeline.network, pipeline.schedule
    if not isinstance(network, ModelMixin) or not isinstance(schedule, VariancePreservingSchedule):
        raise TypeError(
            f"teacher cannot be saved: its network is a {type(network).__name__}, and only diffusers models on a "
            "variance-preserving schedule have a folder format"
        )
    scheduler = DDPMScheduler(
        num_train_timesteps=len(schedule.knots),
        trained_betas=schedule.betas().tolist(),
        prediction_type=pipeline.prediction_type.value,
        clip_sample=False,
    )
    DDPMPipeline(network, scheduler).save_pretrained(str(folder), safe_serialization=True)


def _read_schedule(config: dict[str, Any], name: str) -> VariancePreservingSchedule:
    if config.get("rescale_betas_zero_snr"):
        raise ValueError(f"teacher={name!r} has rescale_betas_zero_snr: its first level has no signal to step from")
    if config.get("trained_betas") is not None:
        return VariancePreservingSchedule.from_betas(torch.tensor(config["trained_betas"], dtype=torch.float64))
    if "beta_schedule" not in config and "beta_start" not in config:
        raise ValueError(
            f"teacher={name!r} has the scheduler {config.get('_class_name')!r} without betas: "
            "only variance-preserving schedules can be used"
        )
    return VariancePreservingSchedule.from_diffusers(**{key: config[key] for key in _SCHEDULE_KEYS if key in config})


def _sample_shape(config: Any) -> tuple[int, ...]:
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return (config.in_channels, height, width)


def _refuse_unsupported(config: Any, name: str) -> None:
    if config.num_class_embeds or config.class_embed_type:
        raise ValueError(f"teacher={name!r} is class-conditional: only unconditional models can be used")
    if config.sample_size is None:
        raise ValueError(f"teacher={name!r} names no sample_size in unet/config.json: add it")
    if config.in_channels != config.out_channels:
        raise ValueError(
            f"teacher={name!r} predicts {config.out_channels} channels for {config.in_channels}: "
            "models that also predict a variance cannot be used"
        )
