"""Tiny pipelines with random weights, by family: what any diffusers pipeline does, in milliseconds.

Each entry makes a pipeline, two conditions and what is common to them. The sizes are those of diffusers' own tests.
Prompts are embeddings wherever a pipeline takes such: text encoders have nothing to do with how steps are taken.
"""

from __future__ import annotations

import functools
import inspect
import json
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers as d
import torch
from diffusers.guiders import ClassifierFreeGuidance

PAIR = range(2)
SLOW = "slow"


@dataclass
class Entry:
    """A pipeline, two conditions, and arguments common to both."""

    pipe: Any
    conditions: list[dict[str, Any]]
    shared: dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """How an entry is made, and whether that takes long."""

    name: str
    make: Callable[[], Entry]
    slow: bool = False

    def __call__(self) -> Entry:
        torch.manual_seed(zlib.crc32(self.name.encode()))
        made = self.make()
        for part in made.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
                _fill(part)
        return made


ZOO: dict[str, Kind] = {}


def entry(make: Callable[[], Entry] | None = None, *, slow: bool = False) -> Any:
    """Registers a function under its own name."""
    if make is None:
        return functools.partial(entry, slow=slow)
    ZOO[make.__name__] = Kind(make.__name__, make, slow)
    return make


def _fill(part: torch.nn.Module) -> None:
    """Weights that are initialised with zero hide what passes through them."""
    for module in part.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.3)


# Conditions.


def noise(name: str, row: int, *shape: int) -> torch.Tensor:
    """Normal numbers ``(1, *shape)`` of a name and a row."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(zlib.crc32(f"{name}{row}".encode())))


def embeddings(masks: tuple[str, ...] = (), kind: torch.dtype = torch.long, **shapes: tuple[int, ...]) -> list[dict]:
    """Two conditions of embeddings with these shapes, and of full masks as long as the first of them that fits."""
    made: list[dict] = [{name: noise(name, row, *shape) for name, shape in shapes.items()} for row in PAIR]
    for name in masks:
        length = shapes[name.replace("attention_mask", "embeds").replace("embeds_mask", "embeds")][0]
        for condition in made:
            condition[name] = torch.ones(1, length, dtype=kind)
    return made


def guided(masks: tuple[str, ...] = (), kind: torch.dtype = torch.long, **shapes: tuple[int, ...]) -> list[dict]:
    """:func:`embeddings`, and the same under ``negative_`` names."""
    both = shapes | {f"negative_{name}": shape for name, shape in shapes.items()}
    return embeddings(masks + tuple(f"negative_{name}" for name in masks), kind, **both)


def prompts() -> list[dict]:
    return [{"prompt": "a cat"}, {"prompt": "two dogs"}]


def image(size: int, row: int = 0, name: str = "image") -> torch.Tensor:
    """A picture ``(1, 3, size, size)`` in [0, 1]."""
    return noise(name, row, 3, size, size).sigmoid()


def mask(size: int) -> torch.Tensor:
    """The left half of a picture."""
    return torch.cat([torch.ones(1, 1, size, size // 2), torch.zeros(1, 1, size, size // 2)], dim=3)


def also(conditions: list[dict], **more: Callable[[int], Any]) -> list[dict]:
    """Conditions with more arguments, each a function of the row."""
    return [condition | {key: value(row) for key, value in more.items()} for row, condition in enumerate(conditions)]


def with_image(conditions: list[dict], size: int, *names: str) -> list[dict]:
    """Conditions with pictures under these names."""
    return also(conditions, **{name: functools.partial(image, size, name=name) for name in names or ("image",)})


def masked(conditions: list[dict], size: int, *names: str) -> list[dict]:
    """Conditions with pictures and a mask."""
    return also(with_image(conditions, size, *names), mask_image=lambda row: mask(size))


# Parts.


def kl(channels: tuple[int, ...] = (4, 8), latent: int = 4, **more: Any) -> Any:
    count = len(channels)
    return d.AutoencoderKL(
        block_out_channels=channels, latent_channels=latent, norm_num_groups=2, sample_size=16,
        down_block_types=["DownEncoderBlock2D"] * count, up_block_types=["UpDecoderBlock2D"] * count, **more
    )  # fmt: skip


def small_kl(**more: Any) -> Any:
    return kl((4,), 1, shift_factor=0.06, scaling_factor=1.5, **more)


def unet(kind: Any = d.UNet2DConditionModel, **more: Any) -> Any:
    settings = dict(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4, norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=8, attention_head_dim=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return kind(**settings | more)


def plain_unet(channels: int = 3) -> Any:
    return d.UNet2DModel(
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4, sample_size=8, in_channels=channels,
        out_channels=channels, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def controlnet(**more: Any) -> Any:
    settings = dict(
        block_out_channels=(4, 8), layers_per_block=1, in_channels=4, cross_attention_dim=8, norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
        conditioning_embedding_out_channels=(2, 2),
    )  # fmt: skip
    return d.ControlNetModel(**settings | more)


BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)


def ddim(**more: Any) -> Any:
    return d.DDIMScheduler(**BETAS | dict(clip_sample=False, set_alpha_to_one=False) | more)


def pndm() -> Any:
    return d.PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False)


def euler(**more: Any) -> Any:
    return d.EulerDiscreteScheduler(**BETAS | dict(timestep_spacing="leading") | more)


def flow(**more: Any) -> Any:
    return d.FlowMatchEulerDiscreteScheduler(**more)


def shifting(**more: Any) -> Any:
    """Flux's: shifted by the number of tokens."""
    return flow(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0, **more)


def clip(hidden: int = 8, projection: bool = False) -> tuple[Any, Any]:
    """A text encoder and a tokenizer that knows letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({word: number for number, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        tokenizer = CLIPTokenizer(str(vocabulary), str(merges), model_max_length=16)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=hidden, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2,
        max_position_embeddings=16, projection_dim=hidden, hidden_act="gelu", pad_token_id=1,
        bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config), tokenizer


def build(kind: type, **parts: Any) -> Any:
    """A pipeline of these parts, absent ones None, and of what else it takes by default."""
    takes = inspect.signature(kind.__init__).parameters
    needed = {
        name: None for name, value in takes.items() if name != "self" and value.default is inspect.Parameter.empty
    }
    unsafe = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    given = needed | {key: value for key, value in unsafe.items() if key in takes} | parts
    if "add_watermarker" in takes:
        given["add_watermarker"] = False
    return kind(**given)


def of(kind: type, base: Any, **parts: Any) -> Any:
    """A pipeline of another pipeline's components."""
    takes = inspect.signature(kind.__init__).parameters
    return build(kind, **{name: part for name, part in base.components.items() if name in takes} | parts)


# Stable Diffusion.


def sd(kind: type = d.StableDiffusionPipeline, **parts: Any) -> Any:
    encoder, tokenizer = clip()
    given = dict(vae=kl(), text_encoder=encoder, tokenizer=tokenizer, unet=unet(), scheduler=pndm())
    return build(kind, **given | parts)


SD = dict(guidance_scale=6.0)


@entry
def stable_diffusion() -> Entry:
    return Entry(sd(), prompts(), SD)


@entry
def stable_diffusion_euler() -> Entry:
    return Entry(sd(scheduler=euler()), prompts(), SD)


@entry
def stable_diffusion_velocity_no_signal() -> Entry:
    scheduler = ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    return Entry(sd(scheduler=scheduler), prompts(), SD)


@entry
def image_to_image() -> Entry:
    return Entry(sd(d.StableDiffusionImg2ImgPipeline), with_image(prompts(), 32), SD | dict(strength=0.75))


@entry
def inpainting_network() -> Entry:
    pipe = sd(d.StableDiffusionInpaintPipeline, unet=unet(in_channels=9))
    return Entry(pipe, masked(prompts(), 32), SD | dict(height=32, width=32))


@entry
def inpainting_by_blending() -> Entry:
    pipe = sd(d.StableDiffusionInpaintPipeline)
    return Entry(pipe, masked(prompts(), 32), SD | dict(height=32, width=32, strength=1.0))


@entry
def instruct_pix2pix() -> Entry:
    pipe = sd(d.StableDiffusionInstructPix2PixPipeline, unet=unet(in_channels=8))
    return Entry(pipe, with_image(prompts(), 32), SD | dict(image_guidance_scale=1.5))


@entry
def control() -> Entry:
    pipe = sd(d.StableDiffusionControlNetPipeline, controlnet=controlnet())
    return Entry(pipe, with_image(prompts(), 32), SD)


@entry
def control_until_half() -> Entry:
    return Entry(control().pipe, with_image(prompts(), 32), SD | dict(control_guidance_end=0.5))


@entry
def control_by_two() -> Entry:
    pipe = sd(d.StableDiffusionControlNetPipeline, controlnet=[controlnet(), controlnet()])
    pictures = also(prompts(), image=lambda row: [image(32, row), image(32, row, "second")])
    return Entry(pipe, pictures, SD)


@entry
def control_image_to_image() -> Entry:
    pipe = sd(d.StableDiffusionControlNetImg2ImgPipeline, controlnet=controlnet())
    return Entry(pipe, with_image(prompts(), 32, "image", "control_image"), SD | dict(strength=0.8))


@entry
def control_inpainting() -> Entry:
    pipe = sd(d.StableDiffusionControlNetInpaintPipeline, controlnet=controlnet())
    conditions = masked(prompts(), 32, "image", "control_image")
    return Entry(pipe, conditions, SD | dict(height=32, width=32, strength=1.0))


@entry
def perturbed_attention() -> Entry:
    return Entry(sd(d.StableDiffusionPAGPipeline), prompts(), SD | dict(pag_scale=3.0))


@entry
def perturbed_attention_image_to_image() -> Entry:
    pipe = sd(d.StableDiffusionPAGImg2ImgPipeline)
    return Entry(pipe, with_image(prompts(), 32), SD | dict(pag_scale=3.0, strength=0.75))


@entry
def perturbed_attention_control() -> Entry:
    pipe = sd(d.StableDiffusionControlNetPAGPipeline, controlnet=controlnet())
    return Entry(pipe, with_image(prompts(), 32), SD | dict(pag_scale=3.0))


@entry
def depth_to_image() -> Entry:
    pipe = sd(d.StableDiffusionDepth2ImgPipeline, unet=unet(in_channels=5))
    conditions = also(with_image(prompts(), 32), depth_map=lambda row: noise("depth", row, 16, 16))
    return Entry(pipe, conditions, SD | dict(strength=0.9))


@entry
def upscaling() -> Entry:
    pipe = sd(
        d.StableDiffusionUpscalePipeline, unet=unet(in_channels=7, num_class_embeds=1000),
        low_res_scheduler=d.DDPMScheduler(), scheduler=ddim(prediction_type="v_prediction"),
    )  # fmt: skip
    return Entry(pipe, with_image(prompts(), 16), SD | dict(noise_level=20))


@entry
def latent_upscaling() -> Entry:
    encoder, tokenizer = clip(16)
    network = d.UNet2DConditionModel(
        act_fn="gelu", attention_head_dim=8, norm_num_groups=None, block_out_channels=[32, 32, 64, 64],
        time_cond_proj_dim=144,
        conv_in_kernel=1, conv_out_kernel=1, cross_attention_dim=16, in_channels=8, out_channels=5, mid_block_type=None,
        down_block_types=("KDownBlock2D",) + ("KCrossAttnDownBlock2D",) * 3, only_cross_attention=False,
        up_block_types=("KCrossAttnUpBlock2D",) * 3 + ("KUpBlock2D",), resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier", timestep_post_act="gelu",
    )  # fmt: skip
    pipe = sd(
        d.StableDiffusionLatentUpscalePipeline, text_encoder=encoder, tokenizer=tokenizer, unet=network,
        scheduler=d.EulerDiscreteScheduler(**BETAS, prediction_type="sample"),
    )  # fmt: skip
    return Entry(pipe, with_image(prompts(), 16), SD)


@entry
def adapter() -> Entry:
    part = d.T2IAdapter(
        in_channels=3, channels=[4, 8], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
    )
    network = unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
    )
    pipe = sd(d.StableDiffusionAdapterPipeline, adapter=part, unet=network)
    return Entry(pipe, with_image(prompts(), 32), SD)


# Stable Diffusion XL.


def sdxl(kind: type = d.StableDiffusionXLPipeline, **parts: Any) -> Any:
    (first, tokenizer), (second, tokenizer_2) = clip(), clip(projection=True)
    network = unet(**XL_UNET)
    given = dict(
        vae=kl(), text_encoder=first, tokenizer=tokenizer, text_encoder_2=second, tokenizer_2=tokenizer_2, unet=network,
        scheduler=euler(),
    )  # fmt: skip
    return build(kind, **given | parts)


XL_UNET = dict(
    addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=56,
    cross_attention_dim=16, use_linear_projection=True,
)  # fmt: skip
XL = dict(height=32, width=32, guidance_scale=5.0)


@entry
def sdxl_base() -> Entry:
    return Entry(sdxl(), prompts(), XL)


@entry
def sdxl_edm() -> Entry:
    scheduler = d.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    return Entry(sdxl(scheduler=scheduler), prompts(), XL)


@entry
def sdxl_image_to_image() -> Entry:
    pipe = sdxl(d.StableDiffusionXLImg2ImgPipeline)
    return Entry(pipe, with_image(prompts(), 32), dict(guidance_scale=5.0, strength=0.8))


@entry
def sdxl_inpainting() -> Entry:
    pipe = sdxl(d.StableDiffusionXLInpaintPipeline)
    return Entry(pipe, masked(prompts(), 32), XL | dict(strength=0.99))


@entry
def sdxl_control() -> Entry:
    pipe = sdxl(d.StableDiffusionXLControlNetPipeline, controlnet=controlnet(**XL_UNET))
    return Entry(pipe, with_image(prompts(), 32), XL)


@entry
def sdxl_control_image_to_image() -> Entry:
    pipe = sdxl(d.StableDiffusionXLControlNetImg2ImgPipeline, controlnet=controlnet(**XL_UNET))
    return Entry(pipe, with_image(prompts(), 32, "image", "control_image"), XL | dict(strength=0.8))


@entry
def sdxl_control_inpainting() -> Entry:
    pipe = sdxl(d.StableDiffusionXLControlNetInpaintPipeline, controlnet=controlnet(**XL_UNET))
    return Entry(pipe, masked(prompts(), 32, "image", "control_image"), XL | dict(strength=0.99))


@entry
def sdxl_perturbed_attention() -> Entry:
    return Entry(sdxl(d.StableDiffusionXLPAGPipeline), prompts(), XL | dict(pag_scale=3.0))


@entry
def sdxl_instruct_pix2pix() -> Entry:
    pipe = sdxl(d.StableDiffusionXLInstructPix2PixPipeline, unet=unet(**XL_UNET, in_channels=8))
    return Entry(pipe, with_image(prompts(), 32), XL | dict(image_guidance_scale=1.5))


# Stable Diffusion 3.


def sd3_network(latent: int = 4) -> Any:
    return d.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=latent, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=latent,
    )  # fmt: skip


def sd3(kind: type = d.StableDiffusion3Pipeline, **parts: Any) -> Any:
    given = dict(transformer=sd3_network(), scheduler=flow(shift=3.0), vae=kl(shift_factor=0.06, scaling_factor=1.5))
    return build(kind, **given | parts)


SD3 = dict(height=16, width=16, guidance_scale=5.0)


def sd3_prompts() -> list[dict]:
    return guided(prompt_embeds=(5, 32), pooled_prompt_embeds=(64,))


@entry
def sd3_base() -> Entry:
    return Entry(sd3(), sd3_prompts(), SD3)


@entry
def sd3_image_to_image() -> Entry:
    pipe = sd3(d.StableDiffusion3Img2ImgPipeline)
    return Entry(pipe, with_image(sd3_prompts(), 16), SD3 | dict(strength=0.75))


@entry
def sd3_inpainting() -> Entry:
    network = sd3_network(latent=16)
    pipe = sd3(
        d.StableDiffusion3InpaintPipeline, transformer=network, vae=kl(latent=16, shift_factor=0.06, scaling_factor=1.5)
    )
    return Entry(pipe, masked(sd3_prompts(), 16), SD3 | dict(strength=0.8))


# Flux and its relatives: packed tokens.


def flux(kind: type = d.FluxPipeline, channels: int = 4, **parts: Any) -> Any:
    network = d.FluxTransformer2DModel(**FLUX_NETWORK | dict(in_channels=channels, out_channels=4))
    vae = small_kl(use_quant_conv=False, use_post_quant_conv=False)
    return build(kind, **dict(scheduler=shifting(), vae=vae, transformer=network) | parts)


FLUX_NETWORK = dict(
    patch_size=1, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, axes_dims_rope=[4,
    4, 8],
    joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True,
)  # fmt: skip
FLUX = dict(height=16, width=16, guidance_scale=3.5)


def flux_prompts() -> list[dict]:
    return embeddings(prompt_embeds=(5, 32), pooled_prompt_embeds=(32,))


def flux_controlnet_part() -> Any:
    return d.FluxControlNetModel(**FLUX_NETWORK | dict(in_channels=4))


@entry
def flux_base() -> Entry:
    return Entry(flux(), flux_prompts(), FLUX)


@entry
def flux_true_guidance() -> Entry:
    conditions = guided(prompt_embeds=(5, 32), pooled_prompt_embeds=(32,))
    return Entry(flux(), conditions, FLUX | dict(true_cfg_scale=3.0))


@entry
def flux_image_to_image() -> Entry:
    return Entry(flux(d.FluxImg2ImgPipeline), with_image(flux_prompts(), 16), FLUX | dict(strength=0.8))


@entry
def flux_inpainting() -> Entry:
    return Entry(flux(d.FluxInpaintPipeline), masked(flux_prompts(), 16), FLUX | dict(strength=0.9))


@entry
def flux_fill() -> Entry:
    return Entry(flux(d.FluxFillPipeline, 12), masked(flux_prompts(), 16), FLUX)


@entry
def flux_kontext() -> Entry:
    pipe = flux(d.FluxKontextPipeline)
    return Entry(pipe, with_image(flux_prompts(), 16), FLUX | dict(_auto_resize=False, max_area=256))


@entry
def flux_control() -> Entry:
    return Entry(flux(d.FluxControlPipeline, 8), with_image(flux_prompts(), 16, "control_image"), FLUX)


@entry
def flux_control_image_to_image() -> Entry:
    pipe, names = flux(d.FluxControlImg2ImgPipeline, 8), ("image", "control_image")
    return Entry(pipe, with_image(flux_prompts(), 16, *names), FLUX | dict(strength=0.8))


@entry
def flux_controlnet() -> Entry:
    pipe = flux(d.FluxControlNetPipeline, controlnet=flux_controlnet_part())
    return Entry(pipe, with_image(flux_prompts(), 16, "control_image"), FLUX)


@entry
def flux_controlnet_image_to_image() -> Entry:
    pipe, names = flux(d.FluxControlNetImg2ImgPipeline, controlnet=flux_controlnet_part()), ("image", "control_image")
    return Entry(pipe, with_image(flux_prompts(), 16, *names), FLUX | dict(strength=0.8))


@entry
def flux2() -> Entry:
    network = d.Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, timestep_guidance_channels=256, axes_dims_rope=[4, 4, 4, 4],
    )  # fmt: skip
    vae = d.AutoencoderKLFlux2(
        sample_size=32, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        latent_channels=1,
        block_out_channels=(4,), layers_per_block=1, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    pipe = build(d.Flux2Pipeline, scheduler=shifting(), vae=vae, transformer=network)
    return Entry(pipe, embeddings(prompt_embeds=(5, 16)), dict(height=16, width=16, guidance_scale=3.0))


def chroma_base(kind: type) -> Any:
    network = d.ChromaTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=[4, 4, 8], approximator_hidden_dim=32, approximator_layers=1,
        approximator_num_channels=16,
    )  # fmt: skip
    return build(kind, scheduler=flow(), vae=small_kl(), transformer=network)


def chroma_prompts() -> list[dict]:
    return guided(("prompt_attention_mask",), torch.bool, prompt_embeds=(5, 32))


@entry
def chroma() -> Entry:
    return Entry(chroma_base(d.ChromaPipeline), chroma_prompts(), dict(height=16, width=16, guidance_scale=5.0))


@entry
def chroma_image_to_image() -> Entry:
    shared = dict(height=16, width=16, guidance_scale=5.0, strength=0.8)
    return Entry(chroma_base(d.ChromaImg2ImgPipeline), with_image(chroma_prompts(), 16), shared)


def qwen_base(kind: type) -> Any:
    network = d.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = d.AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return build(kind, scheduler=shifting(shift_terminal=0.02), vae=vae, transformer=network)


def qwen_prompts() -> list[dict]:
    return guided(("prompt_embeds_mask",), prompt_embeds=(5, 16))


QWEN = dict(true_cfg_scale=4.0, height=32, width=32)


@entry
def qwen_image() -> Entry:
    return Entry(qwen_base(d.QwenImagePipeline), qwen_prompts(), QWEN)


@entry
def qwen_image_to_image() -> Entry:
    pipe = qwen_base(d.QwenImageImg2ImgPipeline)
    return Entry(pipe, with_image(qwen_prompts(), 32), QWEN | dict(strength=0.8))


@entry
def qwen_inpainting() -> Entry:
    pipe = qwen_base(d.QwenImageInpaintPipeline)
    return Entry(pipe, masked(qwen_prompts(), 32), QWEN | dict(strength=0.8))


def z_image_base(kind: type) -> Any:
    network = d.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, norm_eps=1e-5, qk_norm=True, cap_feat_dim=16, rope_theta=256.0, t_scale=1000.0,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    network.x_pad_token.data.fill_(1)
    network.cap_pad_token.data.fill_(1)
    return build(kind, scheduler=flow(shift=3.0), vae=kl(scaling_factor=0.36, shift_factor=0.11), transformer=network)


def z_image_prompts() -> list[dict]:
    names = ("prompt_embeds", "negative_prompt_embeds")
    return [{name: [noise(name, row, 5, 16)[0]] for name in names} for row in PAIR]


@entry
def z_image() -> Entry:
    return Entry(z_image_base(d.ZImagePipeline), z_image_prompts(), dict(guidance_scale=4.0, height=32, width=32))


@entry
def z_image_to_image() -> Entry:
    shared = dict(guidance_scale=4.0, height=32, width=32, strength=0.8)
    return Entry(z_image_base(d.ZImageImg2ImgPipeline), with_image(z_image_prompts(), 32), shared)


# Other transformers of images.


def pixart_network() -> Any:
    return d.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip


def pixart_prompts(width: int = 32) -> list[dict]:
    return guided(("prompt_attention_mask",), prompt_embeds=(5, width))


PIXART = dict(prompt=None, negative_prompt=None, guidance_scale=4.5, use_resolution_binning=False, height=16, width=16)


@entry
def pixart_alpha() -> Entry:
    betas = {key: value for key, value in BETAS.items() if key != "steps_offset"}
    # DDIM steps by 1000 // n: from one timestep to the next with this spacing, not with the pipeline's own.
    scheduler = d.DPMSolverMultistepScheduler(**betas, timestep_spacing="trailing")
    pipe = build(d.PixArtAlphaPipeline, vae=kl(), transformer=pixart_network(), scheduler=scheduler)
    return Entry(pipe, pixart_prompts(), PIXART)


@entry
def pixart_sigma() -> Entry:
    pipe = build(d.PixArtSigmaPipeline, vae=kl(), transformer=pixart_network(), scheduler=ddim())
    return Entry(pipe, pixart_prompts(), PIXART)


def sana_base(kind: type) -> Any:
    network = d.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=8,
    )  # fmt: skip
    vae = d.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=[1, 1], downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
        scaling_factor=0.41407,
    )  # fmt: skip
    scheduler = d.DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    return build(kind, vae=vae, transformer=network, scheduler=scheduler)


@entry
def sana() -> Entry:
    return Entry(sana_base(d.SanaPipeline), pixart_prompts(8), PIXART | dict(height=32, width=32))


@entry
def aura_flow() -> Entry:
    network = d.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, out_channels=4,
        pos_embed_max_size=256,
    )  # fmt: skip
    pipe = build(d.AuraFlowPipeline, vae=kl(), transformer=network, scheduler=flow(shift=1.73))
    return Entry(pipe, pixart_prompts(), dict(height=16, width=16, guidance_scale=3.5))


@entry
def lumina() -> Entry:
    network = d.LuminaNextDiT2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=4, num_layers=2, num_attention_heads=1, num_kv_heads=1,
        multiple_of=16, ffn_dim_multiplier=None, norm_eps=1e-5, learn_sigma=True, qk_norm=True, cross_attention_dim=8,
        scaling_factor=1.0,
    )  # fmt: skip
    pipe = build(d.LuminaPipeline, transformer=network, scheduler=flow(), vae=kl())
    return Entry(pipe, pixart_prompts(8), dict(height=16, width=16, guidance_scale=4.0))


@entry
def lumina2() -> Entry:
    network = d.Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=8, num_layers=2, num_attention_heads=1, num_kv_heads=1,
        multiple_of=16, ffn_dim_multiplier=None, norm_eps=1e-5, scaling_factor=1.0, axes_dim_rope=[4, 2, 2],
        cap_feat_dim=8,
    )  # fmt: skip
    vae = kl(shift_factor=0.06, scaling_factor=1.5)
    pipe = build(d.Lumina2Pipeline, transformer=network, scheduler=flow(shift=6.0), vae=vae)
    return Entry(pipe, pixart_prompts(8), dict(height=16, width=16, guidance_scale=4.0))


@entry
def hunyuan_dit() -> Entry:
    network = d.HunyuanDiT2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16, hidden_size=24, text_len=5,
        activation_fn="gelu-approximate", text_len_t5=6,
    )  # fmt: skip
    scheduler = d.DDPMScheduler(**BETAS, prediction_type="v_prediction")
    pipe = build(d.HunyuanDiTPipeline, vae=kl(), transformer=network, scheduler=scheduler)
    conditions = guided(prompt_embeds=(5, 32), prompt_embeds_2=(6, 32))
    for condition in conditions:
        for sign in ("", "negative_"):
            condition[f"{sign}prompt_attention_mask"] = torch.ones(1, 5, dtype=torch.long)
            condition[f"{sign}prompt_attention_mask_2"] = torch.ones(1, 6, dtype=torch.long)
    shared = dict(use_resolution_binning=False, height=16, width=16, guidance_scale=5.0)
    return Entry(pipe, conditions, shared)


@entry
def cogview4() -> Entry:
    network = d.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=4, out_channels=4,
        text_embed_dim=32, time_embed_dim=8, condition_dim=4,
    )  # fmt: skip
    scheduler = flow(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    pipe = build(d.CogView4Pipeline, vae=kl(), transformer=network, scheduler=scheduler)
    return Entry(pipe, guided(prompt_embeds=(16, 32)), dict(height=16, width=16, guidance_scale=5.0))


@entry
def dit() -> Entry:
    network = d.DiTTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=4, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8, attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    scheduler = d.DDIMScheduler(clip_sample=False, steps_offset=1)
    pipe = build(d.DiTPipeline, transformer=network, vae=kl(), scheduler=scheduler)
    return Entry(pipe, [{"class_labels": 3}, {"class_labels": 4}], dict(guidance_scale=4.0))


# UNets without prompts, and those of pixels.


@entry
def ddpm() -> Entry:
    return Entry(d.DDPMPipeline(plain_unet(), d.DDPMScheduler()), [{}, {}], {})


@entry
def ddim_plain() -> Entry:
    return Entry(d.DDIMPipeline(plain_unet(), d.DDIMScheduler()), [{}, {}], {})


@entry
def latent_unconditional() -> Entry:
    return Entry(d.LDMPipeline(kl(), plain_unet(4), ddim()), [{}, {}], {})


@entry
def deepfloyd() -> Entry:
    from diffusers.models.attention_processor import AttnAddedKVProcessor

    network = d.UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=[32, 64], cross_attention_dim=32, encoder_hid_dim=32,
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"], in_channels=3, out_channels=6,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", attention_head_dim=8, addition_embed_type="text",
        up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"], addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift", act_fn="gelu",
    )  # fmt: skip
    network.set_attn_processor(AttnAddedKVProcessor())
    scheduler = d.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1.0,
        variance_type="learned_range",
    )  # fmt: skip
    pipe = build(d.IFPipeline, unet=network, scheduler=scheduler)
    return Entry(pipe, guided(prompt_embeds=(5, 32)), dict(height=16, width=16, guidance_scale=7.0))


def kandinsky(kind: type) -> Any:
    network = d.UNet2DConditionModel(
        in_channels=4, out_channels=8, addition_embed_type="image", block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), encoder_hid_dim=16,
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), encoder_hid_dim_type="image_proj",
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", cross_attention_dim=16, attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    vq = d.VQModel(
        block_out_channels=[32, 64], down_block_types=["DownEncoderBlock2D"] * 2, latent_channels=4, norm_num_groups=8,
        up_block_types=["UpDecoderBlock2D"] * 2, num_vq_embeddings=12, vq_embed_dim=4, norm_type="spatial",
    )  # fmt: skip
    return build(kind, unet=network, scheduler=ddim(beta_schedule="linear"), movq=vq)


@entry
def kandinsky22() -> Entry:
    shared = dict(height=32, width=32, guidance_scale=4.0)
    return Entry(kandinsky(d.KandinskyV22Pipeline), guided(image_embeds=(16,)), shared)


@entry
def kandinsky22_image_to_image() -> Entry:
    pipe = kandinsky(d.KandinskyV22Img2ImgPipeline)
    shared = dict(height=32, width=32, strength=0.6, guidance_scale=4.0)
    return Entry(pipe, with_image(guided(image_embeds=(16,)), 32), shared)


def marigold(kind: type, **parts: Any) -> Any:
    scheduler = ddim(prediction_type="v_prediction")
    return sd(kind, unet=unet(in_channels=8), scheduler=scheduler, **parts)


MARIGOLD = dict(processing_resolution=0, match_input_resolution=False, batch_size=2)


def pictures() -> list[dict]:
    return with_image([{}, {}], 32)


@entry
def marigold_depth() -> Entry:
    pipe = marigold(d.MarigoldDepthPipeline, scale_invariant=True, shift_invariant=True)
    return Entry(pipe, pictures(), MARIGOLD)


@entry
def marigold_normals() -> Entry:
    return Entry(marigold(d.MarigoldNormalsPipeline), pictures(), MARIGOLD)


# Videos.


def cogvideox_base(kind: type, channels: int = 4) -> Any:
    network = d.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=channels, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=16,
    )  # fmt: skip
    vae = d.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4, latent_channels=4,
        block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    )  # fmt: skip
    scheduler = d.CogVideoXDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, snr_shift_scale=1.0, timestep_spacing="trailing",
    )  # fmt: skip
    return build(kind, vae=vae, transformer=network, scheduler=scheduler)


@entry
def cogvideox() -> Entry:
    shared = dict(height=16, width=16, num_frames=8, guidance_scale=6.0, max_sequence_length=16)
    return Entry(cogvideox_base(d.CogVideoXPipeline), guided(prompt_embeds=(16, 32)), shared)


def ltx_base(kind: type) -> Any:
    network = d.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=1, caption_channels=32,
    )  # fmt: skip
    scheduler = flow(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
    )
    return build(kind, scheduler=scheduler, vae=ltx_vae(), transformer=network)


def ltx_vae() -> Any:
    vae = d.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=(True, True, False, False), patch_size=1,
        decoder_spatio_temporal_scaling=(True, True, False, False), decoder_inject_noise=(False,) * 5, patch_size_t=1,
        upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, timestep_conditioning=False, decoder_causal=False,
    )  # fmt: skip
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return vae


def ltx_prompts() -> list[dict]:
    return guided(("prompt_attention_mask",), prompt_embeds=(16, 32))


LTX = dict(height=32, width=32, num_frames=9, guidance_scale=3.0)


@entry
def ltx() -> Entry:
    return Entry(ltx_base(d.LTXPipeline), ltx_prompts(), LTX)


@entry
def ltx_image_to_video() -> Entry:
    return Entry(ltx_base(d.LTXImageToVideoPipeline), with_image(ltx_prompts(), 32), LTX)


@entry
def ltx2_with_sound() -> Entry:
    import types

    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    network = d.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, num_layers=1,
        audio_attention_head_dim=4, audio_cross_attention_dim=8, qk_norm="rms_norm_across_heads", caption_channels=32,
        rope_double_precision=False, rope_type="split",
    )  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=32, text_proj_in_factor=3, video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=8, video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=4, audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=32, rope_theta=10000.0,
        rope_double_precision=False, causal_temporal_positioning=False, rope_type="split",
    )  # fmt: skip
    vae = d.AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
        patch_size=1,
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,), patch_size_t=1,
        upsample_factor=(1,), timestep_conditioning=False, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    audio_vae = d.AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, in_channels=2,
        resolution=32, latent_channels=2, norm_type="pixel", causality_axis="height", dropout=0.0, sample_rate=16000,
        mid_block_add_attention=False, mel_hop_length=160, is_causal=True, mel_bins=8,
    )  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=32, out_channels=2, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], leaky_relu_negative_slope=0.1,
        output_sampling_rate=16000,
    )  # fmt: skip
    pipe = build(
        d.LTX2Pipeline, scheduler=flow(), vae=vae, audio_vae=audio_vae, connectors=connectors, transformer=network,
        vocoder=vocoder,
    )  # fmt: skip
    pipe.tokenizer_max_length, pipe.tokenizer = 16, types.SimpleNamespace(padding_side="left")
    shared = dict(
        height=32, width=32, num_frames=5, frame_rate=25.0, guidance_scale=3.0, stg_scale=0.0, audio_stg_scale=0.0,
        modality_scale=1.0, audio_modality_scale=1.0, guidance_rescale=0.0, audio_guidance_rescale=0.0,
        audio_guidance_scale=3.0, use_cross_timestep=False,
    )  # fmt: skip
    return Entry(pipe, guided(("prompt_attention_mask",), prompt_embeds=(16, 96)), shared)


def wan_network(channels: int = 16) -> Any:
    return d.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=16,
        text_dim=32, freq_dim=256, ffn_dim=32, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )  # fmt: skip


def wan_base(kind: type = d.WanPipeline, channels: int = 16, **parts: Any) -> Any:
    vae = d.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    scheduler = d.UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    return build(kind, vae=vae, transformer=wan_network(channels), scheduler=scheduler, **parts)


def wan_prompts() -> list[dict]:
    return guided(prompt_embeds=(16, 32))


WAN = dict(height=16, width=16, num_frames=9, guidance_scale=5.0)


@entry
def wan() -> Entry:
    return Entry(wan_base(), wan_prompts(), WAN)


@entry
def wan_two_experts() -> Entry:
    return Entry(wan_base(transformer_2=wan_network(), boundary_ratio=0.875), wan_prompts(), WAN)


@entry
def wan_timesteps_of_tokens() -> Entry:
    return Entry(wan_base(expand_timesteps=True), wan_prompts(), WAN)


@entry
def wan_image_to_video() -> Entry:
    pipe = wan_base(d.WanImageToVideoPipeline, 36)
    return Entry(pipe, wan_prompts(), WAN | dict(image=image(16)))


@entry
def animate_diff() -> Entry:
    network = unet(
        block_out_channels=(8, 8), sample_size=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    motion = d.MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=4
    )
    pipe = sd(
        d.AnimateDiffPipeline,
        vae=kl((8, 8)),
        unet=network,
        motion_adapter=motion,
        scheduler=ddim(beta_schedule="linear"),
    )
    return Entry(pipe, prompts(), dict(num_frames=4, height=16, width=16, guidance_scale=7.5))


@entry
def latte() -> Entry:
    network = d.LatteTransformer3DModel(
        sample_size=8, video_length=2, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3,
        caption_channels=32, in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True,
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    pipe = build(d.LattePipeline, vae=kl(), transformer=network, scheduler=ddim())
    shared = dict(prompt=None, negative_prompt=None, video_length=2, height=16, width=16, guidance_scale=5.0)
    return Entry(pipe, guided(prompt_embeds=(5, 32)), shared | dict(clean_caption=False))


@entry
def hunyuan_video() -> Entry:
    network = d.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
        pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = d.AutoencoderKLHunyuanVideo(
        latent_channels=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4, block_out_channels=(8,) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, layers_per_block=1, norm_num_groups=4, scaling_factor=0.476986,
    )  # fmt: skip
    pipe = build(d.HunyuanVideoPipeline, transformer=network, vae=vae, scheduler=flow(shift=7.0))
    conditions = embeddings(("prompt_attention_mask",), prompt_embeds=(16, 16), pooled_prompt_embeds=(8,))
    return Entry(pipe, conditions, dict(height=16, width=16, num_frames=9, guidance_scale=4.5))


@entry
def hunyuan_video_15() -> Entry:
    """Guidance by a guider, a part of its own."""
    network = d.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_refiner_layers=1,
        text_embed_dim=16, text_embed_2_dim=12, image_embed_dim=12, rope_axes_dim=(2, 2, 4), target_size=16,
        task_type="t2v",
    )  # fmt: skip
    vae = d.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16,) * 5, layers_per_block=1, downsample_match_channel=False,
        upsample_match_channel=False,
    )  # fmt: skip
    vae.enable_slicing()  # it decodes one video at a time only
    guider = ClassifierFreeGuidance(guidance_scale=4.0)
    pipe = build(d.HunyuanVideo15Pipeline, transformer=network, vae=vae, scheduler=flow(shift=5.0), guider=guider)
    pipe.vision_num_semantic_tokens = 3
    masks = ("prompt_embeds_mask", "prompt_embeds_mask_2")
    conditions = guided(masks, torch.float32, prompt_embeds=(6, 16), prompt_embeds_2=(4, 12))
    return Entry(pipe, conditions, dict(height=32, width=32, num_frames=5))


@entry
def mochi() -> Entry:
    network = d.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=1, pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    network.pos_frequencies.data.zero_()
    vae = d.AutoencoderKLMochi(
        latent_channels=12, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )  # fmt: skip
    pipe = build(d.MochiPipeline, scheduler=flow(invert_sigmas=True), vae=vae, transformer=network)
    conditions = guided(("prompt_attention_mask",), torch.bool, prompt_embeds=(16, 32))
    return Entry(pipe, conditions, dict(height=16, width=16, num_frames=7, guidance_scale=4.5))


@entry(slow=True)
def stable_video() -> Entry:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    network = d.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=16, in_channels=8, out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"), cross_attention_dim=32,
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), num_attention_heads=8,
        projection_class_embeddings_input_dim=96, addition_time_embed_dim=32,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, projection_dim=32, num_hidden_layers=1, num_attention_heads=4, image_size=32,
        intermediate_size=37,
        patch_size=8,
    )  # fmt: skip
    vae = d.AutoencoderKLTemporalDecoder(
        block_out_channels=[32, 64], down_block_types=["DownEncoderBlock2D"] * 2, latent_channels=4
    )
    scheduler = euler(
        prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002, timestep_type="continuous",
        use_karras_sigmas=True,
    )  # fmt: skip
    pipe = build(
        d.StableVideoDiffusionPipeline, vae=vae, image_encoder=CLIPVisionModelWithProjection(vision), unet=network,
        scheduler=scheduler, feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
    )  # fmt: skip
    shared = dict(num_frames=2, height=32, width=32, min_guidance_scale=1.0, max_guidance_scale=2.5)
    return Entry(pipe, with_image([{}, {}], 32), shared)


# Sounds.


@entry
def audio_ldm2() -> Entry:
    from transformers import GPT2Config, GPT2LMHeadModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

    network = d.AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, sample_size=32, in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=((16, 16), (16, 16)),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8, sampling_rate=16000, upsample_initial_channel=16, upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3, 7], normalize_before=False,
            resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
        )
    )  # fmt: skip
    words = GPT2Config(n_embd=16, n_head=1, n_layer=1, vocab_size=100, n_positions=99, bos_token_id=1, eos_token_id=2)
    pipe = build(
        d.AudioLDM2Pipeline, vae=kl((8, 16), in_channels=1, out_channels=1), text_encoder_2=clip(16)[0],
        projection_model=d.AudioLDM2ProjectionModel(16, 16, 16), language_model=GPT2LMHeadModel(words), unet=network,
        scheduler=ddim(), vocoder=vocoder,
    )  # fmt: skip
    conditions = guided(prompt_embeds=(5, 16), generated_prompt_embeds=(8, 16))
    for condition in conditions:
        condition["attention_mask"] = condition["negative_attention_mask"] = torch.ones(1, 5, dtype=torch.long)
    return Entry(pipe, conditions, dict(audio_length_in_s=0.003, guidance_scale=3.5))
