"""What driving a pipeline costs: processor time a prediction over an iteration of the stock loop, in one run.

    python -m experiments.bench_pipelines

The digits as a stock ``DDPMPipeline``. A figure is the difference between runs of many and of few steps, so that what
a call does before and after its loop counts for neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import diffusers
import torch

from redif_env import Teacher
from redif_env.diffusion.grids import TimeGrid
from redif_env.diffusion.solvers import DDIM, trajectory
from redif_env.storage.files import ASSETS

FEW, MANY, TIMES, BATCH = 5, 45, 10, 8


def milliseconds(run: Callable[[int], object]) -> float:
    """Of one step: the least of several runs, since other programs only ever add to it."""

    def least(num_steps: int) -> float:
        spent = []
        for _ in range(TIMES):
            began = time.process_time()
            run(num_steps)
            spent.append(time.process_time() - began)
        return min(spent)

    return 1000 * (least(MANY) - least(FEW)) / (MANY - FEW)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    pipe = diffusers.DDPMPipeline.from_pretrained(ASSETS / "digits", low_cpu_mem_usage=False)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    teacher = Teacher.from_pipeline(pipe, run_size=BATCH)
    noise = torch.randn(BATCH, *teacher.sample_shape)
    stock = milliseconds(lambda steps: pipe(batch_size=BATCH, num_inference_steps=steps, output_type="pt"))
    driven = milliseconds(lambda steps: list(trajectory(teacher, DDIM(), TimeGrid(), noise, steps)))
    teacher.close()
    print(f"stock loop {stock:.2f} ms a step, driven {driven:.2f} ms a prediction with its solver's step: "
          f"{driven - stock:+.2f} ms, ratio {driven / stock:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
