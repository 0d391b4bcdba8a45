"""What each part of the recipe for network students is worth: PPO from one clone, with one thing changed at a time.

    python -m experiments.ablate_noise --teacher digits --num-steps 4 --seeds 1 --out runs/ablate-noise

Finished runs are kept in ``--out`` and not repeated. Writes ``rows.json`` there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from agents import clone, ppo
from experiments.stored import file_name, once, write_json
from experiments.tasks import Task, finish_all
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.settings import shared_teacher
from redif_env.sb3 import Reduction
from redif_env.sb3.training.networks import NoiseSettings
from redif_env.teachers.references import reference_paths, reference_set
from redif_env.training.command import run, teacher_of
from redif_env.training.runs import prepare_folder

CHANGES: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "no groups": {"group_size": 1},
    "terminal reward alone, gamma 1": {"reward": (("feature", 1.0),), "gamma": 1.0},
    "gamma 1": {"gamma": 1.0},
    "advantages normalised over minibatches": {"level_advantages": False},
    "half the exploration": {"exploration": (0.075, 0.025)},
    "four epochs a rollout": {"epochs": 4},
    "stop at 0.02 nats": {"network": {"target_kl": 0.02}},
    "summed log-probability": {"network": {"reduction": Reduction.SUM}},
    "no average of the policy": {"average": 0.0},
    "bfloat16": {"network": {"autocast": True}},
}
"""What is changed, by its name: settings of ``agents.ppo``, those of the network under ``network``."""


@dataclass(frozen=True)
class Args:
    teacher: str = "digits"
    num_steps: int = 4
    solver: str = "dpm++3m"
    grid: str = "time^1.5"
    """Of the base solver: without a late start, as when the tables of the docs were made."""
    seeds: int = 1
    network_calls: int = 50_000
    """Training budget of each run."""
    changes: tuple[str, ...] = tuple(CHANGES)
    reference_size: int = 16384
    teacher_steps: int = 30
    out: Path = Path("runs/ablate-noise")
    jobs: int = 2


def tasks_of(args: Args) -> list[Task]:
    """One run a change and seed, all from the same clone."""
    tasks = []
    base = NoiseSettings(init=str(args.out / "clone" / "student"))
    for name, seed in product(args.changes, range(args.seeds)):
        if name not in CHANGES:
            raise ValueError(f"changes={name!r} is unknown: choose some of {', '.join(map(repr, CHANGES))}")
        change = dict(CHANGES[name])
        network = replace(base, **change.pop("network", {}))
        settings = ppo.Args(
            teacher=args.teacher,
            num_steps=args.num_steps,
            solver=args.solver,
            grid=args.grid,
            action="noise",
            network=network,
            network_calls=args.network_calls,
            reference_size=args.reference_size,
            teacher_steps=args.teacher_steps,
            held_out_every=10,
            seed=seed,
            out=args.out / file_name(f"{name}-{seed}"),
            **change,
        )
        tasks.append(Task("redif-ppo", settings))
    return tasks


def warm_row(args: Args) -> dict[str, Any]:
    """Make the clone, unless it is there, and judge it."""

    def make() -> dict[str, float]:
        settings = clone.Args(
            teacher=args.teacher,
            num_steps=args.num_steps,
            solver=args.solver,
            grid=args.grid,
            out=args.out / "clone",
            resume=True,
        )
        student, _ = clone.make(settings)
        student.save_pretrained(args.out / "clone" / "student")
        row = Evaluator(teacher_of(settings)).student_row("warm start", student)
        return {"fd_teacher": row.fd_teacher, "mse_teacher": row.mse_teacher}

    found: dict[str, Any] = once(args.out / "clone.json", make)
    return found


def print_table(args: Args, warm: dict[str, Any], results: dict[str, list[dict[str, Any]]]) -> None:
    """A line a change, nearest first; the warm start last."""
    title = f"{args.teacher}, {args.num_steps} NFE, {args.network_calls:,} network calls each, 2,000 held-out noises"
    table = Table("changed", title=f"{title}, median of {args.seeds} seeds")
    for label in ("FD", "MSE", "seconds"):
        table.add_column(label, justify="right")
    for name, rows in sorted(results.items(), key=lambda item: median(row["fd_teacher"] for row in item[1])):
        found = [median(row[key] for row in rows) for key in ("fd_teacher", "mse_teacher", "train_seconds")]
        table.add_row(name, f"{found[0]:.3f}", f"{found[1]:.5f}", f"{found[2]:.0f}")
    table.add_row("warm start", f"{warm['fd_teacher']:.3f}", f"{warm['mse_teacher']:.5f}", "-")
    Console(width=110).print(table)


def grouped(args: Args, rows: Sequence[list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each change's seeds, by its name."""
    parts = [rows[start : start + args.seeds] for start in range(0, len(rows), args.seeds)]
    return {name: [row for own in part for row in own] for name, part in zip(args.changes, parts, strict=True)}


def main(args: Args) -> None:
    prepare_folder(args.out)
    teacher = shared_teacher(args.teacher, torch.device("cpu"), torch.float32)
    reference_paths(teacher, reference_set(teacher, args.reference_size, num_steps=args.teacher_steps))
    warm = warm_row(args)
    results = grouped(args, finish_all(tasks_of(args), args.teacher, args.jobs))
    write_json(args.out / "rows.json", {"warm start": warm, **results})
    print_table(args, warm, results)


if __name__ == "__main__":
    run(main, Args)
