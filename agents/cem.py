"""The rival without states: the same action numbers, one table for all samples, by cross-entropy search.

python -m agents.cem --teacher digits --num-steps 4 --seed 0 --out runs/digits-4-cem
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from agents.command import DEFAULT_REWARD, prepare_folder, run
from agents.evaluate import report
from agents.runs import settings_json
from redif_env.envs import ReDiFVectorEnv
from redif_env.policies import Policy
from redif_env.settings import DEFAULT_GRID, DEFAULT_SOLVER
from redif_env.students import Student


@dataclass(frozen=True)
class Args:
    """Settings; the budget is that of ``agents.ppo``."""

    teacher: str = "digits"
    num_steps: int = 4
    seed: int = 0
    out: Path = Path("runs/cem")
    network_calls: int = 480_000
    reward: tuple[tuple[str, float], ...] = DEFAULT_REWARD
    action: str = "solver"
    solver: str = DEFAULT_SOLVER
    grid: str = DEFAULT_GRID
    population: int = 64
    """Tables tried in each generation."""
    noises: int = 16
    """Initial noises that every table of a generation is tried on."""
    elite: int = 12
    std_init: float = 0.3
    smoothing: float = 0.7
    """Weight of the elite's mean and deviation against the last ones."""


def generations(args: Args) -> int:
    """How many the budget pays for, at least one."""
    return max(1, args.network_calls // (args.population * args.noises * args.num_steps))


def returns_of(env: ReDiFVectorEnv, tables: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean return ``(P,)`` of each table ``(P, num_steps, A)`` on the next noises; env i runs table ``i % P``."""
    assert env.group_size == len(tables)
    total = np.zeros(env.num_envs)
    for step in range(tables.shape[1]):
        total += env.step(np.tile(tables[:, step], (env.num_envs // len(tables), 1)))[1]
    return total.reshape(-1, len(tables)).mean(axis=0)


def search(args: Args, env: ReDiFVectorEnv) -> NDArray[np.float32]:
    """The final mean table ``(num_steps, A)`` of the cross-entropy method (Rubinstein 1999)."""
    rng = np.random.default_rng(args.seed)
    mean = np.zeros((args.num_steps, env.single_action_space.shape[0]))
    std = np.full_like(mean, args.std_init)
    env.reset(seed=args.seed)
    for _ in tqdm(range(generations(args)), desc="generations"):
        tables = (mean + std * rng.standard_normal((args.population, *mean.shape))).clip(-1, 1).astype(np.float32)
        best = tables[np.argsort(returns_of(env, tables))[-args.elite :]]
        mean = args.smoothing * best.mean(axis=0) + (1 - args.smoothing) * mean
        std = args.smoothing * best.std(axis=0) + (1 - args.smoothing) * std
    return mean.astype(np.float32)


def train(args: Args) -> tuple[Student, dict[str, Any]]:
    """The student of the table found, and what it cost."""
    env = ReDiFVectorEnv(
        args.population * args.noises,
        teacher=args.teacher,
        num_steps=args.num_steps,
        action=args.action,
        solver=args.solver,
        grid=args.grid,
        reward=dict(args.reward),
        group_size=args.population,
    )
    start = time.monotonic()
    table = search(args, env)
    steps = generations(args) * env.num_envs * args.num_steps
    facts = {"train_seconds": round(time.monotonic() - start, 1), "environment_steps": steps}
    return Student(env.mdp, Policy.from_table(torch.from_numpy(table), env.mdp.observation_size)), facts


def main(args: Args) -> None:
    prepare_folder(args.out)
    student, facts = train(args)
    report("cem", student, settings_json(args), facts, args.out)


if __name__ == "__main__":
    run(main, Args)
