"""How much the environment costs beside the network: ratios measured in one run, or counts of what a device has to do.

python -m experiments.bench_env
python -m experiments.bench_env --counts
python -m experiments.bench_env --teacher cifar10 --num-envs 1024 --device cuda --dtype bfloat16
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from experiments.placement import Placement, wait_for
from experiments.pretended_device import NAME, PretendedDevice
from experiments.tables import print_table, spread
from redif_env import Student
from redif_env.envs.environments import ReDiFEnv, ReDiFVectorEnv
from redif_env.envs.wrappers import EndpointAlignment, TrajectoryAlignment
from redif_env.sb3 import make_vec_env
from redif_env.teachers.teacher import Teacher, load_teacher
from redif_env.training.command import run

BARE, VECTOR, SINGLE = "bare forward passes", "vector environment", "single environments in DummyVecEnv"
ROUNDED, WRAPPED = "vector environment, bfloat16", "vector environment, two reward wrappers"
AIMS = ((VECTOR, BARE, 0.85), (VECTOR, SINGLE, 8.0), (WRAPPED, VECTOR, 0.95), (ROUNDED, VECTOR, 1.0))
"""Whose steps a second over whose are compared, and the smallest ratio that is aimed at."""


@dataclass(frozen=True)
class Args(Placement):
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


def per_second(action: Callable[[], object], count: int, steps: int, device: torch.device) -> float:
    """Environment steps a second when each call of ``action`` makes ``count``, until ``device`` has done them."""
    start = time.perf_counter()
    for _ in range(steps):
        action()
    wait_for(device)
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


def bare(teacher: Teacher, size: int) -> Callable[[], object]:
    """A forward pass of the network alone, of ``size`` samples."""
    x = torch.randn(size, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    x = x.to(teacher.device, teacher.dtype)
    timesteps = torch.full((size,), 0.5, device=x.device, dtype=x.dtype)
    inputs = teacher.conditions.select(torch.zeros(size, dtype=torch.int64))
    return torch.inference_mode()(lambda: teacher.call(teacher.network, x, timesteps, inputs))


def main(args: Args) -> None:
    if args.counts and args.device != "cpu":
        raise ValueError(f"counts are of a pretended device, not of device={args.device!r}: leave one of them out")
    if args.counts:
        print_counts(counted(args))
        return
    names = ("teacher", "num_steps", "device", "dtype")
    task = {name: getattr(args, name) for name in names}
    mode = {"autoreset_mode": "SameStep"}  # so that every step of every row is one
    vector, rounded = (ReDiFVectorEnv(args.num_envs, **task, **mode, autocast=autocast) for autocast in (False, True))
    wrapped = TrajectoryAlignment(EndpointAlignment(ReDiFVectorEnv(args.num_envs, **task, **mode)))
    singles = DummyVecEnv([lambda: ReDiFEnv(**task)] * args.single_envs)
    for env in (vector, rounded, wrapped):
        env.reset(seed=0)
    singles.reset()
    size = vector.single_action_space.shape[0]
    actions = np.random.default_rng(0).uniform(-0.1, 0.1, (args.num_envs, size)).astype(np.float32)
    contenders: dict[str, tuple[Callable[[], object], int, int]] = {
        BARE: (bare(vector.mdp.teacher, args.num_envs), args.num_envs, args.steps),
        VECTOR: (lambda: vector.step(actions), args.num_envs, args.steps),
        ROUNDED: (lambda: rounded.step(actions), args.num_envs, args.steps),
        WRAPPED: (lambda: wrapped.step(actions), args.num_envs, args.steps),
        SINGLE: (lambda: singles.step(actions[: args.single_envs]), args.single_envs, max(1, args.steps // 4)),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(args.rounds + 1):
        for name, contender in contenders.items():
            speed = per_second(*contender, vector.mdp.teacher.device)
            if number:  # the first round warms up
                speeds[name].append(speed)
    place = f"{torch.get_num_threads()} threads" if args.device == "cpu" else f"{args.device}, {args.dtype}"
    title = f"{args.teacher}, {args.num_steps} steps, {place}, {args.rounds} rounds"
    lines = [[name, str(contenders[name][1]), f"{median(found):.0f}"] for name, found in speeds.items()]
    print_table(title, ("", "environments", "steps a second"), lines)
    lines = []
    for own, other, aim in AIMS:
        ratios = [mine / theirs for mine, theirs in zip(speeds[own], speeds[other], strict=True)]
        lines.append([f"{own} / {other}", spread(ratios, 2), str(aim)])
    print_table("ratios of steps a second", ("", "median (smallest to largest)", "aim: at least"), lines)


if __name__ == "__main__":
    run(main, Args)
