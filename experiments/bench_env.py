"""How much the environment costs beside the network: ratios measured in one run.

python -m experiments.bench_env
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from experiments.tables import print_table, spread
from redif_env.envs.environments import ReDiFEnv, ReDiFVectorEnv
from redif_env.envs.wrappers import EndpointAlignment, TrajectoryAlignment
from redif_env.training.command import run

BARE, VECTOR, SINGLE = "bare forward passes", "vector environment", "single environments in DummyVecEnv"
ROUNDED, WRAPPED = "vector environment, bfloat16", "vector environment, two reward wrappers"
AIMS = ((VECTOR, BARE, 0.85), (VECTOR, SINGLE, 8.0), (WRAPPED, VECTOR, 0.95), (ROUNDED, VECTOR, 1.0))
"""Whose steps a second over whose are compared, and the smallest ratio that is aimed at."""


@dataclass(frozen=True)
class Args:
    """Settings; the contenders take turns, so that a machine whose speed drifts is fair to all."""

    teacher: str = "digits"
    num_steps: int = 4
    num_envs: int = 256
    single_envs: int = 64
    rounds: int = 9
    steps: int = 12


def per_second(action: Callable[[], object], count: int, steps: int) -> float:
    """Environment steps a second when each call of ``action`` makes ``count``."""
    start = time.perf_counter()
    for _ in range(steps):
        action()
    return count * steps / (time.perf_counter() - start)


def main(args: Args) -> None:
    task = {"teacher": args.teacher, "num_steps": args.num_steps}
    mode = {"autoreset_mode": "SameStep"}  # so that every step of every row is one
    vector, rounded = (ReDiFVectorEnv(args.num_envs, **task, **mode, autocast=autocast) for autocast in (False, True))
    wrapped = TrajectoryAlignment(EndpointAlignment(ReDiFVectorEnv(args.num_envs, **task, **mode)))
    singles = DummyVecEnv([lambda: ReDiFEnv(**task)] * args.single_envs)
    for env in (vector, rounded, wrapped):
        env.reset(seed=0)
    singles.reset()
    size = vector.single_action_space.shape[0]
    actions = np.random.default_rng(0).uniform(-0.1, 0.1, (args.num_envs, size)).astype(np.float32)
    network, x = vector.mdp.teacher.network, vector.reference.noise[: args.num_envs]
    timesteps = torch.full((args.num_envs,), 500.0)
    contenders: dict[str, tuple[Callable[[], object], int, int]] = {
        BARE: (torch.inference_mode()(lambda: network(x, timesteps)), args.num_envs, args.steps),
        VECTOR: (lambda: vector.step(actions), args.num_envs, args.steps),
        ROUNDED: (lambda: rounded.step(actions), args.num_envs, args.steps),
        WRAPPED: (lambda: wrapped.step(actions), args.num_envs, args.steps),
        SINGLE: (lambda: singles.step(actions[: args.single_envs]), args.single_envs, max(1, args.steps // 4)),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(args.rounds + 1):
        for name, contender in contenders.items():
            speed = per_second(*contender)
            if number:  # the first round warms up
                speeds[name].append(speed)
    title = f"{args.teacher}, {args.num_steps} steps, {torch.get_num_threads()} threads, {args.rounds} rounds"
    lines = [[name, str(contenders[name][1]), f"{median(found):.0f}"] for name, found in speeds.items()]
    print_table(title, ("", "environments", "steps a second"), lines)
    lines = []
    for own, other, aim in AIMS:
        ratios = [mine / theirs for mine, theirs in zip(speeds[own], speeds[other], strict=True)]
        lines.append([f"{own} / {other}", spread(ratios, 2), str(aim)])
    print_table("ratios of steps a second", ("", "median (smallest to largest)", "aim: at least"), lines)


if __name__ == "__main__":
    run(main, Args)
