"""The comparison: every rival on the same teacher, noises and budget, judged by one judge; table, JSON and figures.

    python -m experiments.compare --teacher digits --nfe 4 6 8 --seeds 3 --out results/
    python -m experiments.compare --quick

What is finished is kept in ``--out`` and not repeated. Rivals that need no chance are fitted once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median, stdev
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from agents.command import prepare_folder, run
from experiments.rivals.gits import gits
from experiments.rivals.gradient import gradient_policy, gradient_table
from experiments.rivals.ours import cross_entropy, redif_ppo
from experiments.rivals.regression import regression
from experiments.rivals.rival import Rival, Task
from experiments.rivals.training_free import ddim, solver
from redif_env.evaluation import Evaluator
from redif_env.files import write_file
from redif_env.references import VALIDATION_SEED, reference_set
from redif_env.rendering import tile, to_pixels
from redif_env.settings import shared_teacher

RIVALS: dict[str, tuple[Rival, bool]] = {
    "ddim": (ddim, False),
    "best solver": (solver, False),
    "gits": (gits, False),
    "cross-entropy": (cross_entropy, True),
    "gradient, table": (gradient_table, True),
    "gradient, policy": (gradient_policy, True),
    "network, regression": (regression, True),
    "redif-ppo": (redif_ppo, True),
}
"""By the names of the table: how each is fitted, and whether chance plays a part."""
MEASURES = ("fd_teacher", "mse_teacher", "kd", "swd", "precision", "recall", "density", "coverage")
PICTURED = 12


@dataclass(frozen=True)
class Args:
    teacher: tuple[str, ...] = ("digits",)
    nfe: tuple[int, ...] = (4, 6, 8)
    seeds: int = 3
    seconds: float = 150.0
    """Time that each fit may take, on its share of the cores; endpoints to train on are given."""
    methods: tuple[str, ...] = tuple(RIVALS)
    reference_size: int = 4096
    test_size: int = 2000
    held_out_size: int = 512
    out: Path = Path("results")
    jobs: int = 2
    """Fits at the same time, each with its share of the cores."""
    quick: bool = False
    """4 NFE, one seed, 20 seconds a fit."""


@dataclass(frozen=True)
class Cell:
    """One fit of the table."""

    teacher: str
    method: str
    nfe: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.teacher}-{self.method}-{self.nfe}-{self.seed}".replace(", ", "-").replace(" ", "-")


def cells_of(args: Args) -> list[Cell]:
    """All fits, those without chance once."""
    found = []
    for teacher, method, nfe in product(args.teacher, args.methods, args.nfe):
        seeds = args.seeds if RIVALS[method][1] else 1
        found += [Cell(teacher, method, nfe, seed) for seed in range(seeds)]
    return found


def finish(args: Args, cell: Cell, threads: int) -> dict[str, Any]:
    """Fit, judge and keep one cell, unless that is done."""
    path = args.out / "rows" / f"{cell.name}.json"
    if not path.exists():
        torch.set_num_threads(threads)
        teacher = shared_teacher(cell.teacher, torch.device("cpu"), torch.float32)
        reference = reference_set(teacher, args.reference_size)
        chooser = Evaluator(teacher, args.held_out_size, VALIDATION_SEED, train_size=args.reference_size)
        task = Task(teacher, reference, chooser, cell.nfe // teacher.calls, cell.seed, args.seconds)
        fitted = RIVALS[cell.method][0](task)
        judge = Evaluator(teacher, args.test_size, train_size=args.reference_size)
        samples = fitted.sampler(judge.noise, judge.condition)
        row = {
            **asdict(judge.row(cell.method, fitted.described, cell.nfe, samples)),
            **judge.set_measures(teacher.clip(samples)),
            **{"teacher": cell.teacher, "seed": cell.seed, "judged": judge.described},
            **{"train_seconds": round(fitted.seconds, 1), "network_calls": fitted.network_calls},
        }
        pictures = torch.stack([teacher.images(part[:PICTURED]) for part in (samples, judge.endpoints)])
        with write_file(args.out / "samples" / f"{cell.name}.safetensors") as temporary:
            save_file({"student": pictures[0].contiguous(), "teacher": pictures[1].contiguous()}, temporary)
        with write_file(path) as temporary:
            temporary.write_text(json.dumps(row, indent=2) + "\n")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def finish_all(args: Args, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The rows of all cells, ``args.jobs`` at a time."""
    for name in args.teacher:  # endpoints once, not by every process
        teacher = shared_teacher(name, torch.device("cpu"), torch.float32)
        reference_set(teacher, args.reference_size)
        Evaluator(teacher, args.held_out_size, VALIDATION_SEED)
        Evaluator(teacher, args.test_size)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    if args.jobs == 1:
        return [finish(args, cell, threads) for cell in cells]
    count = len(cells)
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(finish, [args] * count, cells, [threads] * count))


def summary(rows: Sequence[dict[str, Any]], teacher: str, nfe: int) -> Table:
    """One table: a line a method, nearest first; medians over seeds, and the standard error of the first measure."""
    chosen = [row for row in rows if (row["teacher"], row["nfe"]) == (teacher, nfe)]
    table = Table("method", title=f"{teacher}, {nfe} NFE, {chosen[0]['judged']}")
    for name in ("fd_teacher", "std. error", *MEASURES[1:], "seconds", "network calls"):
        table.add_column(name, justify="right")
    for method in sorted({row["method"] for row in chosen}, key=lambda name: _median(chosen, name, "fd_teacher")):
        own = [row["fd_teacher"] for row in chosen if row["method"] == method]
        error = f"{stdev(own) / len(own) ** 0.5:.3f}" if len(own) > 1 else "-"
        cells = [f"{_median(chosen, method, name):.4f}" for name in MEASURES[1:]]
        cost = [f"{_median(chosen, method, 'train_seconds'):.0f}", f"{_median(chosen, method, 'network_calls'):,.0f}"]
        table.add_row(method, f"{median(own):.3f}", error, *cells, *cost)
    return table


def draw_curves(rows: Sequence[dict[str, Any]], teacher: str, path: Path) -> None:
    """Quality against network calls a sample, and against what the fit cost, a line or mark a method."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    own = [row for row in rows if row["teacher"] == teacher]
    for method in dict.fromkeys(row["method"] for row in own):
        calls = sorted({row["nfe"] for row in own if row["method"] == method})
        at = {nfe: [row for row in own if (row["method"], row["nfe"]) == (method, nfe)] for nfe in calls}
        left.plot(calls, [_median(at[nfe], method, "fd_teacher") for nfe in calls], marker="o", label=method)
        costs = [max(1, _median(at[nfe], method, "network_calls")) for nfe in calls]
        right.plot(costs, [_median(at[nfe], method, "fd_teacher") for nfe in calls], "o", label=method)
    left.set(xlabel="network calls a sample (NFE)", ylabel="Frechet distance to the teacher", yscale="log")
    right.set(xlabel="network calls of the fit", xscale="log", yscale="log")
    left.legend()
    with write_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)


def draw_samples(args: Args, cells: Sequence[Cell], teacher: str, nfe: int, path: Path) -> None:
    """The same noises down the rows: each method in the order of ``args.methods``, its first seed; the teacher last."""
    own = [cell for cell in cells if (cell.teacher, cell.nfe, cell.seed) == (teacher, nfe, 0)]
    kept = [load_file(args.out / "samples" / f"{cell.name}.safetensors") for cell in own]
    lines = torch.stack([*(file["student"] for file in kept), kept[0]["teacher"]])
    if lines.ndim != 5:
        lines = lines.reshape(*lines.shape[:2], 1, 1, -1)
    with write_file(path) as temporary:
        Image.fromarray(tile(to_pixels(lines))).save(temporary, format="PNG")


def main(args: Args) -> None:
    if args.quick:
        args = replace(args, nfe=args.nfe[:1], seeds=1, seconds=min(args.seconds, 20.0))
    unknown = sorted(set(args.methods) - set(RIVALS))
    if unknown:
        raise ValueError(f"methods={unknown} are unknown: choose among {', '.join(map(repr, RIVALS))}")
    prepare_folder(args.out)
    cells = cells_of(args)
    rows = finish_all(args, cells)
    with write_file(args.out / "rows.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=2) + "\n")
    console = Console(width=170)
    for teacher in args.teacher:
        for nfe in args.nfe:
            console.print(summary(rows, teacher, nfe))
            draw_samples(args, cells, teacher, nfe, args.out / f"samples-{teacher}-{nfe}.png")
        draw_curves(rows, teacher, args.out / f"quality-{teacher}.png")
    print(f"Rows, samples and figures: {args.out}")


def _median(rows: Sequence[dict[str, Any]], method: str, name: str) -> float:
    return median(row[name] for row in rows if row["method"] == method)


if __name__ == "__main__":
    run(main, Args)
