"""What choosing the number of calls is worth: one adaptive student at many prices, beside students of fixed calls.

    python -m experiments.adaptive_curve --seeds 3 --out runs/adaptive

Each adaptive student is one policy, trained once, at prices drawn between ``--prices``; sampling it at a price gives
one point of quality against mean NFE. Students of a fixed number of calls, each trained with the same budget, are the
points to beat. Finished runs are stored. Writes ``adaptive.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from experiments import nfe_curve
from experiments.tables import print_table
from experiments.tasks import Task, finish_all
from redif_env.storage.files import write_json
from redif_env.training.command import DEFAULT_REWARD, run
from redif_env.training.runs import prepare_folder

DIGITS = {"fd_teacher": 3, "mse_teacher": 5}


@dataclass(frozen=True)
class Args(nfe_curve.Args):
    """``nfe`` are the numbers of calls of the fixed students; the defaults are those of the docs' table."""

    min_steps: int = 4
    max_steps: int = 8
    prices: tuple[float, float] = (0.03, 0.6)
    """In units of the base solver's distance at max_steps calls."""
    solver: str = "dpm++3m"
    grid: str = "time^1.5"
    learning_rate: float | None = 3e-3
    network_calls: int | None = 480_000
    out: Path = Path("runs/adaptive")


def tasks_of(args: Args) -> list[Task]:
    """The adaptive runs, one a seed, then the fixed ones."""
    adaptive = [
        replace(
            nfe_curve.task_of(args, args.max_steps, seed).settings,
            min_steps=args.min_steps,
            prices=args.prices,
            reward=(*DEFAULT_REWARD, ("price", 1.0)),
            out=args.out / f"adaptive-{seed}",
        )
        for seed in range(args.seeds)
    ]
    fixed = [nfe_curve.task_of(args, *key) for key in product(args.nfe, range(args.seeds))]
    return [*(Task("redif-ppo", settings) for settings in adaptive), *fixed]


def medians(rows: Sequence[dict[str, Any]], by: str) -> dict[float, dict[str, float]]:
    """Median over seeds of NFE and metrics, for each value of ``by``."""
    return {
        value: {key: median(row[key] for row in rows if row[by] == value) for key in ("nfe", *DIGITS)}
        for value in sorted({row[by] for row in rows})
    }


def at_equal_calls(fixed: dict[float, dict[str, float]], nfe: float, metric: str) -> float:
    """The fixed students' metric at a mean of ``nfe`` calls: linear in the logarithm between neighbours.

    Drawing each sample at random from one of the two neighbours would do no better than this line.
    """
    counts = sorted(fixed)
    return float(np.exp(np.interp(nfe, counts, [np.log(fixed[count][metric]) for count in counts])))


def cells(name: str, row: dict[str, float], fixed: dict[float, dict[str, float]]) -> list[str]:
    """A line of the table; a fixed student's has ratios of 1."""
    found = [name, f"{row['nfe']:.2f}"]
    for metric, digits in DIGITS.items():
        other = at_equal_calls(fixed, row["nfe"], metric)
        found += [f"{row[metric]:.{digits}f}", f"{other:.{digits}f}", f"{row[metric] / other:.2f}"]
    return found


def main(args: Args) -> None:
    prepare_folder(args.out)
    rows = [row for found in finish_all(tasks_of(args), args.jobs) for row in found]
    adaptive, fixed = ([row for row in rows if (row["price"] is None) is fixed] for fixed in (False, True))
    write_json(args.out / "adaptive.json", {"adaptive": adaptive, "fixed": fixed})
    middle = medians(fixed, "budget")
    lines = [cells(f"price {price:.3f}", row, middle) for price, row in medians(adaptive, "price").items()]
    lines += [cells(f"fixed {count:g}", row, middle) for count, row in middle.items()]
    names = ("student", "mean NFE", "FD to teacher", "fixed, same NFE", "ratio", "MSE to teacher", "fixed, same NFE")
    print_table(f"{args.teacher}: medians of {args.seeds} seeds, 2,000 held-out noises", (*names, "ratio"), lines)


if __name__ == "__main__":
    run(main, Args)
