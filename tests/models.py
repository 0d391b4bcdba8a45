"""Tiny random networks of every class that can be a teacher, saved as a user's would be: what the matrix is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch

from redif_env.diffusion.types import Prediction
from redif_env.teachers.teacher import GaussianMixtureTeacher

SIDE = 8
PROMPTS = ["a cat", "two dogs"]


class CountedGaussian(GaussianMixtureTeacher):
    """One Gaussian that counts its predictions."""

    def __init__(self) -> None:
        super().__init__(torch.tensor([[0.5, 0.0]]), 0.3)
        self.asked = 0

    def predict(self, x: torch.Tensor, *rest: Any) -> Prediction:
        self.asked += len(x)
        return super().predict(x, *rest)


def unet(classes: int | None = None, channels: tuple[int, ...] = (8,), samples: int = 3) -> diffusers.UNet2DModel:
    """Of one block, if no more ``channels`` are given: hundreds of tests run it."""
    return diffusers.UNet2DModel(
        sample_size=SIDE,
        in_channels=samples,
        out_channels=samples,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        attention_head_dim=4,
        num_class_embeds=classes,
    )


def dit() -> diffusers.DiTTransformer2DModel:
    """With a predicted variance beside, as the published ones have."""
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=SIDE,
        num_embeds_ada_norm=5,
        norm_num_groups=4,
    )


def vae(channels: int, cls: type = diffusers.AutoencoderKL, **options: Any) -> Any:
    return cls(
        in_channels=3,
        out_channels=3,
        latent_channels=channels,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **options,
    )


def tokenizer(folder: Path) -> Any:
    """A tokenizer of single letters: no vocabulary can be fetched here."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def text_encoder(projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=60,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def save_unet(folder: Path) -> None:
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).save_pretrained(folder)


def save_unet_of_classes(folder: Path) -> None:
    """Four labels, the last of which stands for none."""
    diffusers.DDPMPipeline(unet(4), diffusers.DDPMScheduler()).save_pretrained(folder)


def save_dit(folder: Path) -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    diffusers.DiTPipeline(dit(), vae(4), scheduler, id2label={0: "zero", 1: "one"}).save_pretrained(folder)


def save_latent_unet(folder: Path) -> None:
    vqvae = vae(3, diffusers.VQModel, num_vq_embeddings=16)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    diffusers.LDMPipeline(vqvae, unet(), scheduler).save_pretrained(folder)


def save_stable_diffusion(folder: Path) -> None:
    network = diffusers.UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    diffusers.StableDiffusionPipeline(
        vae(4),
        text_encoder(),
        tokenizer(folder / "tokenizer"),
        network,
        diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        None,
        None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def save_stable_diffusion_3(folder: Path) -> None:
    network = diffusers.SD3Transformer2DModel(
        sample_size=SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=8,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    words = tokenizer(folder / "tokenizer")
    diffusers.StableDiffusion3Pipeline(
        network,
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae(4, shift_factor=0.1),
        text_encoder(projected=True),
        words,
        text_encoder(projected=True),
        words,
        None,
        None,
    ).save_pretrained(folder)


@dataclass(frozen=True)
class Model:
    """A network class: ``save`` writes its pipeline, ``options`` are arguments of the teacher."""

    network: str
    conditioning: str
    save: Callable[[Path], None]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.network}, {self.conditioning}"


MODELS = [
    Model("UNet2DModel", "none", save_unet),
    Model("UNet2DModel", "class labels", save_unet_of_classes, {"null_label": 3}),
    Model("UNet2DModel", "class labels, guided", save_unet_of_classes, {"null_label": 3, "guidance_scale": 2.0}),
    Model("UNet2DModel of latents", "none", save_latent_unet),
    Model("DiTTransformer2DModel", "class labels", save_dit),
    Model("DiTTransformer2DModel", "class labels, guided", save_dit, {"guidance_scale": 4.0, "conditions": [0, 3]}),
    Model("UNet2DConditionModel", "prompts", save_stable_diffusion, {"conditions": PROMPTS}),
    Model(
        "UNet2DConditionModel", "prompts, guided", save_stable_diffusion, {"conditions": PROMPTS, "guidance_scale": 5.0}
    ),
    Model("SD3Transformer2DModel", "prompts", save_stable_diffusion_3, {"conditions": PROMPTS}),
    Model(
        "SD3Transformer2DModel",
        "prompts, guided",
        save_stable_diffusion_3,
        {"conditions": {"a cat": 1.0, "two dogs": 3.0}, "guidance_scale": 4.0},
    ),
]

SCHEDULES: dict[str, list[tuple[str, Callable[[], Any]]]] = {
    "variance-preserving": [
        (kind, lambda kind=kind: diffusers.DDIMScheduler(prediction_type=kind, clip_sample=False, steps_offset=1))
        for kind in ("epsilon", "sample", "v_prediction")
    ],
    "variance-preserving, zero terminal SNR": [
        (
            kind,
            lambda kind=kind: diffusers.DDIMScheduler(
                prediction_type=kind, clip_sample=False, rescale_betas_zero_snr=True, steps_offset=1
            ),
        )
        for kind in ("sample", "v_prediction")
    ],
    "EDM": [
        (kind, lambda kind=kind: diffusers.EDMEulerScheduler(prediction_type=kind))
        for kind in ("epsilon", "v_prediction")
    ],
    "variance-exploding": [("epsilon (score)", lambda: diffusers.ScoreSdeVeScheduler(sigma_max=50.0))],
    "flow matching": [("flow_prediction", lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0))],
}
"""Prediction types that each schedule has, and a scheduler that says so."""


@dataclass(frozen=True)
class Cell:
    """One combination of the matrix."""

    schedule: str
    prediction: str
    model: Model
    scheduler: Callable[[], Any]

    @property
    def name(self) -> str:
        return f"{self.schedule} | {self.prediction} | {self.model.name}"

    def write(self, templates: Path, folder: Path) -> None:
        """The model's pipeline folder with this cell's scheduler; networks are saved once and linked."""
        template = templates / self.model.network.replace(" ", "-") / self.model.save.__name__
        if not template.exists():
            torch.manual_seed(0)
            self.model.save(template)
        folder.mkdir(parents=True)
        for entry in template.iterdir():
            if entry.name not in ("scheduler", "model_index.json"):
                (folder / entry.name).symlink_to(entry)
        scheduler = self.scheduler()
        scheduler.save_pretrained(folder / "scheduler")
        index = json.loads((template / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        (folder / "model_index.json").write_text(json.dumps(index))


CELLS = [
    Cell(schedule, prediction, model, scheduler)
    for schedule, kinds in SCHEDULES.items()
    for prediction, scheduler in kinds
    for model in MODELS
]

BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"


def with_matrix(text: str, outcomes: dict[str, str]) -> str:
    """``text`` with its matrix put anew from what became of each cell, by name."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{matrix(outcomes)}\n{END}{rest.split(END)[1]}"


def matrix(outcomes: dict[str, str]) -> str:
    """Markdown table: a row a network class and conditioning, a column a schedule and prediction type."""
    columns = [(schedule, prediction) for schedule, kinds in SCHEDULES.items() for prediction, _ in kinds]
    header = ["network", "asked for", *(f"{schedule}: `{prediction}`" for schedule, prediction in columns)]
    lines = [header, ["---"] * len(header)]
    for model in MODELS:
        names = [f"{schedule} | {prediction} | {model.name}" for schedule, prediction in columns]
        lines.append([f"`{model.network}`", model.conditioning, *(outcomes.get(name, "not run") for name in names)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
