"""What a step of the environment costs outside the network, over what it costs in another checkout of this project.

    git worktree add ../before 3589a00
    python -m experiments.bench_checkouts --other ../before

The network's output is its input, so that nothing of it is left. Each checkout has a process of its own with one
thread; they take turns, an episode each, and processor time is counted, so that a busy machine is fair to both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from redif_env.envs.environments import ReDiFVectorEnv

NUM_STEPS = 4


@dataclass(frozen=True)
class Args:
    """Settings."""

    other: Path
    """Folder of the other checkout, whose times are the denominators."""
    teacher: str = "digits"
    rows: tuple[int, ...] = (0, 1, 64, 1024)
    """Sizes of vector environments; 0 is the single environment of ``gym.make``, its resets included."""
    rounds: int = 150


def episode(teacher: str, rows: int) -> Callable[[], None]:
    """What runs an episode in every row, without a network."""
    env: Any
    if rows:
        env = ReDiFVectorEnv(rows, teacher=teacher, num_steps=NUM_STEPS, autoreset_mode="SameStep")
    else:
        env = gym.make("ReDiF-v0", teacher=teacher, num_steps=NUM_STEPS)
    core = env.unwrapped if rows else env.unwrapped.batch
    core.mdp.teacher.call = lambda network, x, timestep, inputs: x
    actions = np.random.default_rng(0).uniform(-0.1, 0.1, env.action_space.shape).astype(np.float32)
    env.reset(seed=0)

    def run() -> None:
        if not rows:
            env.reset()
        for _ in range(NUM_STEPS):
            env.step(actions)

    return run


def work(teacher: str, rows: list[int]) -> None:
    """Run an episode of so many rows for each line of the standard input, and print the seconds of a step."""
    episodes = {count: episode(teacher, count) for count in rows}
    for run in episodes.values():
        run()
    for line in sys.stdin:
        start = time.process_time()
        episodes[int(line)]()
        print((time.process_time() - start) / NUM_STEPS, flush=True)


def main(args: Args) -> None:
    from experiments.tables import print_table

    times: dict[tuple[int, Path], list[float]] = {}
    with ExitStack() as stack:
        workers = {}
        for folder in (Path(__file__).parent.parent, args.other.resolve()):
            worker = subprocess.Popen(
                [sys.executable, "-P", __file__, "work", args.teacher, *map(str, args.rows)],
                env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            workers[folder] = stack.enter_context(worker)
        for _ in range(args.rounds):
            for rows in args.rows:
                for folder, worker in workers.items():
                    assert worker.stdin
                    assert worker.stdout
                    print(rows, file=worker.stdin, flush=True)
                    times.setdefault((rows, folder), []).append(float(worker.stdout.readline()))
    lines = []
    for rows in args.rows:
        here, other = (np.quantile(times[rows, folder], (0, 0.5)) for folder in workers)
        cells = [f"{1e6 * value:.0f}" for value in (here[1], other[1])]
        lines.append([str(rows or "gym.make"), *cells, *(f"{ratio:.2f}" for ratio in here[::-1] / other[::-1])])
    columns = ("rows", "here, us", "there, us", "ratio of medians", "of the smallest")
    print_table(f"{args.teacher}: a step outside the network, {args.rounds} rounds", columns, lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], [int(rows) for rows in sys.argv[3:]])
    else:
        from redif_env.training.command import run as run_program

        run_program(main, Args)
