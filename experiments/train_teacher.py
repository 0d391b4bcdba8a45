"""Train a small teacher: a UNet on real images, of four kinds of prediction. The built-in ones are made so.

    python -m experiments.train_teacher                                                       # digits
    python -m experiments.train_teacher --data mnist.npz --kind flow --conditional --channels 16 32 64 \
        --batch-size 128 --out redif_env/assets/mnist                                         # mnist
    python -m experiments.train_teacher --data cifar-10-binary.tar.gz --kind edm --conditional --flips \
        --channels 64 128 192 --layers-per-block 2 --attention 1 --batch-size 512 --learning-rate 1e-3 \
        --ema-decay 0.9995 --seconds 310 --device auto --compile --out runs/cifar10           # CIFAR-10, on a GPU
    python -m experiments.train_teacher ... --out runs/cifar10 --resume                       # after an interruption

Saves a diffusers pipeline folder with half-precision weights of the moving average, training.json with the curve, and
a note of its quality. Checkpoints lie beside it until it is finished.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UNet2DModel,
)
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from redif_env.diffusion.predictions import EDMPreconditioning
from redif_env.diffusion.types import Level, Prediction, PredictionType
from redif_env.mdp.settings import parse_device
from redif_env.measures.features import embed, evaluation_features, load_features
from redif_env.measures.metrics import frechet_distance
from redif_env.storage.checkpoints import add_state, newest_state
from redif_env.storage.data import ImageSet, load_images
from redif_env.storage.files import ASSETS, write_folder
from redif_env.teachers.teacher import Teacher

FACTS = "training.json"
CURVE_POINTS = 20
DROPPED = 0.1
"""Share of labels that are replaced by the null label, so that the network can be guided (Ho and Salimans 2022)."""
MEASURED = 2000
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2
"""Of the noise levels of EDM training (Karras et al. 2022, Table 1)."""


class Kind(StrEnum):
    """Schedule and prediction type."""

    EPSILON = "epsilon"
    """Linear variance-preserving schedule, noise prediction (Ho et al. 2020, Eq. 14)."""
    V = "v"
    """Cosine schedule, velocity prediction (Salimans and Ho 2022)."""
    FLOW = "flow"
    """Straight paths, flow prediction (Liu et al. 2022, Lipman et al. 2023)."""
    EDM = "edm"
    """Variance-exploding schedule, preconditioned network (Karras et al. 2022)."""


@dataclass(frozen=True)
class Args:
    """Settings of the training."""

    data: str = "digits"
    """Images: whatever redif_env.storage.data.load_images reads."""
    size: int | None = None
    """Side in pixels to resize images of a folder or the hub to."""
    kind: Annotated[Kind, tyro.conf.EnumChoicesFromValues] = Kind.EPSILON
    conditional: bool = False
    """Train with labels; one more, the last, stands for none."""
    flips: bool = False
    """Mirror half of the images."""
    channels: tuple[int, ...] = (32, 64)
    """Of each resolution, the finest first."""
    layers_per_block: int = 1
    attention: tuple[int, ...] = ()
    """Resolutions with attention, 0 the finest; the middle block has it always."""
    out: Path = ASSETS / "digits"
    seed: int = 0
    steps: int = 6000
    seconds: float | None = None
    """Time budget in the place of steps; the learning rate follows the share of it that has passed."""
    batch_size: int = 256
    learning_rate: float = 2e-3
    ema_decay: float = 0.999
    device: str = "cpu"
    compile: bool = False
    """Compile the network first (some minutes, not counted in seconds)."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints."""
    resume: bool = False
    """Go on from the newest checkpoint of out."""
    measure_only: bool = False
    """Measure the teacher in out again, and write its note anew."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "layers_per_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds}")


Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Clean images, noise and times in [0, 1) to the network's inputs, timesteps and targets."""


def build_network(args: Args, data: ImageSet) -> UNet2DModel:
    """Residual blocks at each resolution, attention in the middle and where it is named."""
    levels = range(len(args.channels))
    down = tuple("AttnDownBlock2D" if level in args.attention else "DownBlock2D" for level in levels)
    up = tuple("AttnUpBlock2D" if level in args.attention else "UpBlock2D" for level in reversed(levels))
    return UNet2DModel(
        sample_size=data.images.shape[-1],
        in_channels=data.images.shape[1],
        out_channels=data.images.shape[1],
        block_out_channels=args.channels,
        layers_per_block=args.layers_per_block,
        norm_num_groups=32 if min(args.channels) >= 64 else 8,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=32 if args.attention else 16,
        num_class_embeds=data.num_classes + 1 if args.conditional else None,
    )


def objective_of(kind: Kind) -> tuple[Objective, SchedulerMixin]:
    """What a network is trained to predict, and the scheduler whose config says so to whoever loads it."""
    if kind is Kind.FLOW:
        flow = FlowMatchEulerDiscreteScheduler()

        def straight(clean: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            sigma = times.reshape(-1, 1, 1, 1)
            return torch.lerp(clean, noise, sigma), times * flow.config.num_train_timesteps, noise - clean

        return straight, flow
    if kind is Kind.EDM:
        return preconditioned, EDMEulerScheduler()
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


def preconditioned(clean: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """EDM: lognormal noise levels (``times`` are their quantiles), inputs and targets of unit variance.

    The loss weights of Karras et al. 2022, Eq. 8, are those under which the plain squared error of the network's own
    output is minimised.
    """
    quantiles = times.clamp(1e-6, 1 - 1e-6)
    log_sigma = LOG_SIGMA_MEAN + LOG_SIGMA_STD * torch.special.ndtri(quantiles)
    level = Level(torch.ones_like(log_sigma), log_sigma.exp())
    edm = EDMPreconditioning()
    x = clean + level.sigma.reshape(-1, 1, 1, 1) * noise
    target = edm.write(Prediction(clean, noise), level, PredictionType.EPSILON)
    return edm.inputs(x, level), log_sigma / 4, target


def rate_factor(kind: Kind, done: float, step: int) -> float:
    """The learning rate at a share ``done`` of the training, as a fraction of the largest."""
    if kind is Kind.EDM:
        return min(1.0, (step + 1) / 300, (1 - done) / 0.6)
    cosine = math.cos(math.pi * max(0.0, (done - 0.05) / 0.95))
    return min(1.0, 0.04 + done / 0.05) * (1 + cosine) / 2


@dataclass
class Training:
    """A training under way: all that a checkpoint holds."""

    args: Args
    network: UNet2DModel
    objective: Objective
    data: ImageSet
    step: int = 0
    seconds: float = 0.0
    recent: float | None = None
    curve: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        args = self.args
        self.device = next(self.network.parameters()).device
        self.generator = torch.Generator().manual_seed(args.seed)
        edm = args.kind is Kind.EDM
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=args.learning_rate,
            betas=(0.9, 0.99) if edm else (0.9, 0.999),
            weight_decay=0.01 if edm else 1e-4,
        )
        self.average = EMAModel(self.network.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=0.75)

    @property
    def done(self) -> float:
        """Share of the steps, or of the seconds, that has passed."""
        budget = self.args.seconds
        return self.step / self.args.steps if budget is None else min(1.0, self.seconds / budget)

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Inputs, timesteps, targets and labels of the next minibatch, all drawn on the host."""
        size, generator = self.args.batch_size, self.generator
        chosen = torch.randint(len(self.data), (size,), generator=generator)
        clean = self.data.images[chosen]
        if self.args.flips:
            mirrored = torch.rand(size, generator=generator) < 0.5
            clean = torch.where(mirrored.reshape(-1, 1, 1, 1), clean.flip(-1), clean)
        noise = torch.randn(clean.shape, generator=generator)
        # Stratified times: every batch covers the whole schedule, which halves the gradient's variance.
        strata = (torch.arange(size) + torch.rand(size, generator=generator)) / size
        labels = None
        if self.args.conditional:
            assert self.data.labels is not None
            dropped = torch.rand(size, generator=generator) < DROPPED
            labels = self.data.labels[chosen].masked_fill(dropped, self.data.num_classes).to(self.device)
        inputs, timesteps, target = self.objective(clean, noise, strata)
        inputs = inputs.to(self.device, memory_format=torch.channels_last)
        return inputs, timesteps.to(self.device), target.to(self.device), labels

    def advance(self, network: Callable[..., Any]) -> Tensor:
        """One step of the optimizer; ``network`` is the network, compiled or not. Returns the loss."""
        inputs, timesteps, target, labels = self.batch()
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.learning_rate * rate_factor(self.args.kind, self.done, self.step)
        # Where a processor has no instructions for it, bfloat16 takes ten times as long as float32.
        fast = self.device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=fast):
            predicted = network(inputs, timesteps, class_labels=labels).sample
        loss = F.mse_loss(predicted.float(), target)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.average.step(self.network.parameters())
        self.step += 1
        return loss.detach()

    def run(self, network: Callable[..., Any], folder: Path | None) -> list[float]:
        """Train to the end, with checkpoints in ``folder``; leaves the moving average in the network.

        Returns:
            The loss curve: a moving average at ``CURVE_POINTS`` places.
        """
        bar = tqdm(total=100, desc="teacher", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")
        before = time.monotonic() - self.seconds
        while self.done < 1:
            loss = self.advance(network)
            self.seconds = time.monotonic() - before
            if self.step % 10 == 1:  # to read it waits for the device
                weight = 1.0 if self.recent is None else 0.1
                self.recent = (1 - weight) * (self.recent or 0.0) + weight * loss.item()
                bar.set_postfix(step=self.step, loss=f"{self.recent:.4f}")
            bar.update(int(100 * self.done) - bar.n)
            if len(self.curve) < int(CURVE_POINTS * self.done):
                self.curve.append(round(self.recent or 0.0, 4))
            if folder is not None and self.step % self.args.checkpoint_every == 0:
                add_state(folder, self.step, self.state_dict(), keep=1)
        self.average.copy_to(self.network.parameters())
        return self.curve

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values."""
        plain = {name: getattr(self, name) for name in ("step", "seconds", "recent", "curve")}
        average = {"shadow": self.average.shadow_params, "step": self.average.optimization_step}
        return {
            **plain,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": average,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        for name in ("step", "seconds", "recent", "curve"):
            setattr(self, name, state[name])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.shadow_params = [part.to(self.device) for part in state["average"]["shadow"]]
        self.average.optimization_step = state["average"]["step"]
        self.generator.set_state(state["generator"])


def command(args: Args) -> str:
    """What was typed, without where things lie on this machine."""
    left_out = ("--measure-only", "--resume")
    typed = [Path(word).name if "/" in word else word for word in sys.argv[1:] if word not in left_out]
    return shlex.join(["python", "-m", "experiments.train_teacher", *typed])


def measure(args: Args, data: ImageSet) -> str:
    """Frechet distance of 100-step samples to the data, and between random halves of the data (mean of 10 splits)."""
    teacher = Teacher.from_pretrained(args.out, null_label=data.num_classes if args.conditional else None)
    teacher.to(parse_device(args.device))
    name = evaluation_features(teacher.sample_shape)
    network = load_features(name, teacher.sample_shape).to(teacher.device)
    generator = torch.Generator().manual_seed(args.seed)
    count = min(len(data), 2 * MEASURED)
    chosen = torch.arange(len(data)) if count == len(data) else torch.randperm(len(data), generator=generator)[:count]
    features = embed(network, data.images[chosen].to(teacher.device))
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
    """README.md beside the weights: command, size, curve, quality."""
    facts = json.loads((args.out / FACTS).read_text(encoding="utf-8"))
    note = (
        f"Made by `{facts['command']}`: {facts['parameters']:,} parameters, {facts['steps']} steps of "
        f"{facts['batch_size']} images, seed {facts['seed']}, {facts['seconds']} s on {facts['device']}.\n\n"
        f"Loss at every 20th of the training: {', '.join(map(str, facts['curve']))}.\n\n"
        f"{measure(args, data)}\n"
    )
    (args.out / "README.md").write_text(note, encoding="utf-8")
    print(note)


def make(args: Args, data: ImageSet) -> None:
    """Train, and save the pipeline in ``args.out``."""
    device = parse_device(args.device)
    checkpoints = args.out.with_name(f"{args.out.name}-checkpoints")
    network = build_network(args, data).to(device, memory_format=torch.channels_last)
    objective, scheduler = objective_of(args.kind)
    training = Training(args, network, objective, data)
    stored = newest_state(checkpoints) if args.resume else None
    if stored is not None:
        training.load_state_dict(stored)
    called = torch.compile(network) if args.compile else network
    if args.compile:
        training.advance(called)  # compiles, before the clock starts
    curve = training.run(called, checkpoints)
    facts = {
        "command": command(args),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "steps": training.step,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "seconds": round(training.seconds),
        "device": device.type,
        "curve": curve,
    }
    with write_folder(args.out) as folder:
        plain = network.cpu().half().to(memory_format=torch.contiguous_format)
        DDPMPipeline(plain, scheduler).save_pretrained(folder, safe_serialization=True)
        (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(checkpoints, ignore_errors=True)


def main(args: Args) -> None:
    torch.manual_seed(args.seed)
    data = load_images(args.data, size=args.size)
    if args.conditional and data.labels is None:
        raise ValueError(f"conditional needs labels, and data={args.data!r} has none: put the images in subfolders")
    if not args.measure_only:
        make(args, data)
    write_note(args, data)


if __name__ == "__main__":
    main(tyro.cli(Args))
