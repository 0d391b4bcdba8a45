"""What training costs beside sampling: peak memory and predictions a second of both, and of the gradient's way.

    python -m experiments.bench_training                                                    # a small network, on a CPU
    python -m experiments.bench_training --network sd15 sdxl --batch-sizes 1 2 8 16 --device auto --dtype bfloat16

Three programs on the same guided network of random weights, each in a process of its own so that its peak is its own:
sampling; a rollout of the vector environment with an update of PPO; and one update by the gradient through the sampler,
which keeps what the network computes at every step. Random weights cost what trained ones cost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
import tyro
from diffusers import UNet2DConditionModel
from torch import nn

from experiments.placement import wait_for
from experiments.tables import print_table
from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.schedules import VariancePreservingSchedule
from redif_env.diffusion.solvers import SOLVERS, sample
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.sampling import trajectory
from redif_env.mdp.settings import parse_device
from redif_env.storage.files import write_json
from redif_env.teachers.conditions import Conditions
from redif_env.teachers.networks import call_by_name
from redif_env.teachers.teacher import Teacher

TOKENS = 77
SIZES: dict[str, dict[str, Any]] = {
    "small": {"block_out_channels": (32, 64, 128, 128), "sample_size": 32, "cross_attention_dim": 64},
    # Stable Diffusion 1.5: 860 M parameters at 512 pixels.
    "sd15": {"block_out_channels": (320, 640, 1280, 1280), "sample_size": 64, "cross_attention_dim": 768},
    # The UNet of SDXL without its added conditions: 2.6 B parameters at 1,024 pixels.
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
    },
}
"""Configs of a ``UNet2DConditionModel``, by name."""


@dataclass(frozen=True)
class Args:
    """Settings."""

    network: tuple[str, ...] = ("small",)
    """Sizes: "small", "sd15" (860 M parameters), "sdxl" (2.6 B)."""
    batch_sizes: tuple[int, ...] = (1, 2, 8)
    """Samples, or environments, that are made together."""
    num_steps: int = 4
    rounds: int = 3
    """Timed repetitions after one that warms up."""
    device: str = "cpu"
    dtype: str = "float32"
    out: Path = Path("results/bench-training.json")


def main(args: Args) -> None:
    for name in args.network:
        if name not in SIZES:
            raise ValueError(f"network={name!r} is unknown: choose among {', '.join(SIZES)}")
    rows = []
    for name, batch_size, program in product(args.network, args.batch_sizes, PROGRAMS):
        # A fresh process: what another program has left in memory is no part of this one's peak.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows.append(pool.submit(measured, args, name, batch_size, program).result())
        write_json(args.out, rows)
    print_rows(args, rows)


def measured(args: Args, name: str, batch_size: int, program: str) -> dict[str, Any]:
    """Peak memory in MiB above the loaded teacher, and predictions a second; what stopped it, if something did."""
    row: dict[str, Any] = {"network": name, "batch": batch_size, "program": program}
    with TemporaryDirectory() as cache:
        os.environ["REDIF_CACHE"] = cache
        teacher = teacher_of(name, parse_device(args.device), getattr(torch, args.dtype))
        row["parameters"] = sum(parameter.numel() for parameter in teacher.network.parameters())
        try:
            step = PROGRAMS[program](args, teacher, batch_size)
            peak = Peak(teacher.device)
            step()
            wait_for(teacher.device)
            start = time.perf_counter()
            for _ in range(args.rounds):
                step()
            wait_for(teacher.device)
            seconds = time.perf_counter() - start
        except RuntimeError as error:  # a device without memory left
            return {**row, "error": str(error).splitlines()[0]}
        predictions = args.rounds * args.num_steps * batch_size
        return {**row, "peak_mib": peak.mib(), "predictions_per_second": predictions / seconds}


def network_of(name: str, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """A network of random weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = UNet2DConditionModel(in_channels=4, out_channels=4, **SIZES[name])
    network = network.to_empty(device=device)
    for parameter in network.parameters():
        parameter.data = nn.init.normal_(parameter.data.to(dtype), std=0.02)
    return network


def teacher_of(name: str, device: torch.device, dtype: torch.dtype) -> Teacher:
    """A guided network of random weights, of one prompt."""
    network = network_of(name, device, dtype)
    width = network.config.cross_attention_dim
    prompt, null = torch.randn(2, 1, TOKENS, width).unbind()
    conditions = Conditions(("a prompt",), {"encoder_hidden_states": prompt}, {"encoder_hidden_states": null})
    shape = (4, network.config.sample_size, network.config.sample_size)
    schedule = VariancePreservingSchedule.from_diffusers()
    return Teacher(
        network, schedule, shape, name=name, conditions=conditions, guidance_scale=5.0, call=call_by_name
    ).to(device)


def sampling(args: Args, teacher: Teacher, batch_size: int) -> Callable[[], object]:
    """The base solver from noise to samples."""
    solver, grid = SOLVERS["dpm++2m"], GRIDS["time"]
    noise = torch.randn(batch_size, *teacher.sample_shape).to(teacher.device)

    @torch.inference_mode()
    def step() -> object:
        return sample(teacher, solver, grid, noise, args.num_steps)

    return step


def reinforcement(args: Args, teacher: Teacher, batch_size: int) -> Callable[[], object]:
    """A rollout of whole episodes and an update of PPO."""
    from stable_baselines3 import PPO

    from redif_env.sb3 import make_vec_env

    task = {"teacher": teacher, "num_steps": args.num_steps, "grid": "time", "device": str(teacher.device)}
    env = make_vec_env(batch_size, reference_size=2 * batch_size, teacher_steps=args.num_steps, **task)
    size = args.num_steps * batch_size
    agent = PPO("MlpPolicy", env, n_steps=args.num_steps, batch_size=size, device="cpu")
    return lambda: agent.learn(size, reset_num_timesteps=False)


def gradient(args: Args, teacher: Teacher, batch_size: int) -> Callable[[], object]:
    """One update of the same policy by the gradient of the endpoint's distance through all steps."""
    from redif_env.envs.environments import ReDiFVectorEnv

    task = {"teacher": teacher, "num_steps": args.num_steps, "grid": "time", "device": str(teacher.device)}
    env = ReDiFVectorEnv(batch_size, reference_size=2 * batch_size, teacher_steps=args.num_steps, **task)
    mdp, reference = env.mdp, env.reference
    policy = Policy(PolicyConfig((mdp.observation_size, 64, 64, mdp.action_size))).to(teacher.device)
    optimizer = torch.optim.Adam(policy.parameters())

    def step() -> object:
        noise, endpoints = reference.noise[:batch_size], reference.endpoints[:batch_size]
        *_, last = trajectory(mdp, policy, noise, mdp.constant_price(batch_size), reference.condition[:batch_size])
        loss = (last.x - endpoints).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


PROGRAMS: dict[str, Callable[[Args, Teacher, int], Callable[[], object]]] = {
    "sampling": sampling,
    "PPO": reinforcement,
    "gradient": gradient,
}


class Peak:
    """Memory used above what was in use when it was made: of an accelerator, or of this process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(device)
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # Linux: the peak starts anew
        self.before = self._now()

    def mib(self) -> float:
        """MiB."""
        return (self._now() - self.before) / 2**20

    def _now(self) -> int:
        if self.device.type != "cpu":
            return int(torch.accelerator.max_memory_allocated(self.device))
        process = psutil.Process().memory_info()
        return int(getattr(process, "peak_wset", 0) or peak_resident())


def peak_resident() -> int:
    """The largest resident size of this process so far, in bytes; where the system does not tell, the present one."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(psutil.Process().memory_info().rss)


def print_rows(args: Args, rows: list[dict[str, Any]]) -> None:
    """A line a network, batch and program; times are ratios to sampling with the same batch, made in the same run."""
    lines, base = [], 0.0
    for row in rows:
        head = [row["network"], f"{row['parameters']:,}", str(row["batch"]), row["program"]]
        if "error" in row:
            lines.append([*head, row["error"], "", ""])
            continue
        speed = row["predictions_per_second"]
        base = speed if row["program"] == "sampling" else base
        lines.append([*head, f"{row['peak_mib']:,.0f}", f"{speed:,.1f}", f"{speed / base:.2f}"])
    columns = ("network", "parameters", "batch", "program", "peak, MiB", "predictions a second", "of sampling's")
    print_table(f"{args.num_steps} guided steps on {args.device}", columns, lines)


if __name__ == "__main__":
    main(tyro.cli(Args))
