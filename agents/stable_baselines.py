"""Any algorithm of Stable-Baselines3 or sb3-contrib as it comes, and the student that it trained.

    python -m agents.stable_baselines --algorithm TRPO --teacher digits --num-steps 4 --out runs/trpo

``agents.ppo`` does more: it evaluates during training, and can be stopped and resumed.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.program import Settings, finish
from redif_env import Student
from redif_env.sb3 import make_vec_env
from redif_env.sb3.training.callbacks import AnnealedExploration, linear_to_zero
from redif_env.training.command import run, with_sizes
from redif_env.training.runs import begin

PROGRAM = "stable_baselines"
ON_POLICY = ("A2C", "PPO", "TRPO")
OFF_POLICY = ("CrossQ", "DDPG", "SAC", "TD3", "TQC")


@dataclass(frozen=True)
class Args(Settings):
    """Settings of the environment and of the run; epochs and batches are of PPO alone."""

    algorithm: str = "TRPO"
    """A2C, PPO, TRPO; or CrossQ, DDPG, SAC, TD3, TQC, which learn from a replay buffer."""
    out: Path = Path("runs/stable_baselines")
    """Folder for config.json, student/, result.json and samples.png."""


def algorithm_of(name: str) -> type[BaseAlgorithm]:
    """The class of that name.

    Raises:
        ImportError: if it is one of sb3-contrib, which is not installed.
    """
    if name not in ON_POLICY + OFF_POLICY:
        raise ValueError(f"algorithm={name!r} is unknown: choose one of {', '.join(sorted(ON_POLICY + OFF_POLICY))}")
    if hasattr(stable_baselines3, name):
        return getattr(stable_baselines3, name)
    import sb3_contrib

    return getattr(sb3_contrib, name)


def build(args: Args) -> BaseAlgorithm:
    """The agent with its environment."""
    kind = algorithm_of(args.algorithm)
    settings: dict[str, Any] = {"gamma": 1.0, "seed": args.seed, "device": "cpu"}
    settings["learning_rate"] = linear_to_zero(args.learning_rate)
    if args.algorithm in OFF_POLICY:
        # No groups: what they pay depends on the policy of the day, and a replay buffer keeps it for longer.
        # Sixteen episodes run together, and each of their steps is followed by an update.
        env = make_vec_env(16, **args.task)
        if args.algorithm in ("SAC", "TQC", "CrossQ"):
            settings["ent_coef"] = "auto_0.01"
        layers = {"pi": [64, 64], "qf": [128, 128]}
        return kind("MlpPolicy", env, batch_size=256, policy_kwargs={"net_arch": layers}, **settings)
    # An update of A2C is one step of the gradient, so it has many small rollouts; others few large ones.
    num_envs = 2 * args.group_size if args.algorithm == "A2C" else args.num_envs
    env = make_vec_env(num_envs, group_size=args.group_size, **args.task)
    if args.algorithm == "PPO":
        settings |= {"n_epochs": args.epochs, "batch_size": max(2, args.frames // args.batches)}
    if args.algorithm == "A2C":
        settings |= {"normalize_advantage": True, "use_rms_prop": False}
    policy = {"net_arch": [64, 64], "log_std_init": math.log(args.std(0))}
    return kind("MlpPolicy", env, n_steps=args.num_steps, gae_lambda=1.0, policy_kwargs=policy, **settings)


def train(args: Args) -> tuple[Student, dict[str, Any]]:
    """The student of the last policy, and what it cost."""
    agent = build(args)
    begin(args, PROGRAM)
    # TRPO bounds what a step may change of the deviation too, the others let it fall too early.
    anneals = args.algorithm in ("A2C", "PPO")
    start, callback = time.monotonic(), AnnealedExploration(args.std(0), args.std(1)) if anneals else None
    agent.learn(args.network_calls // agent.get_env().unwrapped.mdp.calls, callback=callback)
    facts = {"train_seconds": round(time.monotonic() - start, 1), "environment_steps": agent.num_timesteps}
    return Student.from_agent(agent), facts


def main(args: Args) -> None:
    finish(args, PROGRAM, train, args.algorithm.lower())


if __name__ == "__main__":
    run(main, Args, with_sizes)
