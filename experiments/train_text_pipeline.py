"""Train a small text-to-image pipeline: captions of MNIST, a CLIP text encoder, a VAE, a UNet, as Stable Diffusion has.

    python -m experiments.train_text_pipeline --data mnist.npz --seconds 1500 --out runs/text-mnist

Saves a ``StableDiffusionPipeline`` folder of 32x32 grey images, with its captions in prompts.txt, one a line: a
student of it is trained by

    python -m agents.ppo --teacher runs/text-mnist --prompts runs/text-mnist/prompts.txt --guidance-scale 3 \
        --num-steps 6 --run-size 64 --out runs/text-mnist-6
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from experiments import train_teacher
from experiments.train_teacher import Kind, Training, objective_of
from redif_env.storage.data import ImageSet, load_images
from redif_env.storage.files import write_folder

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STROKES = ("thin ", "", "bold ")
"""Thirds of the images, by the share of their ink."""
TOKENS, WIDTH = 16, 64
"""Length of a caption, and width of the text encoder."""
SIDE, LATENTS = 32, 4
"""Of the images in pixels, with a margin of 2, and channels of the latents, which have 8 x 8 places."""
ENCODED = 500
"""Images of one call of the encoder."""
SHARE_OF_VAE, KL_WEIGHT = 0.3, 1e-5
"""Of the time, and of the divergence in the loss."""


@dataclass(frozen=True)
class Args:
    """Settings of the training."""

    data: str
    """Images of digits with labels: MNIST's mnist.npz."""
    out: Path = Path("runs/text-mnist")
    seconds: float = 1500
    """Time budget of the VAE and the network together."""
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0


def captioned(data: ImageSet) -> tuple[tuple[str, ...], Tensor]:
    """The captions, and the row ``(N,)`` of that of each image: its digit, and how bold its strokes are."""
    assert data.labels is not None
    ink = data.images.flatten(1).mean(dim=1)
    third = torch.bucketize(ink, ink.quantile(torch.tensor([1 / 3, 2 / 3])))
    captions = tuple(f"a {stroke}handwritten {digit}" for digit in DIGITS for stroke in STROKES)
    return captions, data.labels * len(STROKES) + third


def build_tokenizer(captions: tuple[str, ...]) -> CLIPTokenizer:
    """A tokenizer whose byte pairs are those of the captions."""
    model = Tokenizer(BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    model.pre_tokenizer = Whitespace()
    ends = ["<|startoftext|>", "<|endoftext|>"]
    model.train_from_iterator(captions, BpeTrainer(special_tokens=ends, end_of_word_suffix="</w>", show_progress=False))
    learned = json.loads(model.to_str())["model"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps(learned["vocab"]), encoding="utf-8")
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in learned["merges"]]
        merges.write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of attention."""
    ends = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_attention_heads=4,
            num_hidden_layers=2,
            max_position_embeddings=TOKENS,
            eos_token_id=tokenizer.eos_token_id,
            **ends,
        )
    )


def build_vae() -> AutoencoderKL:
    """Grey images of 32 x 32 to latents of 8 x 8."""
    channels = (8, 16, 16)
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        latent_channels=LATENTS,
        norm_num_groups=4,
        sample_size=SIDE,
    )


def build_network() -> UNet2DConditionModel:
    """Cross attention to the caption in the middle, at 4 x 4 places."""
    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


class CaptionedNetwork(nn.Module):
    """The network with its text encoder, called with rows of captions; the last row is no caption."""

    def __init__(self, network: UNet2DConditionModel, text_encoder: CLIPTextModel, tokens: Tensor) -> None:
        super().__init__()
        self.network, self.text_encoder = network, text_encoder
        self.register_buffer("tokens", tokens)

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> Any:
        texts = self.text_encoder(self.tokens)[0]
        return self.network(x, timestep, encoder_hidden_states=texts[class_labels])


def train_vae(vae: AutoencoderKL, images: Tensor, args: Args) -> None:
    """Reconstruction and a little divergence, for its share of the time; the learning rate falls to 0."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate)
    generator = torch.Generator().manual_seed(args.seed)
    budget, start, done = SHARE_OF_VAE * args.seconds, time.monotonic(), 0.0
    bar = tqdm(total=100, desc="vae", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")
    while done < 1:
        batch = images[torch.randint(len(images), (args.batch_size // 2,), generator=generator)]
        found: AutoencoderKLOutput = vae.encode(batch)
        error = F.mse_loss(vae.decode(found.latent_dist.sample(generator)).sample, batch)
        loss = error + KL_WEIGHT * found.latent_dist.kl().mean()
        optimizer.param_groups[0]["lr"] = args.learning_rate * min(1.0, 0.1 + 20 * done) * (1 - done)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        done = min(1.0, (time.monotonic() - start) / budget)
        bar.set_postfix(error=f"{error.item():.4f}")
        bar.update(int(100 * done) - bar.n)


@torch.inference_mode()
def encoded(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latents ``(N, 4, 8, 8)`` of unit variance; their scale is written into the config of ``vae``."""
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(ENCODED)])
    scale = 1 / float(latents.std())
    vae.register_to_config(scaling_factor=scale)
    return latents * scale


def main(args: Args) -> None:
    torch.manual_seed(args.seed)
    data = load_images(args.data)
    if data.labels is None or data.num_classes != len(DIGITS) or data.images.shape[1] != 1:
        raise ValueError(f"data={args.data!r} are no grey images of ten digits: give MNIST's mnist.npz")
    margin = (SIDE - data.images.shape[-1]) // 2
    images = F.pad(data.images, [margin] * 4, value=-1.0)
    captions, rows = captioned(data)
    tokenizer, vae = build_tokenizer(captions), build_vae().to(memory_format=torch.channels_last)
    train_vae(vae, images, args)
    latents = encoded(vae.eval(), images)
    texts = tokenizer([*captions, ""], padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    network = CaptionedNetwork(
        build_network().to(memory_format=torch.channels_last), build_text_encoder(tokenizer), texts
    )
    teacher = train_teacher.Args(
        kind=Kind.EPSILON,
        conditional=True,
        seed=args.seed,
        seconds=(1 - SHARE_OF_VAE) * args.seconds,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
    )
    objective, scheduler = objective_of(teacher.kind)
    Training(teacher, network, objective, ImageSet(latents, rows)).run(network, None)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=network.text_encoder,
        tokenizer=tokenizer,
        unet=network.network,
        scheduler=DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with write_folder(args.out) as folder:
        pipe.save_pretrained(folder, safe_serialization=True)
        (folder / "prompts.txt").write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args))
