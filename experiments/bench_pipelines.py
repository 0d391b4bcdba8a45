"""What driving a pipeline costs, compared with the pipeline's own loop in the same run.

    python -m experiments.bench_pipelines                                                  # digits, on one CPU thread
    python -m experiments.bench_pipelines --network sdxl --device auto --dtype bfloat16    # 2.6 B parameters, guided

The digits are a stock ``DDPMPipeline``; the networks of ``experiments.bench_training`` have random weights and stand in
a stock ``StableDiffusionPipeline`` with a prompt for each sample. Times are differences between runs of many and of few
steps, so that what a call does before and after its loop does not count: processor time on the CPU, elapsed time on an
accelerator. Peak memory is what a run needs above the loaded pipeline.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import tyro

from experiments.bench_training import SIZES, TOKENS, Peak, network_of
from experiments.placement import wait_for
from redif_env import Teacher
from redif_env.diffusion.grids import TimeGrid
from redif_env.diffusion.solvers import DDIM, sample
from redif_env.mdp.settings import look_up, parse_device
from redif_env.storage.files import ASSETS


@dataclass(frozen=True)
class Args:
    """Settings."""

    network: str = "digits"
    """"digits", or a size of `experiments.bench_training`: "small", "sd15" (860 M parameters), "sdxl" (2.6 B)."""
    batch_size: int = 8
    """Samples of one call, each with a prompt of its own."""
    few: int = 5
    many: int = 45
    rounds: int = 10
    """Runs of each, of which the fastest counts: other programs only ever add to it."""
    device: str = "cpu"
    dtype: str = "float32"


@torch.no_grad()
def main(args: Args) -> tuple[float, float]:
    """Print milliseconds a step of both, and peak memory; returns the driven over the stock ones."""
    torch.set_num_threads(1)
    device = parse_device(args.device)
    pipe, conditions, arguments = stock_pipeline(args, device, getattr(torch, args.dtype))
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    teacher = Teacher.from_pipeline(pipe, conditions, run_size=args.batch_size, **arguments)
    noise = torch.randn(args.batch_size, *teacher.sample_shape).to(device)
    if conditions is None:
        rows, together = None, {"batch_size": args.batch_size, "output_type": "pt"}
    else:
        rows = torch.arange(args.batch_size)
        together = {name: torch.cat([row[name] for row in conditions]) for name in conditions[0]}
        together["output_type"] = "latent"

    def stock(steps: int) -> None:
        pipe(num_inference_steps=steps, **together, **arguments)

    def driven(steps: int) -> None:
        sample(teacher, DDIM(), TimeGrid(), noise, steps, rows)

    (slow, large), (fast, small) = (measured(run, args, device) for run in (driven, stock))
    teacher.close()
    print(
        f"stock loop {fast:.2f} ms a step, {small:,.0f} MiB; driven {slow:.2f} ms a prediction with its solver's step, "
        f"{large:,.0f} MiB: {slow - fast:+.2f} ms, {fast / slow:.3f} of the stock loop's predictions a second"
    )
    return slow / fast, large / max(small, 1)


def stock_pipeline(args: Args, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any, dict[str, Any]]:
    """A pipeline, its conditions, and the arguments that they share."""
    if args.network == "digits":
        pipe = diffusers.DDPMPipeline.from_pretrained(ASSETS / "digits", low_cpu_mem_usage=False)
        return pipe.to(device, dtype), None, {}
    look_up("network", args.network, SIZES)
    network = network_of(args.network, device, dtype).eval()
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )
    none = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = diffusers.StableDiffusionPipeline(unet=network, scheduler=scheduler, requires_safety_checker=False, **none)
    shape = (args.batch_size, 2, 1, TOKENS, network.config.cross_attention_dim)
    conditions = [
        {"prompt_embeds": prompt, "negative_prompt_embeds": null}
        for prompt, null in torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    ]
    return pipe, conditions, {"guidance_scale": 5.0}


def measured(run: Callable[[int], None], args: Args, device: torch.device) -> tuple[float, float]:
    """Milliseconds a step, and peak memory in MiB."""
    run(args.few)
    peak = Peak(device)
    run(args.few)
    wait_for(device)
    mib = peak.mib()
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    least = []
    for steps in (args.few, args.many):
        spent = []
        for _ in range(args.rounds):
            wait_for(device)
            began = clock()
            run(steps)
            wait_for(device)
            spent.append(clock() - began)
        least.append(min(spent))
    return 1000 * (least[1] - least[0]) / (args.many - args.few), mib


if __name__ == "__main__":
    main(tyro.cli(Args))
