"""Read and write diffusers pipelines: folders and hub ids."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from torch import nn

from redif_env.diffusion.noise_schedulers import Parameterization, read_scheduler, scheduler_config
from redif_env.teachers.components import VAEDecoder, decoder_of, encode_prompts
from redif_env.teachers.conditions import UNCONDITIONAL, Conditions, ConditionsLike
from redif_env.teachers.mixtures import GaussianMixture
from redif_env.teachers.networks import check_kind, conditions_of, shape_of, tokens_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

BUILT_IN: dict[str, int | None] = {
    "gaussian-ring": None,
    "digits": None,
    "digits-classes": 10,
    "mnist": 10,
    "cifar10": 10,
}
"""Teachers that come with the library, and the label for no condition where they are conditional."""

_WITH_COMPONENTS = ("LDMPipeline", "DiTPipeline", "StableDiffusionPipeline", "StableDiffusion3Pipeline")
"""Pipelines that decode latents or encode prompts."""

_OF_PIXELS = ("DDPMPipeline", "DDIMPipeline", "KarrasVePipeline", "PNDMPipeline", "ScoreSdeVePipeline")
"""Pipelines of images in [-1, 1], which they clip."""


@dataclass(frozen=True)
class Found:
    """What makes a teacher of a diffusers pipeline."""

    network: nn.Module
    parameterization: Parameterization
    sample_shape: tuple[int, ...]
    conditions: Conditions = UNCONDITIONAL
    decoder: VAEDecoder | None = None
    source: DiffusionPipeline | None = None
    bounds: tuple[float, float] | None = None


def read_pipeline(
    name_or_path: str | Path,
    name: str,
    requested: ConditionsLike | None = None,
    null_label: int | None = None,
    torch_dtype: torch.dtype | None = None,
    variant: str | None = None,
) -> Found:
    """The network of a diffusers folder or hub id, with what its scheduler and components say of it.

    Args:
        name_or_path: a pipeline (``model_index.json``), or ``unet/`` or ``transformer/`` beside ``scheduler/``, or a
            model's own folder with ``scheduler/`` or ``scheduler_config.json`` in it. A hub id is such a folder, once
            it is downloaded.
        name: its name in messages.
        requested: class labels or prompts; ``null_label``, ``torch_dtype``, ``variant``: as in
            :meth:`redif_env.teachers.teacher.Teacher.from_pretrained`.

    Raises:
        ValueError: if nothing is there, the weights are pickled, a condition is missing or unknown, or the model or
            scheduler is of a kind that cannot be used.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    folder = None
    try:
        folder = local_folder(name_or_path, variant)
        index, part = _layout(folder)
        config = dict(UNet2DModel.load_config(folder, subfolder=part))
        beside = "scheduler" if (folder / "scheduler").is_dir() else None
        scheduling = DDPMScheduler.load_config(folder, subfolder=beside)
    except (OSError, ValueError) as error:
        raise _nothing(name, error, folder, variant) from error
    path = str(folder)
    check_kind(config, name)
    # What can be refused is refused before any weight is read.
    shape = shape_of(config, name)
    parameterization = read_scheduler(scheduling, name, tokens_of(config, shape))
    conditions = conditions_of(config, name, requested, null_label)
    try:
        source = _components(path, index, torch_dtype, variant)
        network = (
            getattr(source, part or _part_of(index)) if source else _network(path, part, config, torch_dtype, variant)
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _nothing(name, error, folder, variant) from error
    if conditions is None:
        assert requested is not None
        if source is None:
            raise ValueError(f"teacher={name!r} is a bare network for text: give the folder of its whole pipeline")
        conditions = encode_prompts(source, requested)
    decoder = decoder_of(source, shape)
    bounds = _bounds(index, scheduling, decoder is not None)
    return Found(network, parameterization, shape, conditions, decoder, source, bounds)


def write_pipeline(network: nn.Module, parameterization: Parameterization, folder: Path) -> None:
    """Write a folder that :func:`read_pipeline` reads: a ``DDPMPipeline`` of a UNet, else a bare model and scheduler.

    Raises:
        TypeError: if the network is no diffusers model, or the schedule of no kind that diffusers has.
    """
    from diffusers import DDPMPipeline

    model, scheduler = as_model(network), as_scheduler(parameterization)
    if type(model).__name__ in ("UNet2DModel", "GaussianMixtureModel"):
        DDPMPipeline(model, scheduler).save_pretrained(str(folder), safe_serialization=True)
        return
    model.save_pretrained(str(folder), safe_serialization=True)
    scheduler.save_pretrained(str(folder / "scheduler"))


def write_bounds(folder: Path, bounds: tuple[float, float] | None, latent: bool) -> None:
    """Write the range of the data beside the schedule, where :func:`read_pipeline` would take another."""
    index, _ = _layout(folder)
    path = folder / "scheduler" / "scheduler_config.json"
    scheduling = json.loads(path.read_text(encoding="utf-8"))
    if _bounds(index, scheduling, latent) != bounds:
        path.write_text(json.dumps({**scheduling, "bounds": bounds}, indent=2) + "\n", encoding="utf-8")


def as_model(network: nn.Module) -> ModelMixin:
    """The network as a diffusers model.

    Raises:
        TypeError: if it is none, and no Gaussian mixture either.
    """
    from diffusers import ModelMixin

    if isinstance(network, GaussianMixture):
        from redif_env.teachers.mixture_model import GaussianMixtureModel

        return GaussianMixtureModel.of(network)
    if not isinstance(network, ModelMixin):
        raise TypeError(
            f"teacher cannot be saved: its network is a {type(network).__name__}, and only diffusers models have a "
            "folder format"
        )
    return network


def as_scheduler(parameterization: Parameterization) -> SchedulerMixin:
    """The diffusers scheduler whose config :func:`redif_env.diffusion.noise_schedulers.read_scheduler` reads so.

    Raises:
        TypeError: if there is none.
    """
    import diffusers

    settings = scheduler_config(parameterization)
    kind = getattr(diffusers, settings.pop("_class_name"))
    # Stock sampling should not clip what was not clipped in training; only this one does by default.
    return kind(**settings, clip_sample=False) if kind is diffusers.DDPMScheduler else kind(**settings)


def local_folder(name_or_path: str | Path, variant: str | None = None) -> Path:
    """A folder itself, or the local copy of a hub id, which is downloaded if it is not there.

    Raises:
        OSError, ValueError: if there is no such folder, and no such or no reachable hub id.
    """
    from diffusers import DiffusionPipeline

    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    name = str(name_or_path)
    if name.count("/") != 1 or folder.is_absolute():
        raise OSError(f"there is no folder {name!r}, and hub ids have the form 'owner/name'")
    try:
        # Those files alone that the pipeline's parts need.
        return Path(DiffusionPipeline.download(name, variant=variant, use_safetensors=True))
    except (OSError, ValueError):
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))


def _layout(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The pipeline's index (empty if it has none), and the folder of its network (None if that is its own)."""
    from diffusers import DiffusionPipeline

    indexed = (folder / "model_index.json").is_file()
    index = dict(DiffusionPipeline.load_config(folder)) if indexed else {}
    parts = (_part_of(index),) if index else ("unet", "transformer")
    return index, next((part for part in parts if (folder / part / "config.json").is_file()), None)


def _part_of(index: Mapping[str, Any]) -> str:
    return "transformer" if "transformer" in index else "unet"


def _bounds(index: Mapping[str, Any], scheduling: Mapping[str, Any], latent: bool) -> tuple[float, float] | None:
    """The range of the data, as far as the pipeline's class or the scheduler says it."""
    import diffusers

    if "bounds" in scheduling:  # said by this library
        low, high = scheduling["bounds"] or (-math.inf, math.inf)
        return None if (low, high) == (-math.inf, math.inf) else (float(low), float(high))
    if latent:
        return None
    taken = inspect.signature(getattr(diffusers, str(scheduling.get("_class_name")), dict).__init__).parameters
    if "clip_sample" in taken and scheduling.get("clip_sample", taken["clip_sample"].default):
        high = float(scheduling.get("clip_sample_range") or 1.0)
        return (-high, high)
    pixels = index.get("_class_name") in _OF_PIXELS and index["unet"][1] == "UNet2DModel"
    return (-1.0, 1.0) if pixels else None


def _components(
    path: str, index: Mapping[str, Any], torch_dtype: torch.dtype | None, variant: str | None
) -> DiffusionPipeline | None:
    """The whole pipeline, where its network does not stand alone: with decoder, text encoders, tokenizers."""
    from diffusers import DiffusionPipeline

    if index.get("_class_name") not in _WITH_COMPONENTS:
        return None
    # Components saved as absent must be passed as None; a safety checker is no part of a sampler.
    absent = {key: None for key, value in index.items() if isinstance(value, list | tuple) and value[0] is None}
    spared = absent | ({"safety_checker": None} if "safety_checker" in index else {})
    pipeline = DiffusionPipeline.from_pretrained(
        path, use_safetensors=True, low_cpu_mem_usage=False, variant=variant, **spared
    )
    # Afterwards, since releases of diffusers disagree on the name of the argument.
    return pipeline.to(torch_dtype or torch.float32)


def _network(
    path: str, part: str | None, config: Mapping[str, Any], torch_dtype: torch.dtype | None, variant: str | None
) -> ModelMixin:
    import diffusers

    from redif_env.teachers.mixture_model import GaussianMixtureModel

    name = config["_class_name"]
    kind = GaussianMixtureModel if name == GaussianMixtureModel.__name__ else getattr(diffusers, name)
    exact = torch.float64 if config.get("double") else torch.float32
    # Stored weights may be half precision; a teacher computes in float32 by default. The last option is the default
    # where accelerate is installed, and a warning where it is not.
    return kind.from_pretrained(
        path,
        subfolder=part,
        use_safetensors=True,
        torch_dtype=torch_dtype or exact,
        variant=variant,
        low_cpu_mem_usage=False,
    )


def _nothing(name: str, error: Exception, folder: Path | None, variant: str | None) -> ValueError:
    variants = set() if folder is None else {path.name.split(".")[1] for path in folder.rglob("*.*.safetensors")}
    stored = {variant.split("-")[0] for variant in variants}
    named = "" if variant is None else f" with variant={variant!r}"
    hint = f" Its weights are stored as variants: give variant={sorted(stored)[0]!r}." if stored else ""
    return ValueError(
        f"teacher={name!r}{named} cannot be loaded: it is no built-in name ({', '.join(BUILT_IN)}), and no diffusers "
        f"folder or reachable hub id with a network (config.json, safetensors) and a scheduler that fit together."
        f"{hint} diffusers said: {error}"
    )
