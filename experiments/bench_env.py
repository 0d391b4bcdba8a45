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
import tyro
from stable_baselines3.common.vec_env import DummyVecEnv

from redif_env.envs.environments import ReDiFEnv, ReDiFVectorEnv
from redif_env.envs.wrappers import EndpointAlignment, TrajectoryAlignment


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
    vector = ReDiFVectorEnv(args.num_envs, teacher=args.teacher, num_steps=args.num_steps)
    wrapped = TrajectoryAlignment(
        EndpointAlignment(ReDiFVectorEnv(args.num_envs, teacher=args.teacher, num_steps=args.num_steps))
    )
    singles = DummyVecEnv([lambda: ReDiFEnv(teacher=args.teacher, num_steps=args.num_steps)] * args.single_envs)
    rounded = ReDiFVectorEnv(args.num_envs, teacher=args.teacher, num_steps=args.num_steps, autocast=True)
    vector.reset(seed=0)
    rounded.reset(seed=0)
    wrapped.reset(seed=0)
    singles.reset()
    rng = np.random.default_rng(0)
    size = vector.single_action_space.shape[0]
    actions = rng.uniform(-0.1, 0.1, (args.num_envs, size)).astype(np.float32)
    network, x = vector.mdp.teacher.network, vector.reference.noise[: args.num_envs]
    timesteps = torch.full((args.num_envs,), 500.0)

    @torch.inference_mode()
    def forward() -> object:
        return network(x, timesteps)

    contenders: dict[str, tuple[Callable[[], object], int, int]] = {
        "bare": (forward, args.num_envs, args.steps),
        "vector": (lambda: vector.step(actions), args.num_envs, args.steps),
        "autocast": (lambda: rounded.step(actions), args.num_envs, args.steps),
        "wrapped": (lambda: wrapped.step(actions), args.num_envs, args.steps),
        "single": (lambda: singles.step(actions[: args.single_envs]), args.single_envs, max(1, args.steps // 4)),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(args.rounds + 1):
        for name, (action, count, steps) in contenders.items():
            speed = per_second(action, count, steps)
            if number:  # the first round warms up
                speeds[name].append(speed)
    print(f"{args.teacher}, {args.num_steps} steps, {torch.get_num_threads()} threads, median of {args.rounds} rounds")
    print(f"bare batched forward passes ({args.num_envs})  {median(speeds['bare']):8.0f} a second")
    print(f"vector env ({args.num_envs})                   {median(speeds['vector']):8.0f} steps a second")
    print(f"the same in bfloat16                   {median(speeds['autocast']):8.0f} steps a second")
    print(f"the same with two reward wrappers      {median(speeds['wrapped']):8.0f} steps a second")
    print(f"single envs in DummyVecEnv ({args.single_envs})    {median(speeds['single']):8.0f} steps a second")
    aims = (
        ("vector", "bare", 0.85),
        ("vector", "single", 8.0),
        ("wrapped", "vector", 0.95),
        ("autocast", "vector", 1.0),
    )
    for own, other, wanted in aims:
        ratios = [mine / theirs for mine, theirs in zip(speeds[own], speeds[other], strict=True)]
        print(f"{own} / {other}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); aim: at least {wanted}")


if __name__ == "__main__":
    main(tyro.cli(Args))
