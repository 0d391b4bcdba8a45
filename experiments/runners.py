"""What more runners gain: measured on this machine with RLlib, and projected for GPUs by a simulation.

    python -m experiments.runners
    python -m experiments.runners --rounds 8     # measures too; in the environment of make test-ray

The simulation knows nothing but what :class:`Machine` and ``TEACHERS`` say.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from experiments.tables import print_table, spread
from redif_env.training.command import run

TEACHERS = {"digits": 3e-4, "latent U-Net of 0.9 B, guided": 1.6, "of 2.6 B, guided": 12.0, "transformer of 12 B": 60.0}
"""TFLOP of one sample's network call: about 2 a parameter and position, twice if guided (512 and 1,024 pixels)."""


@dataclass(frozen=True)
class Machine:
    """What the simulation assumes; seconds unless said."""

    episodes: int = 512
    """Of a rollout, over all runners."""
    num_steps: int = 4
    tflops: float = 300.0
    """That a runner's GPU does a second on such networks, at any batch: less than half of an H100's peak."""
    launch: float = 0.02
    """Of each network call, whatever its batch: starting the kernels."""
    host: float = 1e-4
    """Of the environment's own work, a sample and step."""
    jitter: float = 0.1
    """Relative deviation of each step's time, lognormal and independent; a rollout waits for the slowest runner."""
    message: float = 0.02
    """Of sending weights and fetching episodes, a rollout: kilobytes a sample, since images stay on the GPU."""
    learn: float = 0.6
    """Of PPO's update on the driver, which no runner shortens."""


@dataclass(frozen=True)
class Args:
    machine: Machine = field(default_factory=Machine)
    runners: tuple[int, ...] = (1, 2, 4, 8)
    simulated: int = 200
    """Rollouts of each simulation."""
    rounds: int = 0
    """Rollouts of one runner, and as many of two, that are measured in turn; 0 measures nothing."""
    num_envs: int = 256
    """Episodes of a rollout that is measured."""
    references: int = 1024
    """Noises whose endpoints are made anew, where anything is measured."""


def simulate(machine: Machine, teraflop: float, runners: int, rollouts: int, seed: int = 0) -> float:
    """Mean seconds of a rollout and its update with so many runners, each with a GPU of its own."""
    rows = machine.episodes / runners
    step = machine.launch + rows * (teraflop / machine.tflops + machine.host)
    normal = np.random.default_rng(seed).standard_normal((rollouts, runners, machine.num_steps))
    # Lognormal of mean 1.
    factors = np.exp(machine.jitter * normal - machine.jitter**2 / 2)
    sampling = (step * factors).sum(axis=2).max(axis=1)
    return float(sampling.mean()) + machine.message + machine.learn


def project(args: Args) -> None:
    """Print the projection."""
    rows = []
    for name, teraflop in TEACHERS.items():
        seconds = [simulate(args.machine, teraflop, runners, args.simulated) for runners in args.runners]
        speeds = [f"{seconds[0] / value:.2f}" for value in seconds[1:]]
        rows.append([name, f"{teraflop:g}", f"{seconds[0]:.1f}", *speeds])
    print(args.machine)
    columns = ("teacher", "TFLOP a call", "seconds, 1 runner", *(f"{count} runners" for count in args.runners[1:]))
    print_table("Projected: times as fast as one runner", columns, rows)


def measure(args: Args) -> None:
    """Time rollouts and updates of one and of two runners in turn, so that other work on the machine meets both."""
    import ray

    from agents import rllib

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        given = {count: rllib.Args(runners=count, num_envs=args.num_envs) for count in (1, 2)}
        algorithms = {count: rllib.config_of(given[count], given[count].task, [], args.rounds) for count in given}
        algorithms = {count: config.build_algo() for count, config in algorithms.items()}
        sampling: dict[int, list[float]] = {count: [] for count in algorithms}
        whole: dict[int, list[float]] = {count: [] for count in algorithms}
        for index in range(2 * (args.rounds + 1)):
            count = 1 + index % 2
            start = time.monotonic()
            algorithms[count].env_runner_group.foreach_env_runner(
                lambda runner: runner.sample(num_timesteps=runner.num_envs * 4), local_env_runner=False
            )
            middle = time.monotonic()
            algorithms[count].train()
            if index >= 2:  # the first of each warms up
                sampling[count].append(middle - start)
                whole[count].append(time.monotonic() - middle)
    finally:
        ray.shutdown()
    frames = args.num_envs * 4
    columns = ("runners", "steps a second, rollout", "steps a second, with the update")
    rows = [[str(n), *(spread([frames / value for value in part[n]], 0) for part in (sampling, whole))] for n in (1, 2)]
    ratios = [median(a / b for a, b in zip(part[1], part[2], strict=True)) for part in (sampling, whole)]
    rows.append(["2 over 1, median of pairs", *(f"{ratio:.2f}" for ratio in ratios)])
    print_table(f"Measured: digits, {args.num_envs} episodes of 4 steps, {args.rounds} rollouts each", columns, rows)


def prepare(args: Args) -> None:
    """Time what is made once, and what each runner makes of it in a process of its own."""
    import ray

    from redif_env.rllib import shared_tensors

    settings = {"teacher": "digits", "reference_size": args.references, "teacher_steps": 99, "group_size": 8}
    with TemporaryDirectory() as folder:
        os.environ["REDIF_CACHE"] = folder  # before Ray's processes are started: nothing is found there
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            start = time.monotonic()
            tensors = shared_tensors(**settings)
            alone = time.monotonic() - start
            context = {**settings, "tensors": tensors, "num_envs": args.num_envs}
            each = ray.get([ray.remote(seconds_of_env).remote(context) for _ in range(2)])
        finally:
            ray.shutdown()
            del os.environ["REDIF_CACHE"]
    seconds = ", ".join(f"{one:.2f}" for one in each)
    print(
        f"{args.references:,} endpoints of 99 predictions and the rest made once: {alone:.1f} s; the environment of "
        f"each of 2 runners: {seconds} s, {max(each) / alone:.3f} of that"
    )


def seconds_of_env(context: dict[str, Any]) -> float:
    """How long a runner makes its environment, once its process has loaded this library."""
    from redif_env.rllib import make_env

    start = time.monotonic()
    make_env(context)
    return time.monotonic() - start


def main(args: Args) -> None:
    project(args)
    if args.rounds:
        prepare(args)
        measure(args)


if __name__ == "__main__":
    run(main, Args)
