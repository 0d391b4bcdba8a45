"""Which reward makes the best student: the same PPO budget under each reward, and every metric of each.

    python -m experiments.ablate_rewards --teacher digits --num-steps 4 --seeds 3 --out runs/rewards

Finished runs are kept in ``--out`` and not repeated. Writes ``rewards.json`` and ``rewards.png`` there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

from agents import ppo
from experiments.stored import write_json
from experiments.tasks import Task, finish_all
from redif_env.storage.files import write_file
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder

SETS: dict[str, dict[str, float]] = {
    "endpoint": {"endpoint": 1.0},
    "endpoint_squared": {"endpoint_squared": 1.0},
    "endpoint_cosine": {"endpoint_cosine": 1.0},
    "endpoint_ssim": {"endpoint_ssim": 1.0},
    "feature": {"feature": 1.0},
    "trajectory": {"trajectory": 1.0},
    "score": {"score": 1.0},
    "residual": {"residual": 1.0},
    "mmd": {"mmd": 1.0},
    "energy": {"energy": 1.0},
    "endpoint + feature": {"endpoint": 1.0, "feature": 1.0},
    # A sample's share of a distribution distance varies some ten times as much as its endpoint error.
    "feature + energy": {"feature": 1.0, "energy": 0.1},
}
"""The rewards compared: terms and weights."""

METRICS = {
    "fd_teacher": "FD",
    "kd": "KD x 1000",
    "fd_pixels": "FD, pixels",
    "mse_teacher": "MSE",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
}
HIGHER_IS_BETTER = {"precision", "recall", "coverage"}


@dataclass(frozen=True)
class Args:
    teacher: str = "digits"
    num_steps: int = 4
    solver: str = "dpm++3m"
    grid: str = "time^1.5"
    """Of the base solver: without a late start, as when the tables of the docs were made."""
    learning_rate: float = 3e-3
    seeds: int = 3
    network_calls: int = 200_000
    """Training budget of each run."""
    rewards: tuple[str, ...] = tuple(SETS)
    out: Path = Path("runs/rewards")
    jobs: int = 2
    """Runs at the same time, each with its share of the cores."""


def tasks_of(args: Args) -> list[Task]:
    """One run a reward and seed."""
    tasks = []
    for name, seed in product(args.rewards, range(args.seeds)):
        if name not in SETS:
            raise ValueError(f"rewards={name!r} is unknown: choose some of {', '.join(map(repr, SETS))}")
        settings = ppo.Args(
            teacher=args.teacher,
            num_steps=args.num_steps,
            solver=args.solver,
            grid=args.grid,
            reward=tuple(SETS[name].items()),
            network_calls=args.network_calls,
            learning_rate=args.learning_rate,
            seed=seed,
            out=args.out / f"{name.replace(' ', '')}-{args.num_steps}-{seed}",
        )
        tasks.append(Task("redif-ppo", settings))
    return tasks


def print_table(args: Args, results: dict[str, list[dict[str, Any]]]) -> None:
    """Median over seeds (smallest to largest), a row a reward, best Frechet distance first."""
    title = f"{args.teacher}, {args.num_steps} NFE, {args.network_calls:,} network calls each, 2,000 held-out noises"
    table = Table("reward", title=f"{title}, median of {args.seeds} seeds (min to max)")
    for label in METRICS.values():
        table.add_column(label, justify="right")
    for name, rows in sorted(results.items(), key=lambda item: median(row["fd_teacher"] for row in item[1])):
        cells = []
        for metric in METRICS:
            values, digits = [row[metric] for row in rows], 4 if metric == "mse_teacher" else 3
            cells.append(f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})")
        table.add_row(name, *cells)
    Console(width=190).print(table)


def draw(path: Path, results: dict[str, list[dict[str, Any]]], title: str) -> None:
    """Frechet distances, paired error and recall of each reward: every seed a dot, the median a line."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    names = sorted(results, key=lambda name: -median(row["fd_teacher"] for row in results[name]))
    panels = ("fd_teacher", "fd_pixels", "mse_teacher", "recall")
    figure, axes = plt.subplots(
        1, len(panels), figsize=(13, 0.34 * len(names) + 1.4), sharey=True, layout="constrained"
    )
    for axis, metric in zip(axes, panels, strict=True):
        values = [[row[metric] for row in results[name]] for name in names]
        middles = [median(group) for group in values]
        axis.plot(middles, range(len(names)), "|", color="black", markersize=14, markeredgewidth=2)
        for height, group in enumerate(values):
            axis.plot(group, [height] * len(group), "o", color="tab:blue", markersize=4)
        better = "higher" if metric in HIGHER_IS_BETTER else "lower"
        axis.set_xlabel(f"{METRICS[metric]} ({better} is better)")
        if metric not in HIGHER_IS_BETTER:
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    figure.suptitle(title)
    with write_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def grouped(args: Args, rows: Sequence[list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each reward's seeds, by its name."""
    return {
        name: [row for seed in rows[index * args.seeds : (index + 1) * args.seeds] for row in seed]
        for index, name in enumerate(args.rewards)
    }


def main(args: Args) -> None:
    prepare_folder(args.out)
    results = grouped(args, finish_all(tasks_of(args), args.teacher, args.jobs))
    write_json(args.out / "rewards.json", {"weights": SETS, "results": results})
    draw(args.out / "rewards.png", results, f"{args.teacher}, {args.num_steps} NFE, {args.seeds} seeds")
    print_table(args, results)


if __name__ == "__main__":
    run(main, Args)
