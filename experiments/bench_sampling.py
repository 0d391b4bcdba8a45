"""How fast a student samples as a diffusers pipeline, beside the stock pipeline with UniPC: ratios from one run.

python -m experiments.bench_sampling --student runs/digits-4/student
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from diffusers import DDPMPipeline, UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils import logging
from rich.console import Console
from rich.table import Table
from torch import Tensor

from agents.command import run
from redif_env.export import ReDiFPipeline
from redif_env.pipelines import scheduler_settings
from redif_env.settings import parse_device


@dataclass(frozen=True)
class Args:
    student: Path = Path("runs/digits-4/student")
    batches: tuple[int, ...] = (1, 16, 128)
    more_calls: int = 2
    """Calls that the solver has besides, where it is as good as the student (``experiments.nfe_curve`` says where)."""
    rounds: int = 15
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
    settings = scheduler_settings(teacher.schedule, teacher.prediction_type)
    stock = DDPMPipeline(pipeline.unet, UniPC(**settings))
    stock.set_progress_bar_config(disable=True)
    return stock


def ratios(args: Args, pipeline: ReDiFPipeline, batch: int, calls: int) -> tuple[list[float], list[float]]:
    """Student's images a second, and their ratio to the stock pipeline's with ``calls`` calls, a round each.

    The two take turns, so that a machine whose speed drifts is fair to both.
    """
    device, stock = parse_device(args.device), stock_pipeline(pipeline)
    speeds, found = [], []
    for number in range(args.rounds + 1):
        ours = seconds(lambda: pipeline(batch, output_type="np"), device)
        theirs = seconds(lambda: stock(batch, num_inference_steps=calls, output_type="np"), device)
        if number:  # the first round warms up
            speeds.append(batch / ours)
            found.append(theirs / ours)
    return speeds, found


def main(args: Args) -> None:
    logging.disable_progress_bar()
    pipeline = ReDiFPipeline.from_pretrained(args.student).to(parse_device(args.device))
    pipeline.set_progress_bar_config(disable=True)
    nfe = pipeline.mdp.num_steps
    table = Table("batch", title=f"{pipeline.mdp.teacher.name}, {nfe} NFE, {args.device}, {args.rounds} rounds")
    table.add_column("student, images a second", justify="right")
    for calls in (nfe, nfe + args.more_calls):
        table.add_column(f"over UniPC with {calls} NFE", justify="right")
    for batch in args.batches:
        cells = []
        for calls in (nfe, nfe + args.more_calls):
            speeds, found = ratios(args, pipeline, batch, calls)
            cells.append(f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})")
        table.add_row(str(batch), f"{median(speeds):.0f}", *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    run(main, Args)
