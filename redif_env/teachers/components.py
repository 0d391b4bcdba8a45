"""The components of a diffusers pipeline beside its network: the decoder of latents, the encoders of prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from redif_env.teachers.conditions import Conditions, ConditionsLike, spread

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

COMPONENTS = (
    "vae",
    "text_encoder",
    "tokenizer",
    "text_encoder_2",
    "tokenizer_2",
    "text_encoder_3",
    "tokenizer_3",
)
"""Components beside a network, by diffusers' names."""


class VAEDecoder(nn.Module):
    """From the diffusion network's latents to images in about [-1, 1].

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


def decoder_of(source: DiffusionPipeline | None, latent_shape: tuple[int, ...]) -> VAEDecoder | None:
    """The decoder of a pipeline's latents; None where it has none."""
    vae = getattr(source, "vae", None) or getattr(source, "vqvae", None)
    return None if vae is None else VAEDecoder(vae, latent_shape)


def components_of(source: DiffusionPipeline | None) -> dict[str, Any]:
    """The decoder, text encoders and tokenizers that a pipeline has."""
    if source is None:
        return {}
    found = {name: getattr(source, name, None) for name in COMPONENTS}
    found["vae"] = found["vae"] or getattr(source, "vqvae", None)
    return {name: part for name, part in found.items() if part is not None}


def stock_pipeline(network: ModelMixin, components: Mapping[str, Any]) -> DiffusionPipeline | None:
    """The diffusers pipeline of a network and its components, to decode and encode with; None if there are none."""
    given = {name: part for name, part in components.items() if part is not None}
    if not given:
        return None
    # Only now: these load transformers.
    from diffusers import (
        DDIMScheduler,
        DiTPipeline,
        FlowMatchEulerDiscreteScheduler,
        LDMPipeline,
        StableDiffusion3Pipeline,
        StableDiffusionPipeline,
    )

    kind = type(network).__name__
    ddim = DDIMScheduler(clip_sample=False, steps_offset=1)
    if kind == "UNet2DConditionModel":
        bare = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(unet=network, scheduler=ddim, **given, **bare)
    if kind == "SD3Transformer2DModel":
        every = {name: components.get(name) for name in COMPONENTS}
        return StableDiffusion3Pipeline(transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(), **every)
    if kind == "DiTTransformer2DModel":
        return DiTPipeline(network, given["vae"], ddim)
    return LDMPipeline(given["vae"], network, ddim)


def encode_prompts(source: DiffusionPipeline, requested: ConditionsLike) -> Conditions:
    """Prompts, encoded by a text pipeline's own encoders; no condition is the empty prompt."""
    values, weights = spread(requested)
    prompts = [str(value) for value in values]
    with torch.no_grad():
        if type(source).__name__ == "StableDiffusion3Pipeline":
            encoded, free, pooled, free_pooled = source.encode_prompt(prompts, None, None)
            inputs = {"encoder_hidden_states": encoded, "pooled_projections": pooled}
            null = {"encoder_hidden_states": free[:1], "pooled_projections": free_pooled[:1]}
            embedding = pooled
        else:
            encoded, free = source.encode_prompt(prompts, source.device, 1, True)
            inputs, null = {"encoder_hidden_states": encoded}, {"encoder_hidden_states": free[:1]}
            embedding = encoded.mean(dim=1)
    # On the scale of the other numbers of an observation.
    size = embedding.float().square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
    return Conditions(values, inputs, null, weights, (embedding.float() / size).cpu())
