"""Quality against network calls: PPO's student and the state-free search, several seeds, beside every solver.

    python -m experiments.nfe_curve --nfe 4 6 8 --seeds 3 --out runs/nfe-curve

Finished runs are kept in ``--out`` and not repeated.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.table import Table

from agents import cem, ppo
from experiments.stored import once
from experiments.tasks import Task, finish_all
from redif_env.judging.baselines import Baseline
from redif_env.judging.evaluation import Evaluator, Row
from redif_env.mdp.settings import DEFAULT_GRID, DEFAULT_SOLVER, shared_teacher
from redif_env.sb3.training.recipes import settled
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder


@dataclass(frozen=True)
class Args:
    teacher: str = "digits"
    solver: str = DEFAULT_SOLVER
    """Base solver that students begin from."""
    grid: str = DEFAULT_GRID
    initial_map: str | None = None
    """Or "linear", as in agents.ppo."""
    network_calls: int | None = None
    """Training budget of each run of PPO; this and the next are by default those of agents.ppo."""
    learning_rate: float | None = None
    nfe: tuple[int, ...] = (4, 6, 8)
    solvers_only: tuple[int, ...] = (10,)
    """Step counts at which only the solvers are judged, to compare with students of fewer."""
    seeds: int = 3
    out: Path = Path("runs/nfe-curve")
    methods: tuple[str, ...] = ("redif-ppo", "cem")
    jobs: int = 2
    """Runs at the same time, each with its share of the cores."""


class Begun(Protocol):
    """Settings that say what students begin from, and how long they train."""

    teacher: str
    solver: str
    grid: str
    initial_map: str | None
    network_calls: int | None
    learning_rate: float | None


def run_of(args: Begun, nfe: int, seed: int) -> ppo.Args:
    """What the runs of one step count and seed have in common."""
    return ppo.Args(
        teacher=args.teacher,
        solver=args.solver,
        grid=args.grid,
        initial_map=args.initial_map,
        num_steps=nfe,
        seed=seed,
        network_calls=args.network_calls,
        learning_rate=args.learning_rate,
    )


def ppo_settings(given: ppo.Args, out: Path) -> ppo.Args:
    """The run of one student of the table."""
    return replace(given, out=out / f"redif-ppo-{given.num_steps}-{given.seed}")


def privileged_settings(given: ppo.Args, out: Path) -> ppo.Args:
    """The same with a baseline that knows the endpoint."""
    return replace(given, privileged_baseline=True, out=out / f"redif-ppo-privileged-{given.num_steps}-{given.seed}")


def large_settings(given: ppo.Args, out: Path) -> ppo.Args:
    """More calls, in larger batches, and the best student chosen on four times the noises.

    From 8 NFE on, what is left to gain is so little that the chance of a small run decides.
    """
    return replace(
        given,
        network_calls=1_920_000,
        num_envs=256,
        held_out_size=2048,
        out=out / f"redif-ppo-large-{given.num_steps}-{given.seed}",
    )


def cem_settings(given: ppo.Args, out: Path) -> cem.Args:
    """The run of the search that sees no state, with the same budget."""
    return cem.Args(
        teacher=given.teacher,
        solver=given.solver,
        grid=given.grid,
        initial_map=given.initial_map,
        num_steps=given.num_steps,
        seed=given.seed,
        network_calls=settled(given).network_calls,
        out=out / f"cem-{given.num_steps}-{given.seed}",
    )


SETTINGS = {
    "redif-ppo": ppo_settings,
    "redif-ppo-privileged": privileged_settings,
    "redif-ppo-large": large_settings,
    "cem": cem_settings,
}


def solvers_at(out: Path, teacher_name: str, nfe: int) -> list[Row]:
    """All training-free solvers, best first; kept in ``out`` like the runs."""

    def judged() -> list[dict[str, Any]]:
        teacher = shared_teacher(teacher_name, torch.device("cpu"), torch.float32)
        return [asdict(row) for row in Evaluator(teacher).baselines(nfe)]

    return [Row(**row) for row in once(out / f"solvers-{nfe}.json", judged)]


def best_solver(args: Args, nfe: int, distance: float) -> list[str]:
    """Two cells: the best solver at ``nfe`` and how ``distance`` compares; dashes where solvers were not judged."""
    if nfe not in (*args.nfe, *args.solvers_only):
        return ["-", "-"]
    best = solvers_at(args.out, args.teacher, nfe)[0]
    return [f"{best.method} {best.grid}: {best.fd_teacher:.3f}", f"{distance / best.fd_teacher:.2f}"]


def print_summary(args: Args, rows: list[dict[str, Any]]) -> None:
    """Medians over seeds, the spread, and the ratios to the best solver at equal calls and with two more."""
    table = Table(title=f"{args.teacher}: median of {args.seeds} seeds (min to max), 2,000 held-out noises")
    names = ("NFE", "fd_teacher", "mse_teacher", "best solver, same NFE", "ratio", "best solver, NFE + 2", "ratio")
    table.add_column("method")
    for name in names:
        table.add_column(name, justify="right")
    for nfe, method in product(args.nfe, args.methods):
        ours = [row for row in rows if (row["method"], row["nfe"]) == (method, nfe)]
        distances = [row["fd_teacher"] for row in ours]
        middle = median(distances)
        cells = [method, str(nfe), f"{middle:.3f} ({min(distances):.3f} to {max(distances):.3f})"]
        cells.append(f"{median(row['mse_teacher'] for row in ours):.5f}")
        table.add_row(*cells, *best_solver(args, nfe, middle), *best_solver(args, nfe + 2, middle))
    Console(width=150).print(table)


def print_sources(args: Args, rows: list[dict[str, Any]]) -> None:
    """Where the distance comes from: samples that ended in another mode, and how far off the others are."""
    measures = ("strayed", "fd_switched", "fd_others", "fd_pixels", "recall", "coverage")
    table = Table("sampler", "NFE", *measures, title="samples nearer to another noise's endpoint, and the rest")
    evaluator = Evaluator(shared_teacher(args.teacher, torch.device("cpu"), torch.float32))
    for nfe in (*args.nfe, *args.solvers_only):
        best = solvers_at(args.out, args.teacher, nfe)[0]
        baseline = Baseline(best.method, best.grid)
        solver = evaluator.set_measures(baseline(evaluator.teacher, evaluator.noise, nfe, evaluator.condition))
        table.add_row(f"{best.method} {best.grid}", str(nfe), *(f"{solver[name]:.4f}" for name in measures))
        for method in args.methods if nfe in args.nfe else ():
            ours = [row for row in rows if (row["method"], row["nfe"]) == (method, nfe)]
            table.add_row(method, str(nfe), *(f"{median(row[name] for row in ours):.4f}" for name in measures))
    Console(width=150).print(table)


def main(args: Args) -> None:
    prepare_folder(args.out)
    tasks = [
        Task(method, SETTINGS[method](run_of(args, nfe, seed), args.out))
        for nfe, method, seed in product(args.nfe, args.methods, range(args.seeds))
    ]
    rows = [row for rows in finish_all(tasks, args.teacher, args.jobs) for row in rows]
    print_summary(args, rows)
    print_sources(args, rows)


if __name__ == "__main__":
    run(main, Args)
