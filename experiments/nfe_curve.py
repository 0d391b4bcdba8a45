"""Quality against network calls: the students of ``agents.ppo``, several seeds, beside every training-free solver.

    python -m experiments.nfe_curve --nfe 4 6 8 --seeds 3 --out runs/nfe-curve

Finished runs are stored in ``--out`` and not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from agents import ppo
from experiments.stored import once
from experiments.tables import print_table, spread
from experiments.tasks import Task, finish_all
from redif_env.judging.baselines import Baseline
from redif_env.judging.evaluation import Evaluator, Row
from redif_env.mdp.settings import DEFAULT_GRID, DEFAULT_SOLVER, TeacherSettings, shared_teacher
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder

SOURCES = ("mode_switches", "fd_switched", "fd_others", "fd_pixels", "recall", "coverage")
"""What the second table shows: where the distance comes from."""


@dataclass(frozen=True)
class Args:
    teacher: str = "digits"
    solver: str = DEFAULT_SOLVER
    """Base solver of the students."""
    grid: str = DEFAULT_GRID
    initial_map: str | None = None
    """Or "linear", as in agents.ppo."""
    network_calls: int | None = None
    """Training budget of each run; this and the next are by default those of agents.ppo."""
    learning_rate: float | None = None
    nfe: tuple[int, ...] = (4, 6, 8)
    solvers_only: tuple[int, ...] = (10,)
    """Step counts at which only the solvers are evaluated, to compare with students of fewer."""
    seeds: int = 3
    out: Path = Path("runs/nfe-curve")
    jobs: int = 2
    """Runs at the same time, each with its share of the cores."""


def task_of(args: Args, nfe: int, seed: int) -> Task:
    """The run of one student of the table."""
    settings = ppo.Args(
        teacher=args.teacher,
        solver=args.solver,
        grid=args.grid,
        initial_map=args.initial_map,
        num_steps=nfe,
        seed=seed,
        network_calls=args.network_calls,
        learning_rate=args.learning_rate,
        out=args.out / f"redif-ppo-{nfe}-{seed}",
    )
    return Task("redif-ppo", settings)


def solvers_at(out: Path, teacher_name: str, nfe: int) -> list[Row]:
    """All training-free solvers, best first; stored in ``out`` like the runs."""

    def evaluated() -> list[dict[str, Any]]:
        teacher = shared_teacher(TeacherSettings(teacher=teacher_name))
        return [asdict(row) for row in Evaluator(teacher).baselines(nfe)]

    return [Row(**row) for row in once(out / f"solvers-{nfe}.json", evaluated)]


def best_solver(args: Args, nfe: int, distance: float) -> list[str]:
    """Two cells: the best solver at ``nfe``, and the ratio of ``distance`` to its own; dashes where none is known."""
    if nfe not in (*args.nfe, *args.solvers_only):
        return ["-", "-"]
    best = solvers_at(args.out, args.teacher, nfe)[0]
    return [f"{best.method} {best.grid}: {best.fd_teacher:.3f}", f"{distance / best.fd_teacher:.2f}"]


def print_summary(args: Args, rows: Sequence[dict[str, Any]]) -> None:
    """Medians over seeds, the spread, and the ratios to the best solver at equal calls and with two more."""
    lines = []
    for nfe in args.nfe:
        ours = [row for row in rows if row["nfe"] == nfe]
        distances = [row["fd_teacher"] for row in ours]
        middle = median(distances)
        cells = [str(nfe), spread(distances), f"{median(row['mse_teacher'] for row in ours):.5f}"]
        lines.append([*cells, *best_solver(args, nfe, middle), *best_solver(args, nfe + 2, middle)])
    names = ("NFE", "fd_teacher", "mse_teacher", "best solver, same NFE", "ratio", "best solver, NFE + 2")
    title = f"{args.teacher}: median of {args.seeds} seeds (min to max), 2,000 held-out noises"
    print_table(title, (*names, "ratio"), lines)


def print_sources(args: Args, rows: Sequence[dict[str, Any]]) -> None:
    """Where the distance comes from: samples in another mode than their endpoint, and the others."""
    columns = ("sampler", "NFE", *SOURCES)
    print_table(
        "mode switches (samples nearer to another noise's endpoint), and the rest", columns, sources(args, rows)
    )


def sources(args: Args, rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """The lines of that table: the best solver and the students at each number of calls."""
    evaluator = Evaluator(shared_teacher(TeacherSettings(teacher=args.teacher)))
    for nfe in (*args.nfe, *args.solvers_only):
        best = solvers_at(args.out, args.teacher, nfe)[0]
        baseline = Baseline(best.method, best.grid)
        solver = evaluator.set_measures(baseline(evaluator.teacher, evaluator.noise, nfe, evaluator.condition))
        yield [f"{best.method} {best.grid}", str(nfe), *(f"{solver[name]:.4f}" for name in SOURCES)]
        if nfe in args.nfe:
            ours = [row for row in rows if row["nfe"] == nfe]
            yield ["redif-ppo", str(nfe), *(f"{median(row[name] for row in ours):.4f}" for name in SOURCES)]


def main(args: Args) -> None:
    prepare_folder(args.out)
    tasks = [task_of(args, *key) for key in product(args.nfe, range(args.seeds))]
    rows = [row for found in finish_all(tasks, args.teacher, args.jobs) for row in found]
    print_summary(args, rows)
    print_sources(args, rows)


if __name__ == "__main__":
    run(main, Args)
