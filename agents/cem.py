"""The baseline without states: the same actions, one table for all samples, by cross-entropy search.

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

from redif_env.envs.environments import ReDiFVectorEnv
from redif_env.envs.task import Task
from redif_env.judging.baselines import Which
from redif_env.mdp.policies import Policy
from redif_env.storage.checkpoints import add_state, newest_state
from redif_env.students.student import Student
from redif_env.training.command import DEFAULT_REWARD, run, with_sizes
from redif_env.training.options import arguments_of, options_of
from redif_env.training.report import judge
from redif_env.training.runs import begin, unfinished

PROGRAM = "cem"
TaskOptions: Any = options_of(Task, reward=DEFAULT_REWARD)


@dataclass(frozen=True)
class Args(TaskOptions):
    """Settings: those of the environment, and these."""

    seed: int = 0
    out: Path = Path("runs/cem")
    """Folder for config.json, checkpoints/, student/, result.json and samples.png."""
    network_calls: int = 480_000
    """Training budget in network calls."""
    population: int = 64
    """Tables of actions tried in each generation."""
    noises: int = 16
    """Initial noises that every table of a generation is tried on."""
    elite: int = 12
    """Tables of a generation that the next is drawn around."""
    std_init: float = 0.3
    """Standard deviation of the first generation's actions."""
    smoothing: float = 0.7
    """Weight of the elite's mean and deviation against the last ones."""
    checkpoint_every: int = 10
    """Generations between two checkpoints."""
    test_size: int | None = None
    """Noises of the report."""
    baselines: Which = "quick"
    """Training-free solvers in the report: none, the few that are best at 4 to 8 network calls, or all on all grids."""
    license: str | None = None
    """Of the teacher's weights, for the model card; by default that of a built-in teacher, else unknown."""
    resume: bool = False
    """Go on with the run in out, with its settings; start it if there is none."""


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


@dataclass
class Search:
    """Where the cross-entropy method stands: mean and deviation of the tables, chance, and seconds spent."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    rng: np.random.Generator
    generation: int = 0
    seconds: float = 0.0

    def step(self, args: Args, env: ReDiFVectorEnv) -> None:
        """One generation (Rubinstein 1999)."""
        start = time.monotonic()
        noise = self.rng.standard_normal((args.population, *self.mean.shape))
        tables = (self.mean + self.std * noise).clip(-1, 1).astype(np.float32)
        best = tables[np.argsort(returns_of(env, tables))[-args.elite :]]
        self.mean = args.smoothing * best.mean(axis=0) + (1 - args.smoothing) * self.mean
        self.std = args.smoothing * best.std(axis=0) + (1 - args.smoothing) * self.std
        self.generation += 1
        self.seconds += time.monotonic() - start

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        vars(self).update({name: value for name, value in state.items() if name != "rng"})


def search(args: Args, env: ReDiFVectorEnv) -> Search:
    """The search at its end, ``mean`` its result; with ``args.resume`` it goes on from the newest checkpoint."""
    mean = np.zeros((args.num_steps, env.single_action_space.shape[0]))
    found = Search(mean, np.full_like(mean, args.std_init), np.random.default_rng(args.seed))
    env.reset(seed=args.seed)
    folder = args.out / "checkpoints"
    stored = newest_state(folder) if args.resume else None
    if stored is not None:
        found.load_state_dict(stored["search"])
        env.load_state_dict(stored["env"])
    for _ in tqdm(range(found.generation, generations(args)), desc="generations"):
        found.step(args, env)
        if found.generation % args.checkpoint_every == 0 or found.generation == generations(args):
            state = {"search": found.state_dict(), "env": env.state_dict()}
            add_state(folder, found.generation, state, keep=2)
    return found


def train(args: Args) -> tuple[Student, dict[str, Any]]:
    """The student of the table found, and what it cost."""
    arguments = arguments_of(args, Task)
    count, mode = args.population * args.noises, "SameStep"
    env = ReDiFVectorEnv(count, group_size=args.population, autoreset_mode=mode, **arguments)
    begin(args, PROGRAM)
    found = search(args, env)
    steps = generations(args) * env.num_envs * args.num_steps
    facts = {"train_seconds": round(found.seconds, 1), "environment_steps": steps}
    table = torch.from_numpy(found.mean.astype(np.float32))
    return Student(env.mdp, Policy.from_table(table, env.mdp.observation_size)), facts


def main(args: Args) -> None:
    if unfinished(args, PROGRAM):
        student, facts = train(args)
        judge("cem", student, args, facts)


if __name__ == "__main__":
    run(main, Args, with_sizes)
