"""The border to diffusers: what a pipeline folder or hub id holds, and how to write one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from redif_env.conditions import UNCONDITIONAL, Conditions, Wanted, spread
from redif_env.mixtures import GaussianMixture
from redif_env.noise_schedulers import Reading, read_scheduler, scheduler_config

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

NETWORKS = (
    "GaussianMixtureModel",
    "UNet2DModel",
    "DiTTransformer2DModel",
    "UNet2DConditionModel",
    "SD3Transformer2DModel",
)
"""Classes of networks that can be teachers."""

TEXT_NETWORKS = ("UNet2DConditionModel", "SD3Transformer2DModel")
"""Those of them that take prompts."""

_WITH_COMPANIONS = ("LDMPipeline", "DiTPipeline", "StableDiffusionPipeline", "StableDiffusion3Pipeline")
"""Pipelines that decode latents or encode prompts."""

_MORE_THAN_X = {
    "UNet3DConditionModel": "it makes videos of several frames, with more inputs than a sample and a prompt",
    "UNetSpatioTemporalConditionModel": "it makes videos from an image, which it takes besides the sample",
    "Kandinsky3UNet": "its pipeline chains a prior with it",
    "PriorTransformer": "it makes embeddings, for another network to go on with",
    "Transformer2DModel": "it denoises tokens (discrete diffusion), or is an old form of DiTTransformer2DModel",
    "UVit2DModel": "it denoises tokens (discrete diffusion), which have no alpha and sigma",
    "FluxTransformer2DModel": "it takes packed latents with their positions and an embedded guidance scale",
    "StableCascadeUNet": "its pipeline chains several models",
    "UniDiffuserModel": "its state is an image and a text together",
}
"""Why networks of these classes cannot be."""


COMPANIONS = (
    "vae",
    "text_encoder",
    "tokenizer",
    "text_encoder_2",
    "tokenizer_2",
    "text_encoder_3",
    "tokenizer_3",
)
"""What may stand beside a network, by diffusers' names."""


@dataclass(frozen=True)
class Found:
    """What makes a teacher of a diffusers pipeline."""

    network: nn.Module
    reading: Reading
    sample_shape: tuple[int, ...]
    conditions: Conditions = UNCONDITIONAL
    decoder: VAEDecoder | None = None
    source: DiffusionPipeline | None = None


class VAEDecoder(nn.Module):
    """From latents as the diffusion network sees them to images in about [-1, 1].

    Args:
        vae: an ``AutoencoderKL``, ``VQModel`` or their like.
        latent_shape: ``(channels, height, width)``.
    """

    def __init__(self, vae: ModelMixin, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        _, height, width = latent_shape
        self.image_shape = (vae.config.out_channels, height * factor, width * factor)

    def forward(self, latents: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` of ``latents`` ``(B, *latent_shape)``."""
        config = self.vae.config
        scaled = latents / (config.get("scaling_factor") or 1.0) + (config.get("shift_factor") or 0.0)
        images: Tensor = self.vae.decode(scaled.to(self.vae.dtype)).sample
        return images


def call_by_name(network: nn.Module, x: Tensor, timestep: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Call a diffusers model. What it predicts besides (a variance) comes last and is left out."""
    answer = network(x, timestep=timestep, **inputs)
    output: Tensor = getattr(answer, "sample", answer)
    return output if output.shape == x.shape else output[:, : x.shape[1]]


def read_pipeline(
    name_or_path: str | Path,
    name: str,
    wanted: Wanted | None = None,
    null_label: int | None = None,
    torch_dtype: torch.dtype | None = None,
    variant: str | None = None,
) -> Found:
    """The network of a diffusers folder or hub id, and all that its scheduler and its companions say of it.

    Args:
        name_or_path: a pipeline (``model_index.json``), or ``unet/`` or ``transformer/`` beside ``scheduler/``, or a
            model's own folder with ``scheduler/`` or ``scheduler_config.json`` in it.
        name: what messages call it.
        wanted: the conditions to ask for; ``null_label``, ``torch_dtype``, ``variant``: as in
            :meth:`redif_env.teachers.Teacher.from_pretrained`.

    Raises:
        ValueError: if nothing is there, the weights are pickled, a condition is missing or unknown, or the model or
            scheduler is of a kind that cannot be used.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    path = str(name_or_path)
    try:
        index, part = _layout(path)
        config = dict(UNet2DModel.load_config(path, subfolder=part))
        scheduling = DDPMScheduler.load_config(path, subfolder="scheduler" if _has_folder(path, "scheduler") else None)
    except OSError as error:
        raise _nothing(name, error) from error
    _check_kind(config, name)
    # What can be refused is refused before any weight is read.
    shape = shape_of(config, name)
    reading = read_scheduler(scheduling, name, _tokens(config, shape))
    conditions = conditions_of(config, name, wanted, null_label)
    try:
        source = _companions(path, index, torch_dtype, variant)
        network = getattr(source, part or "") if source else _network(path, part, config, torch_dtype, variant)
    except (OSError, ValueError, RuntimeError) as error:
        raise _nothing(name, error) from error
    if conditions is None:
        assert wanted is not None
        if source is None:
            raise ValueError(f"teacher={name!r} is a bare network for text: give the folder of its whole pipeline")
        conditions = encode_prompts(source, wanted)
    return Found(network, reading, shape, conditions, decoder_of(source, shape), source)


def companions_of(source: DiffusionPipeline | None) -> dict[str, Any]:
    """What of a pipeline goes with its network: decoder, text encoders, tokenizers; those that it has."""
    if source is None:
        return {}
    found = {name: getattr(source, name, None) for name in COMPANIONS}
    found["vae"] = found["vae"] or getattr(source, "vqvae", None)
    return {name: part for name, part in found.items() if part is not None}


def stock_pipeline(network: ModelMixin, companions: Mapping[str, Any]) -> DiffusionPipeline | None:
    """The diffusers pipeline of a network and its companions, to decode and encode with; None if there are none."""
    from diffusers import (
        DDIMScheduler,
        DiTPipeline,
        FlowMatchEulerDiscreteScheduler,
        LDMPipeline,
        StableDiffusion3Pipeline,
        StableDiffusionPipeline,
    )

    given = {name: part for name, part in companions.items() if part is not None}
    if not given:
        return None
    kind = type(network).__name__
    ddim = DDIMScheduler(clip_sample=False, steps_offset=1)
    if kind == "UNet2DConditionModel":
        bare = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(unet=network, scheduler=ddim, **given, **bare)
    if kind == "SD3Transformer2DModel":
        every = {name: companions.get(name) for name in COMPANIONS}
        return StableDiffusion3Pipeline(transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(), **every)
    if kind == "DiTTransformer2DModel":
        return DiTPipeline(network, given["vae"], ddim)
    return LDMPipeline(given["vae"], network, ddim)


def decoder_of(source: DiffusionPipeline | None, latent_shape: tuple[int, ...]) -> VAEDecoder | None:
    """What decodes a pipeline's latents; None where it has none."""
    vae = getattr(source, "vae", None) or getattr(source, "vqvae", None)
    return None if vae is None else VAEDecoder(vae, latent_shape)


def write_pipeline(network: nn.Module, reading: Reading, folder: Path) -> None:
    """Write a folder that :func:`read_pipeline` reads: a ``DDPMPipeline`` of a UNet, else a bare model and scheduler.

    Raises:
        TypeError: if the network is no diffusers model, or the schedule of no kind that diffusers has.
    """
    from diffusers import DDPMPipeline

    model, scheduler = as_model(network), as_scheduler(reading)
    if type(model).__name__ in ("UNet2DModel", "GaussianMixtureModel"):
        DDPMPipeline(model, scheduler).save_pretrained(str(folder), safe_serialization=True)
        return
    model.save_pretrained(str(folder), safe_serialization=True)
    scheduler.save_pretrained(str(folder / "scheduler"))


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


def as_scheduler(reading: Reading) -> SchedulerMixin:
    """The diffusers scheduler whose config :func:`redif_env.noise_schedulers.read_scheduler` reads so.

    Raises:
        TypeError: if there is none.
    """
    import diffusers

    settings = scheduler_config(reading)
    kind = getattr(diffusers, settings.pop("_class_name"))
    # Stock sampling should not clip what was not clipped in training; only this one does by default.
    return kind(**settings, clip_sample=False) if kind is diffusers.DDPMScheduler else kind(**settings)


def shape_of(config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Shape S of what the network with this config denoises.

    Raises:
        ValueError: if it takes or predicts something besides, or does not say its size.
    """
    if "sample_shape" in config:
        return tuple(config["sample_shape"])
    size, channels = config.get("sample_size"), config["in_channels"]
    if size is None:
        raise ValueError(f"teacher={name!r} names no sample_size in its network's config.json: add it")
    predicted = config.get("out_channels") or channels
    if predicted not in (channels, 2 * channels):
        raise ValueError(
            f"teacher={name!r} predicts {predicted} channels for {channels}: its state is more than the sample that is "
            "denoised (inpainting, editing, upscaling), which the decision process does not carry"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return (channels, height, width)


def conditions_of(
    config: Mapping[str, Any], name: str, wanted: Wanted | None, null_label: int | None
) -> Conditions | None:
    """What the network with this config can be asked for; None where prompts are to be encoded first.

    Raises:
        ValueError: if a label is unknown, or a condition is given of a kind that the network does not take, or missing.
    """
    kind = config["_class_name"]
    if kind in TEXT_NETWORKS:
        if config.get("addition_embed_type") or config.get("class_embed_type"):
            kinds = {key: config.get(key) for key in ("addition_embed_type", "class_embed_type")}
            raise ValueError(
                f"teacher={name!r} needs more than a prompt ({kinds}): sizes or images, which no prompt can say"
            )
        if null_label is not None or not wanted or not all(isinstance(value, str) for value in wanted):
            raise ValueError(
                f"conditions={wanted!r} cannot be asked of teacher={name!r}, which makes what a text says: give "
                "prompts, as in conditions=['a photograph of a cat']"
            )
        return None
    classes = config.get("num_embeds_ada_norm") if kind == "DiTTransformer2DModel" else config.get("num_class_embeds")
    if kind == "UNet2DModel" and config.get("class_embed_type") not in (None, "timestep"):
        raise ValueError(
            f"teacher={name!r} has class_embed_type={config['class_embed_type']!r}: only class labels can be given"
        )
    if not classes:
        if wanted is not None or null_label is not None:
            raise ValueError(f"conditions={wanted!r} cannot be asked of teacher={name!r}, which takes none")
        return UNCONDITIONAL
    if kind == "DiTTransformer2DModel":
        null_label = classes  # by its own embedding
    elif null_label is not None and not 0 <= null_label < classes:
        raise ValueError(f"null_label must be from 0 to {classes - 1} for teacher={name!r}, got {null_label}")
    asked: Wanted = [label for label in range(classes) if label != null_label] if wanted is None else wanted
    outside = [label for label in asked if not (isinstance(label, int) and 0 <= label < classes)]
    if outside:
        raise ValueError(
            f"conditions must be labels from 0 to {classes - 1} for teacher={name!r}, "
            f"got {', '.join(map(repr, outside))}"
        )
    return Conditions.of_labels(asked, null_label)


def encode_prompts(source: DiffusionPipeline, wanted: Wanted) -> Conditions:
    """Prompts as a text pipeline's own encoders see them; the empty prompt stands for none."""
    prompts = [str(value) for value in wanted]
    with torch.no_grad():
        if type(source).__name__ == "StableDiffusion3Pipeline":
            told, free, pooled, free_pooled = source.encode_prompt(prompts, None, None)
            inputs = {"encoder_hidden_states": told, "pooled_projections": pooled}
            null = {"encoder_hidden_states": free[:1], "pooled_projections": free_pooled[:1]}
            embedding = pooled
        else:
            told, free = source.encode_prompt(prompts, source.device, 1, True)
            inputs, null = {"encoder_hidden_states": told}, {"encoder_hidden_states": free[:1]}
            embedding = told.mean(dim=1)
    # On the scale of the other numbers of an observation.
    size = embedding.float().square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
    values, weights = spread(wanted)
    return Conditions(values, inputs, null, weights, (embedding.float() / size).cpu())


def _layout(path: str) -> tuple[dict[str, Any], str | None]:
    """The pipeline's index (empty if it has none), and the folder of its network (None if that is its own)."""
    from diffusers import DiffusionPipeline

    folder = Path(path)
    if not folder.is_dir() and ("/" not in path or folder.is_absolute()):
        raise OSError(f"there is no folder {path!r}, and hub ids have the form 'owner/name'")
    if not folder.is_dir() or (folder / "model_index.json").is_file():
        index = dict(DiffusionPipeline.load_config(path))
        return index, "transformer" if "transformer" in index else "unet"
    for part in ("unet", "transformer"):
        if (folder / part / "config.json").is_file():
            return {}, part
    return {}, None


def _has_folder(path: str, part: str) -> bool:
    """Whether ``part`` is a folder of its own; on the hub, pipelines have no other form."""
    return not Path(path).is_dir() or (Path(path) / part).is_dir()


def _check_kind(config: Mapping[str, Any], name: str) -> None:
    kind = config.get("_class_name")
    if kind in NETWORKS:
        return
    reason = _MORE_THAN_X.get(str(kind), "how it is called, and what it carries besides a sample, is unknown")
    raise ValueError(f"teacher={name!r} has a {kind}: {reason}. Teachers can be: {', '.join(NETWORKS)}")


def _tokens(config: Mapping[str, Any], shape: tuple[int, ...]) -> int | None:
    patch = config.get("patch_size")
    return None if patch is None else (shape[-2] // patch) * (shape[-1] // patch)


def _companions(
    path: str, index: Mapping[str, Any], torch_dtype: torch.dtype | None, variant: str | None
) -> DiffusionPipeline | None:
    """The whole pipeline, where its network does not stand alone: with decoder, text encoders, tokenizers."""
    from diffusers import DiffusionPipeline

    if index.get("_class_name") not in _WITH_COMPANIONS:
        return None
    # What was saved as absent must be said to be so; a judge of what may be seen is no part of a sampler.
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

    from redif_env.mixture_model import GaussianMixtureModel

    name = config["_class_name"]
    kind = GaussianMixtureModel if name == GaussianMixtureModel.__name__ else getattr(diffusers, name)
    exact = torch.float64 if config.get("double") else torch.float32
    # Stored weights may be half precision; a teacher computes in float32 unless told otherwise. The last option is the
    # default where accelerate is installed, and a warning where it is not.
    return kind.from_pretrained(
        path,
        subfolder=part,
        use_safetensors=True,
        torch_dtype=torch_dtype or exact,
        variant=variant,
        low_cpu_mem_usage=False,
    )


def _nothing(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"teacher={name!r} cannot be loaded: it is no built-in name, and no diffusers folder or reachable hub id with "
        f"a network (config.json, safetensors) and a scheduler that fit together. diffusers said: {error}"
    )
