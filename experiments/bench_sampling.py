"""How fast a student samples as a diffusers pipeline, beside the stock pipeline with UniPC: ratios from one run.

python -m experiments.bench_sampling --student runs/digits-4/student
python -m experiments.bench_sampling --student runs/digits-4/student --cifar-sized --batches 1 8 --rounds 5
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from diffusers import DDPMPipeline, UNet2DModel, UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils import logging
from rich.console import Console
from rich.table import Table
from torch import Tensor

from redif_env.diffusion.noise_schedulers import scheduler_config
from redif_env.mdp.settings import parse_device
from redif_env.students.export import ReDiFPipeline
from redif_env.students.student import Student
from redif_env.training.command import run


@dataclass(frozen=True)
class Args:
    student: Path = Path("runs/digits-4/student")
    batches: tuple[int, ...] = (1, 16, 128)
    more_calls: int = 2
    """Calls that the solver has besides, where it is as good as the student (``experiments.nfe_curve`` says where)."""
    rounds: int = 15
    cifar_sized: bool = False
    """Time the student's policy around a network of the size of google/ddpm-cifar10-32 instead, with random weights."""
    device: str = "cpu"


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """How long ``action`` takes."""
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class UniPC(UniPCMultistepScheduler):
    """diffusers' UniPC, which unlike other schedulers does not take the generator that ``DDPMPipeline`` passes."""

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        return super().step(model_output, timestep, sample, return_dict)


def stock_pipeline(pipeline: ReDiFPipeline) -> DDPMPipeline:
    """diffusers' own pipeline of the same network, with UniPC of order 2, its default."""
    teacher = pipeline.mdp.teacher
    settings = scheduler_config(teacher.parameterization)
    del settings["_class_name"]
    stock = DDPMPipeline(pipeline.unet, UniPC(**settings))
    stock.set_progress_bar_config(disable=True)
    return stock


def contenders(args: Args, pipeline: ReDiFPipeline, batch: int) -> dict[str, Callable[[], object]]:
    """Every way to ``batch`` images, by name; the last two are the stock pipeline's."""
    nfe, stock = pipeline.mdp.num_steps, stock_pipeline(pipeline)
    fixed = DDPMPipeline(pipeline.unet, pipeline.scheduler)
    fixed.set_progress_bar_config(disable=True)
    program = Student(pipeline.mdp, pipeline.actor).trace(batch).module()
    shape = (batch, *pipeline.mdp.teacher.sample_shape)

    @torch.inference_mode()
    def traced() -> object:
        return (program(torch.randn(shape, device=args.device)) / 2 + 0.5).permute(0, 2, 3, 1).cpu().numpy()

    return {
        "ReDiFPipeline": lambda: pipeline(batch, output_type="np"),
        "traced program": traced,
        "ReDiFScheduler, mean steps": lambda: fixed(batch, num_inference_steps=nfe, output_type="np"),
        f"UniPC, {nfe} NFE": lambda: stock(batch, num_inference_steps=nfe, output_type="np"),
        f"UniPC, {nfe + args.more_calls} NFE": lambda: stock(
            batch, num_inference_steps=nfe + args.more_calls, output_type="np"
        ),
    }


def timed(actions: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each in every round; they take turns, so that a machine whose speed drifts is fair to all."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            took = seconds(action, device)
            if number:  # the first round warms up
                found[name].append(took)
    return found


def cifar_sized() -> UNet2DModel:
    """An untrained network of 35.7 million parameters for 32x32 images, as that of Ho et al. (2020)."""
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
    )


def main(args: Args) -> None:
    logging.disable_progress_bar()
    device = parse_device(args.device)
    pipeline = ReDiFPipeline.from_pretrained(args.student)
    if args.cifar_sized:
        pipeline = ReDiFPipeline(cifar_sized().eval(), pipeline.scheduler, pipeline.policy)
    pipeline.to(device).set_progress_bar_config(disable=True)
    count = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    nfe, name = pipeline.mdp.num_steps, f"network of {count / 1e6:.2f} million parameters"
    for batch in args.batches:
        found = timed(contenders(args, pipeline, batch), args.rounds, device)
        *ours, same, more = found
        table = Table(f"batch {batch}", title=f"{name}, {nfe} NFE, {args.device}, {args.rounds} rounds")
        for column in ("images a second", f"over {same}", f"over {more}"):
            table.add_column(column, justify="right")
        for contender in ours:
            cells = [f"{batch / median(found[contender]):.3g}"]
            for rival in (same, more):
                ratios = [theirs / mine for theirs, mine in zip(found[rival], found[contender], strict=True)]
                cells.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
            table.add_row(contender, *cells)
        Console(width=110).print(table)


if __name__ == "__main__":
    run(main, Args)
