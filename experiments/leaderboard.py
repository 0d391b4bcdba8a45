"""The leaderboard: what agents of several libraries reach on the standard tasks under one budget of network calls.

    python -m experiments.leaderboard --ids ReDiF/Digits-4-v0 --network-calls 60000 --seeds 0 1 2

In the environment of ``make test-ray``. Each run is stored in ``--out`` when it is done, and not repeated.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import torch

import redif_env  # noqa: F401  (registers the tasks)
from experiments.stored import file_name, once, same_settings
from experiments.tables import print_table, spread
from redif_env import Student
from redif_env.envs.task import Task
from redif_env.judging.baselines import QUICK
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.policies import Policy
from redif_env.mdp.settings import build_mdp
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder


@dataclass(frozen=True)
class Entry:
    """An agent: the program that trains it, and settings other than the program's defaults."""

    library: str
    program: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def stock(library: str, algorithm: str) -> Entry:
    """An algorithm as Stable-Baselines3 or sb3-contrib has it."""
    return Entry(library, "agents.stable_baselines", {"algorithm": algorithm})


SB3, CONTRIB = "Stable-Baselines3", "sb3-contrib"
FIRST = "PPO, agents.ppo"
"""What the others are divided by."""
FIELD = {
    FIRST: Entry(SB3, "agents.ppo"),
    "PPO, 2 runners": Entry("RLlib", "agents.rllib", {"runners": 2}),
    "PPO, 1 process": Entry("RLlib", "agents.rllib", {"runners": 0}),
    "PPO, agents.torchrl_ppo": Entry("TorchRL", "agents.torchrl_ppo"),
    "PPO, agents.cleanrl_ppo": Entry("CleanRL's manner", "agents.cleanrl_ppo"),
    "PPO, agents.skrl_ppo": Entry("skrl", "agents.skrl_ppo"),
    "A2C": stock(SB3, "A2C"),
    "TRPO": stock(CONTRIB, "TRPO"),
    "SAC": stock(SB3, "SAC"),
    "TQC": stock(CONTRIB, "TQC"),
    "CrossQ": stock(CONTRIB, "CrossQ"),
    "CEM, one table for all samples": Entry("none", "agents.cem"),
}
SOLVER, BASE = "best of the quick solvers", "base solver (no training)"


@dataclass(frozen=True)
class Args:
    ids: tuple[str, ...] = ("ReDiF/Digits-4-v0",)
    """Tasks, as they are registered with Gymnasium."""
    agents: tuple[str, ...] = tuple(FIELD)
    network_calls: int = 60_000
    """Of the teacher in training, for each agent."""
    seeds: tuple[int, ...] = (0, 1, 2)
    test_size: int | None = None
    """Noises of the report; the teacher's default if not given."""
    out: Path = Path("results/leaderboard")
    device: str = "cpu"
    """Of the teacher, in training and evaluation; "auto" is the machine's accelerator (cuda, xpu, mps)."""

    def task(self, name: str) -> dict[str, Any]:
        """The arguments of a task."""
        return {**gym.spec(name).kwargs, "device": self.device}


@cache
def evaluator(args: Args, name: str) -> Evaluator:
    """The judge of a task's students."""
    kwargs = args.task(name)
    sizes = {"teacher_steps": kwargs.get("teacher_steps"), "train_size": kwargs.get("reference_size")}
    return Evaluator(build_mdp(Task(**kwargs)).teacher, args.test_size, **sizes)


def trained(args: Args, name: str, agent: str, seed: int) -> dict[str, Any]:
    """Train one agent, unless that is done; the row of its student."""
    folder = args.out / file_name(f"{name}-{agent}-{seed}")

    def make() -> dict[str, Any]:
        entry = FIELD[agent]
        program = import_module(entry.program)
        task, budget = args.task(name), {"network_calls": args.network_calls, "seed": seed}
        start = time.process_time()
        student, facts = program.train(program.Args(**task, **entry.settings, **budget, out=folder, resume=True))
        facts["processor_seconds"] = time.process_time() - start
        student.save_pretrained(folder / "student")
        return judged(args, name, agent, student) | {"library": entry.library, "seed": seed, **facts}

    return once(folder / "row.json", make)


def judged(args: Args, name: str, agent: str, student: Student) -> dict[str, Any]:
    """The row of a student on the test noises."""
    judge = evaluator(args, name)
    with torch.inference_mode():
        samples = student.trajectory(judge.noise, condition=judge.condition)[-1].x
    row = asdict(judge.row(agent, "learned", student.num_steps, samples))
    return {**row, "kd": judge.set_measures(samples)["kd"], "task": name}


def untrained(args: Args, name: str) -> list[dict[str, Any]]:
    """Rows of the base solver, which is the zero action, and of the best of the quick training-free solvers."""

    def make() -> list[dict[str, Any]]:
        mdp, judge = build_mdp(Task(**args.task(name))), evaluator(args, name)
        zero = Policy.from_table(torch.zeros(mdp.num_steps, mdp.action_size), mdp.observation_size)
        best = asdict(judge.baselines(mdp.num_steps * mdp.teacher.calls, QUICK)[0])
        described = {"method": f"{SOLVER}: {best['method']} {best['grid']}", "task": name}
        return [judged(args, name, BASE, Student(mdp, zero)), {**best, **described}]

    return once(args.out / file_name(name) / "untrained.json", make)


def lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line an agent, best first: medians over seeds, the range of the distance, and its ratio to ``FIRST``'s."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)

    def middle(name: str, key: str = "fd_teacher") -> float:
        return median(row[key] for row in groups[name])

    found = []
    for name in sorted(groups, key=middle):
        group, ratio = groups[name], f"{middle(name) / middle(FIRST):.2f}" if FIRST in groups else ""
        measures = [spread([row["fd_teacher"] for row in group]), ratio, f"{middle(name, 'mse_teacher'):.4f}"]
        costs = f"{middle(name, 'processor_seconds'):.0f}" if "processor_seconds" in group[0] else ""
        found.append([name, group[0].get("library", ""), *measures, costs, str(len(group))])
    return found


def main(args: Args) -> None:
    """Train what is not trained yet, seed by seed; the table."""
    if set(args.agents) - set(FIELD):
        raise ValueError(f"agents={args.agents} must be among {', '.join(map(repr, FIELD))}")
    prepare_folder(args.out)
    same_settings(args.out, {name: getattr(args, name) for name in ("network_calls", "test_size", "device")})
    for name in args.ids:
        rows = [trained(args, name, agent, seed) for seed, agent in product(args.seeds, args.agents)]
        rows += untrained(args, name)
        columns = ("agent", "library", "FD to teacher", "of agents.ppo's", "MSE", "processor s", "seeds")
        noises = f"{len(evaluator(args, name).noise):,} held-out noises"
        print_table(f"{name}, {args.network_calls:,} network calls, {noises}", columns, lines(rows))


if __name__ == "__main__":
    run(main, Args)
