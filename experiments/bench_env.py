"""How much the environment costs beside the network: ratios measured in one run, or counts of what a device has to do.

python -m experiments.bench_env
python -m experiments.bench_env --counts
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from experiments.pretended_device import NAME, PretendedDevice
from redif_env import Student
from redif_env.envs.environments import ReDiFEnv, ReDiFVectorEnv
from redif_env.envs.wrappers import EndpointAlignment, TrajectoryAlignment
from redif_env.sb3 import make_vec_env
from redif_env.teachers.teacher import load_teacher


@dataclass(frozen=True)
class Args:
    """Settings; the contenders take turns, so that a machine whose speed drifts is fair to all."""

    teacher: str = "digits"
    num_steps: int = 4
    num_envs: int = 256
    single_envs: int = 64
    rounds: int = 9
    steps: int = 12
    counts: bool = False
    """Print what an accelerator would launch, be sent and be waited for outside the network, and the lines that cause
    it: of an environment step, of a PPO iteration, and of the exported pipeline."""
    counted_envs: int = 8


def per_second(action: Callable[[], object], count: int, steps: int) -> float:
    """Environment steps a second when each call of ``action`` makes ``count``."""
    start = time.perf_counter()
    for _ in range(steps):
        action()
    return count * steps / (time.perf_counter() - start)


def counted(args: Args) -> dict[str, tuple[PretendedDevice, int]]:
    """What a device is asked outside the network, by legs, each with the number of steps that it took.

    The environment starts and ends whole episodes; the PPO iteration is one rollout and one update on whole batches.
    """
    legs = {}
    for name in ("environment", "PPO iteration", "pipeline"):
        with PretendedDevice() as device:
            teacher = load_teacher(args.teacher)
            settings = {"teacher": teacher, "num_steps": args.num_steps, "reference_size": 64, "teacher_steps": 10}
            env = make_vec_env(args.counted_envs, device=NAME, **settings)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "You are trying to run PPO on the GPU")
                agent = PPO(
                    "MlpPolicy", env, n_steps=args.num_steps, batch_size=args.counted_envs, n_epochs=1, device=NAME
                )
            act, steps = _leg(name, agent, args.num_steps)
            with device.not_counting(teacher.network):
                act()
                device.forget()
                act()
        legs[name] = (device, steps)
    return legs


def _leg(name: str, agent: PPO, num_steps: int) -> tuple[Callable[[], object], int]:
    """What is counted of a leg, and the steps that it takes."""
    if name == "pipeline":
        pipeline = Student.from_agent(agent).pipeline()
        pipeline.set_progress_bar_config(disable=True)
        return lambda: pipeline(agent.n_envs, output_type="latent"), num_steps
    if name == "PPO iteration":
        return lambda: agent.learn(agent.n_steps * agent.n_envs, reset_num_timesteps=False), num_steps
    env = agent.get_env()
    env.seed(0)
    env.reset()
    zero = np.zeros((env.num_envs, *env.action_space.shape), np.float32)
    return lambda: [env.step(zero) for _ in range(num_steps)], num_steps


def print_counts(legs: dict[str, tuple[PretendedDevice, int]]) -> None:
    for name, (device, steps) in legs.items():
        operations, sends, waits = (total / steps for total in device.totals)
        print(f"\n{name}: {operations:.1f} operations, {sends:.1f} copies to the device and {waits:.2f} waits a step")
        for kind in ("operations", "sends", "waits"):
            for place, count in getattr(device, kind).most_common():
                print(f"  {count / steps:6.2f} {kind:<10} {place}")


def main(args: Args) -> None:
    if args.counts:
        print_counts(counted(args))
        return
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
