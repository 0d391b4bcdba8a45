"""Train a small teacher: a UNet on real images, by noise, velocity or flow prediction. The built-in ones are made so.

    python -m experiments.train_teacher                                                       # digits
    python -m experiments.train_teacher --data mnist.npz --kind flow --conditional --channels 16 32 64 \
        --batch-size 128 --out redif_env/assets/mnist                                         # mnist

Saves a diffusers pipeline folder with half-precision weights of the moving average, training.json with the curve, and
a note of its quality.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import tyro
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from redif_env.measures.features import embed, evaluation_features, load_features
from redif_env.measures.metrics import frechet_distance
from redif_env.storage.data import ImageSet, load_images
from redif_env.storage.files import ASSETS, write_folder
from redif_env.teachers.teacher import Teacher

FACTS = "training.json"
CURVE_POINTS = 20
DROPPED = 0.1
"""Share of labels that are replaced by the null label, so that the network can be guided (Ho and Salimans 2022)."""
MEASURED = 2000


class Kind(StrEnum):
    """Schedule and prediction type."""

    EPSILON = "epsilon"
    """Linear variance-preserving schedule, noise prediction (Ho et al. 2020, Eq. 14)."""
    V = "v"
    """Cosine schedule, velocity prediction (Salimans and Ho 2022)."""
    FLOW = "flow"
    """Straight paths, flow prediction (Liu et al. 2022, Lipman et al. 2023)."""


@dataclass(frozen=True)
class Args:
    """Settings of the training."""

    data: str = "digits"
    """One of "digits", an .npz file, a folder of images or a data set of the hub (redif_env.storage.data)."""
    size: int | None = None
    """Side in pixels to resize images of a folder or the hub to."""
    kind: Annotated[Kind, tyro.conf.EnumChoicesFromValues] = Kind.EPSILON
    conditional: bool = False
    """Train with labels; one more, the last, stands for none."""
    channels: tuple[int, ...] = (32, 64)
    """Of each resolution, the finest first."""
    out: Path = ASSETS / "digits"
    seed: int = 0
    steps: int = 6000
    batch_size: int = 256
    learning_rate: float = 2e-3
    ema_decay: float = 0.999
    measure_only: bool = False
    """Measure the teacher in out again, and write its note anew."""


Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Clean images, noise and times in [0, 1) to the noisy images, the conditioning timesteps and the target."""


def build_network(args: Args, data: ImageSet) -> UNet2DModel:
    """One residual block a resolution, attention in the middle."""
    levels = len(args.channels)
    return UNet2DModel(
        sample_size=data.images.shape[-1],
        in_channels=data.images.shape[1],
        out_channels=data.images.shape[1],
        block_out_channels=args.channels,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        attention_head_dim=16,
        num_class_embeds=data.num_classes + 1 if args.conditional else None,
    )


def objective_of(kind: Kind) -> tuple[Objective, DDPMScheduler | FlowMatchEulerDiscreteScheduler]:
    """The target of training, and the scheduler whose config names it."""
    if kind is Kind.FLOW:
        flow = FlowMatchEulerDiscreteScheduler()

        def straight(clean: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            sigma = times.reshape(-1, 1, 1, 1)
            return torch.lerp(clean, noise, sigma), times * flow.config.num_train_timesteps, noise - clean

        return straight, flow
    scheduler = (
        DDPMScheduler(clip_sample=False)
        if kind is Kind.EPSILON
        else DDPMScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    )

    def diffused(clean: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        timesteps = (times * scheduler.config.num_train_timesteps).long()
        target = noise if kind is Kind.EPSILON else scheduler.get_velocity(clean, noise, timesteps)
        return scheduler.add_noise(clean, noise, timesteps), timesteps, target

    return diffused, scheduler


def train(args: Args, network: UNet2DModel, objective: Objective, data: ImageSet) -> list[float]:
    """Minimise the objective's mean squared error; leaves the moving average in ``network``. Returns the loss curve."""
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate, weight_decay=1e-4)
    warm_cosine = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.steps, pct_start=0.05)
    average = EMAModel(network.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=0.75)
    progress, recent, curve = tqdm(range(args.steps), desc="teacher"), 0.0, []
    for step in progress:
        chosen = torch.randint(len(data), (args.batch_size,), generator=generator)
        clean = data.images[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        # Stratified times: every batch covers the whole schedule, which halves the gradient's variance.
        strata = (torch.arange(args.batch_size) + torch.rand(args.batch_size, generator=generator)) / args.batch_size
        noisy, timesteps, target = objective(clean, noise, strata)
        labels = None
        if args.conditional:
            assert data.labels is not None
            dropped = torch.rand(args.batch_size, generator=generator) < DROPPED
            labels = data.labels[chosen].masked_fill(dropped, data.num_classes)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = network(noisy, timesteps, class_labels=labels).sample
        loss = F.mse_loss(predicted.float(), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        warm_cosine.step()
        average.step(network.parameters())
        recent = loss.item() if step == 0 else 0.99 * recent + 0.01 * loss.item()
        progress.set_postfix(loss=f"{recent:.4f}")
        if (step + 1) % max(1, args.steps // CURVE_POINTS) == 0:
            curve.append(round(recent, 4))
    average.copy_to(network.parameters())
    return curve


def command(args: Args) -> str:
    """The command line, without folders of this machine."""
    typed = [Path(word).name if "/" in word else word for word in sys.argv[1:] if word != "--measure-only"]
    return shlex.join(["python", "-m", "experiments.train_teacher", *typed])


def measure(args: Args, data: ImageSet) -> str:
    """Frechet distance of 100-step samples to the data, and between random halves of the data (mean of 10 splits)."""
    teacher = Teacher.from_pretrained(args.out, null_label=data.num_classes if args.conditional else None)
    name = evaluation_features(teacher.sample_shape)
    network = load_features(name, teacher.sample_shape)
    generator = torch.Generator().manual_seed(args.seed)
    count = min(len(data), 2 * MEASURED)
    chosen = torch.arange(len(data)) if count == len(data) else torch.randperm(len(data), generator=generator)[:count]
    features = embed(network, data.images[chosen])
    halves = []
    for _ in range(10):
        order = torch.randperm(count, generator=generator)
        halves.append(frechet_distance(features[order[::2]], features[order[1::2]]))
    size = min(count, MEASURED)
    noise = torch.randn(size, *teacher.sample_shape, generator=generator)
    condition = teacher.conditions.draw(size, generator)
    with tqdm(total=size, desc="samples") as bar:
        ends = teacher.endpoint(noise, 100, condition, progress=bar.update)
    distance, floor = frechet_distance(embed(network, ends), features), sum(halves) / len(halves)
    return (
        f"Frechet distance (features {name}) of {size} 100-step samples to {count} images of the data {distance:.2f}; "
        f"between two random halves of those {floor:.2f}; ratio {distance / floor:.2f}."
    )


def write_note(args: Args, data: ImageSet) -> None:
    facts = json.loads((args.out / FACTS).read_text(encoding="utf-8"))
    (args.out / "README.md").write_text(
        f"Made by `{facts['command']}`: {facts['parameters']:,} parameters, {facts['steps']} steps of "
        f"{facts['batch_size']} images, seed {facts['seed']}, {facts['seconds']} s on CPU.\n\n"
        f"Loss at every {facts['steps'] // CURVE_POINTS} steps: {', '.join(map(str, facts['curve']))}.\n\n"
        f"{measure(args, data)}\n",
        encoding="utf-8",
    )
    print((args.out / "README.md").read_text(encoding="utf-8"))


def main(args: Args) -> None:
    torch.manual_seed(args.seed)
    data = load_images(args.data, size=args.size)
    if args.conditional and data.labels is None:
        raise ValueError(f"conditional needs labels, and data={args.data!r} has none: put the images in subfolders")
    if not args.measure_only:
        network = build_network(args, data)
        objective, scheduler = objective_of(args.kind)
        start = time.monotonic()
        curve = train(args, network, objective, data)
        facts = {
            "command": command(args),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "steps": args.steps,
            "batch_size": args.batch_size,
            "seed": args.seed,
            "seconds": round(time.monotonic() - start),
            "curve": curve,
        }
        with write_folder(args.out) as folder:
            DDPMPipeline(network.half(), scheduler).save_pretrained(folder, safe_serialization=True)
            (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    write_note(args, data)


if __name__ == "__main__":
    main(tyro.cli(Args))
