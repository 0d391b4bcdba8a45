"""Train a few-step student with stock Stable-Baselines3 PPO, judge it, export it.

python -m agents.ppo --teacher digits --num-steps 4 --seed 0 --out runs/digits-4
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from agents.callbacks import AnnealedExploration, HeldOutCallback, linear_to_zero
from agents.command import DEFAULT_REWARD, prepare_folder, run
from agents.evaluate import Evaluator, report
from redif_env.references import VALIDATION_SEED
from redif_env.sb3 import GroupRelativeReturns, make_vec_env
from redif_env.settings import DEFAULT_GRID, DEFAULT_SOLVER
from redif_env.students import Student


@dataclass(frozen=True)
class Args:
    """Settings; the defaults are those of the README's table."""

    teacher: str = "digits"
    """A built-in name, a diffusers folder, or a hub id."""
    num_steps: int = 4
    """Network calls a sample."""
    min_steps: int | None = None
    """Network calls a sample at least; below num_steps, the policy chooses how many."""
    prices: tuple[float, float] | None = None
    """Range of what a call costs, which the policy sees; add the reward term "price" to charge it."""
    reward: tuple[tuple[str, float], ...] = DEFAULT_REWARD
    """Reward terms and their weights, as in --reward endpoint 1 feature 0.5."""
    seed: int = 0
    out: Path = Path("runs/ppo")
    """Folder for student/, result.json, samples.png and TensorBoard logs."""
    network_calls: int = 480_000
    """Budget: as many episodes as it pays for."""
    action: str = "solver"
    solver: str = DEFAULT_SOLVER
    """Base solver, which the zero action reproduces."""
    grid: str = DEFAULT_GRID
    num_envs: int = 128
    group_size: int = 8
    """Sub-environments that share their initial noise; 1 turns the group-relative reward off."""
    batches: int = 4
    """Minibatches a rollout, which is one episode of every sub-environment: many small updates go further than few."""
    epochs: int = 4
    learning_rate: float = 3e-3
    """Falls linearly to zero."""
    exploration: tuple[float, float] | None = None
    """Standard deviation of the actions at the start and at the end. By default 0.8 and 0.25, divided by the number of
    steps: with more steps the base solver is nearer the teacher, and each action should stray less from it."""
    held_out_size: int = 512
    held_out_every: int = 50
    """Rollouts between two judgements on held-out noise."""
    device: str = "cpu"


def build(args: Args) -> PPO:
    """The agent with its environment."""
    env = make_vec_env(
        args.num_envs,
        teacher=args.teacher,
        num_steps=args.num_steps,
        action=args.action,
        solver=args.solver,
        grid=args.grid,
        reward=dict(args.reward),
        min_steps=args.min_steps,
        prices=args.prices,
        group_size=args.group_size,
        device=args.device,
    )
    return PPO(
        "MlpPolicy",
        env,
        n_steps=args.num_steps,
        batch_size=max(2, args.num_envs * args.num_steps // args.batches),
        n_epochs=args.epochs,
        learning_rate=linear_to_zero(args.learning_rate),
        gamma=1.0,
        # One number at the end of a few steps: no bootstrapping, the return itself is the target.
        gae_lambda=1.0,
        seed=args.seed,
        device="cpu",
    )


def train(args: Args) -> tuple[Student, dict[str, Any]]:
    """The best student on held-out noise, and what it cost."""
    agent = build(args)
    validation = Evaluator(agent.get_env().unwrapped.mdp.teacher, args.held_out_size, VALIDATION_SEED)
    callback = HeldOutCallback(validation, args.held_out_every)
    agent.set_logger(configure(str(args.out / "tensorboard"), ["tensorboard"]))
    start = time.monotonic()
    callbacks: list[BaseCallback] = [
        AnnealedExploration(*(args.exploration or (0.8 / args.num_steps, 0.25 / args.num_steps))),
        callback,
    ]
    if agent.get_env().unwrapped.mdp.adaptive and args.group_size > 1:
        callbacks.append(GroupRelativeReturns())
    agent.learn(args.network_calls, callback=callbacks, progress_bar=True)
    return callback.best, {
        "train_seconds": round(time.monotonic() - start, 1),
        "environment_steps": agent.num_timesteps,
    }


def main(args: Args) -> None:
    prepare_folder(args.out)
    student, facts = train(args)
    report("redif-ppo", student, args, facts, args.out)


if __name__ == "__main__":
    run(main, Args)
