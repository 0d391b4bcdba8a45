"""Train the built-in digits teacher: a small UNet on scikit-learn's 1,797 real digits, linear VP schedule.

    python -m experiments.train_teacher

Saves a diffusers pipeline folder with half-precision weights of the moving average, and a note of its quality.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from redif_env.data import load_digits
from redif_env.features import embed, load_features
from redif_env.files import ASSETS, write_folder
from redif_env.metrics import frechet_distance
from redif_env.teachers import load_teacher


@dataclass(frozen=True)
class Args:
    """Settings of the training; the quality is measured on as many samples as there are images."""

    out: Path = ASSETS / "digits"
    seed: int = 0
    steps: int = 6000
    batch_size: int = 256
    learning_rate: float = 2e-3
    ema_decay: float = 0.999


def build_network() -> UNet2DModel:
    """About 0.65 million parameters: two resolutions, one residual block each, attention in the middle."""
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
    )


def train(args: Args, network: UNet2DModel, scheduler: DDPMScheduler, images: Tensor) -> float:
    """Minimise the noise prediction error (Ho et al. 2020, Eq. 14); leaves the moving average in ``network``."""
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate, weight_decay=1e-4)
    warm_cosine = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.steps, pct_start=0.05)
    average = EMAModel(network.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=0.75)
    progress, recent = tqdm(range(args.steps), desc="teacher"), 0.0
    for step in progress:
        chosen = torch.randint(len(images), (args.batch_size,), generator=generator)
        clean = images[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        # Stratified timesteps: every batch covers the whole schedule, which halves the gradient's variance.
        strata = (torch.arange(args.batch_size) + torch.rand(args.batch_size, generator=generator)) / args.batch_size
        timesteps = (strata * scheduler.config.num_train_timesteps).long()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = network(scheduler.add_noise(clean, noise, timesteps), timesteps).sample
        loss = F.mse_loss(predicted.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        warm_cosine.step()
        average.step(network.parameters())
        recent = loss.item() if step == 0 else 0.99 * recent + 0.01 * loss.item()
        progress.set_postfix(loss=f"{recent:.4f}")
    average.copy_to(network.parameters())
    return recent


def quality(folder: Path, images: Tensor, seed: int) -> tuple[float, float]:
    """Frechet distance of 100-step samples to the data, and between random halves of the data (mean of 10 splits)."""
    teacher = load_teacher(folder)
    network = load_features("digits-judge", teacher.sample_shape)
    features = embed(network, images)
    generator = torch.Generator().manual_seed(seed)
    halves = []
    for _ in range(10):
        order = torch.randperm(len(images), generator=generator)
        halves.append(frechet_distance(features[order[::2]], features[order[1::2]]))
    noise = torch.randn(len(images), *teacher.sample_shape, generator=generator)
    distance = frechet_distance(embed(network, teacher.endpoint(noise, num_steps=100)), features)
    return distance, sum(halves) / len(halves)


def main(args: Args) -> None:
    torch.manual_seed(args.seed)
    images, _ = load_digits()
    network, scheduler = build_network(), DDPMScheduler(clip_sample=False)
    start = time.monotonic()
    loss = train(args, network, scheduler, images)
    seconds = time.monotonic() - start
    parameters = sum(parameter.numel() for parameter in network.parameters())
    with write_folder(args.out) as folder:
        DDPMPipeline(network.half(), scheduler).save_pretrained(folder, safe_serialization=True)
        distance, halves = quality(folder, images, args.seed)
        (folder / "README.md").write_text(
            f"Made by `python -m experiments.train_teacher --seed {args.seed} --steps {args.steps}`: {parameters:,} "
            f"parameters, {args.steps} steps of {args.batch_size} images, {seconds:.0f} s on two CPU cores, last loss "
            f"{loss:.4f}.\n\nFrechet distance (features digits-classifier-64) of {len(images)} 100-step samples to the "
            f"data {distance:.2f}; between two random halves of the data {halves:.2f}; ratio {distance / halves:.2f}.\n"
        )
    print((args.out / "README.md").read_text())


if __name__ == "__main__":
    main(tyro.cli(Args))
