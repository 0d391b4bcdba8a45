"""What choosing the number of calls is worth: one adaptive student at many prices, beside students of fixed calls.

    python -m experiments.adaptive_curve --seeds 3 --out runs/adaptive

Each adaptive student is one policy, trained once, at prices drawn between ``--prices``; sampling it at a price gives
one point of quality against mean NFE. Students of a fixed number of calls, as ``agents.ppo`` trains them, each with the
same budget, are the points to beat. Finished runs are kept. Writes ``adaptive.json`` and ``adaptive.png``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from agents import ppo
from experiments.stored import write_json
from experiments.tasks import Task, finish_all
from redif_env.storage.files import write_file
from redif_env.training.command import DEFAULT_REWARD, run
from redif_env.training.runs import prepare_folder

METRICS = {"fd_teacher": "Frechet distance to the teacher", "mse_teacher": "mean squared error to the endpoint"}


@dataclass(frozen=True)
class Args:
    teacher: str = "digits"
    min_steps: int = 4
    num_steps: int = 8
    prices: tuple[float, float] = (0.03, 0.6)
    """In units of the base solver's distance at num_steps calls."""
    solver: str = "dpm++3m"
    grid: str = "time^1.5"
    """Of the base solver: without a late start, as when the tables of the docs were made."""
    learning_rate: float = 3e-3
    fixed: tuple[int, ...] = (4, 6, 8)
    """Numbers of calls of the students to compare with."""
    seeds: int = 3
    network_calls: int = 480_000
    """Training budget of each run, adaptive or fixed."""
    out: Path = Path("runs/adaptive")
    fixed_out: Path = Path("runs/nfe-curve")
    """Where the fixed students are kept: those of experiments.nfe_curve, of the same settings, are the same."""
    jobs: int = 2


def tasks_of(args: Args) -> list[Task]:
    """The adaptive runs, one a seed, then the fixed ones."""
    adaptive = [
        ppo.Args(
            teacher=args.teacher,
            num_steps=args.num_steps,
            solver=args.solver,
            grid=args.grid,
            min_steps=args.min_steps,
            prices=args.prices,
            reward=(*DEFAULT_REWARD, ("price", 1.0)),
            network_calls=args.network_calls,
            learning_rate=args.learning_rate,
            seed=seed,
            out=args.out / f"adaptive-{seed}",
        )
        for seed in range(args.seeds)
    ]
    fixed = [
        ppo.Args(
            teacher=args.teacher,
            num_steps=count,
            solver=args.solver,
            grid=args.grid,
            network_calls=args.network_calls,
            learning_rate=args.learning_rate,
            seed=seed,
            out=args.fixed_out / f"redif-ppo-{count}-{seed}",
        )
        for count, seed in product(args.fixed, range(args.seeds))
    ]
    return [Task("redif-ppo", settings) for settings in (*adaptive, *fixed)]


def medians(rows: Sequence[dict[str, Any]], by: str) -> dict[float, dict[str, float]]:
    """Median over seeds of NFE and metrics, for each value of ``by``."""
    return {
        value: {key: median(row[key] for row in rows if row[by] == value) for key in ("nfe", *METRICS)}
        for value in sorted({row[by] for row in rows})
    }


def at_equal_calls(fixed: dict[float, dict[str, float]], nfe: float, metric: str) -> float:
    """The fixed students' metric at a mean of ``nfe`` calls: linear in the logarithm between neighbours.

    Drawing each sample at random from one of the two neighbours would do no better than this line.
    """
    counts = sorted(fixed)
    return float(np.exp(np.interp(nfe, counts, [np.log(fixed[count][metric]) for count in counts])))


def print_table(args: Args, adaptive: dict[float, dict[str, float]], fixed: dict[float, dict[str, float]]) -> None:
    table = Table("student", title=f"{args.teacher}: medians of {args.seeds} seeds, 2,000 held-out noises")
    for name in ("mean NFE", "FD to teacher", "fixed, same NFE", "ratio", "MSE to teacher", "fixed, same NFE", "ratio"):
        table.add_column(name, justify="right")
    for price, row in adaptive.items():
        cells = [f"price {price:.3f}", f"{row['nfe']:.2f}"]
        for metric, digits in (("fd_teacher", 3), ("mse_teacher", 5)):
            other = at_equal_calls(fixed, row["nfe"], metric)
            cells += [f"{row[metric]:.{digits}f}", f"{other:.{digits}f}", f"{row[metric] / other:.2f}"]
        table.add_row(*cells)
    for count, row in fixed.items():
        table.add_row(f"fixed {count:g}", f"{count:g}", f"{row['fd_teacher']:.3f}", "", "", f"{row['mse_teacher']:.5f}")
    Console(width=130).print(table)


def draw(path: Path, adaptive: list[dict[str, Any]], fixed: list[dict[str, Any]]) -> None:
    """Each adaptive student's curve over prices, the fixed students' points, and their medians' line."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(METRICS), figsize=(11, 4.2), layout="constrained")
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for seed in sorted({row["seed"] for row in adaptive}):
            curve = sorted((row["nfe"], row[metric]) for row in adaptive if row["seed"] == seed)
            name = "adaptive, one policy a line" if seed == 0 else None
            axis.plot(*zip(*curve, strict=True), "o-", color="tab:orange", markersize=4, label=name)
        axis.plot([row["nfe"] for row in fixed], [row[metric] for row in fixed], "s", color="tab:blue", markersize=4)
        middle = medians(fixed, "budget")
        counts = sorted(middle)
        axis.plot(counts, [middle[count][metric] for count in counts], "--", color="tab:blue", label="fixed, medians")
        axis.set(xlabel="mean network calls a sample (NFE)", ylabel=label, yscale="log")
        axis.grid(alpha=0.3)
        axis.legend()
    with write_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def main(args: Args) -> None:
    prepare_folder(args.out)
    rows = [row for rows in finish_all(tasks_of(args), args.teacher, args.jobs) for row in rows]
    adaptive, fixed = ([row for row in rows if (row["price"] is None) is wanted] for wanted in (False, True))
    write_json(args.out / "adaptive.json", {"adaptive": adaptive, "fixed": fixed})
    draw(args.out / "adaptive.png", adaptive, fixed)
    print_table(args, medians(adaptive, "price"), medians(fixed, "budget"))


if __name__ == "__main__":
    run(main, Args)
