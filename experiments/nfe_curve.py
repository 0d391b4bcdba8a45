"""Quality against network calls: the students of ``agents.ppo``, several seeds, beside every training-free solver.

    python -m experiments.nfe_curve --nfe 4 6 8 --seeds 3 --out runs/nfe-curve
    python -m experiments.nfe_curve --teacher cifar10 --nfe 4 6 8 --solvers-only 10 12 16 --network-calls 120000 \
        --num-envs 256 --device cuda --jobs 1 --out runs/cifar10

The second needs a GPU. Finished runs are stored in ``--out`` and not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from agents import ppo
from experiments.placement import Placement
from experiments.stored import once
from experiments.tables import print_table, spread
from experiments.tasks import Task, finish_all
from redif_env.judging.baselines import Baseline, Which, baselines_of
from redif_env.judging.evaluation import SCREEN_SIZE, SHORTLIST, Evaluator, Row
from redif_env.mdp.settings import DEFAULT_GRID, DEFAULT_SOLVER
from redif_env.students.student import Student
from redif_env.teachers.references import sizes_named
from redif_env.training.command import run
from redif_env.training.report import save_samples
from redif_env.training.runs import prepare_folder

SOURCES = ("mode_switches", "fd_switched", "fd_others", "fd_pixels", "recall", "coverage")
"""What the second table shows: where the distance comes from; with :attr:`Args.data`, that to the data too."""


@dataclass(frozen=True)
class Args(Placement):
    teacher: str = "digits"
    solver: str = DEFAULT_SOLVER
    """Base solver of the students."""
    grid: str = DEFAULT_GRID
    initial_map: str | None = None
    """Or "linear", as in agents.ppo."""
    network_calls: int | None = None
    """Training budget of each run; this and the next settings are by default those of agents.ppo."""
    table_calls: int = 0
    """Network calls before it, for the table that the policy begins with, as in agents.ppo."""
    learning_rate: float | None = None
    num_envs: int | None = None
    exploration: tuple[float, float] | None = None
    """At the start and the end, as in agents.ppo."""
    held_out_every: int = ppo.Args.held_out_every
    """Rollouts between two evaluations on validation noises."""
    nfe: tuple[int, ...] = (4, 6, 8)
    solvers_only: tuple[int, ...] = (10,)
    """Step counts at which only the solvers are evaluated, to compare with students of fewer."""
    seeds: int = 3
    test_size: int | None = None
    """Number of noises of the report, as in agents.ppo."""
    data: str | None = None
    """Images to compare samples with besides the teacher's, as agents.ppo takes them."""
    out: Path = Path("runs/nfe-curve")
    jobs: int = 2
    """Runs at the same time, each with its share of the cores."""
    baselines: Which = "all"
    """Training-free solvers: none, the few that are best at such call counts, or all on all grids."""
    screen_size: int = SCREEN_SIZE
    """Test noises on which all solvers are screened."""
    shortlist: int = SHORTLIST
    """Solvers that are evaluated on all test noises: those that are best in the screening."""


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
        table_calls=args.table_calls,
        learning_rate=args.learning_rate,
        num_envs=args.num_envs,
        exploration=args.exploration,
        held_out_every=args.held_out_every,
        device=args.device,
        dtype=args.dtype,
        test_size=args.test_size,
        data=args.data,
        baselines="none",
        out=args.out / f"redif-ppo-{nfe}-{seed}",
    )
    return Task("redif-ppo", settings)


def evaluator_of(args: Args) -> Evaluator:
    """With the test noises."""
    return Evaluator(args.teacher_named(args.teacher), args.test_size, data=args.data)


def solvers_at(args: Args, nfe: int) -> list[dict[str, Any]]:
    """The rows of training-free solvers, best first, its own with where its distance comes from; stored in ``out``."""

    def evaluated() -> list[dict[str, Any]]:
        evaluator, rows = evaluator_of(args), []
        candidates = baselines_of(args.baselines)
        for row, samples in evaluator.each_baseline(nfe, candidates, args.screen_size, args.shortlist):
            rows.append(row)
            if row == min(rows, key=distance_of):
                nearest = samples
        best, *others = sorted(rows, key=distance_of)
        return [{**asdict(best), **evaluator.set_measures(nearest)}, *map(asdict, others)]

    found: list[dict[str, Any]] = once(args.out / f"solvers-{nfe}.json", evaluated)
    return found


def mean_steps(args: Args, nfe: int, seed: int) -> float:
    """The distance of a student that takes its mean steps in every state, as a scheduler does; stored in its folder."""
    folder = task_of(args, nfe, seed).settings.out

    def evaluated() -> float:
        frozen = Student.from_pretrained(folder / "student", args.device).frozen()
        return evaluator_of(args).student_row("mean steps", frozen).fd_teacher

    found: float = once(folder / "mean_steps.json", evaluated)
    return found


def distance_of(row: Row) -> float:
    """What rows are sorted by."""
    return row.fd_teacher


def best_solver(args: Args, nfe: int, distance: float) -> list[str]:
    """Two cells: the best solver at ``nfe``, and the ratio of ``distance`` to its own; dashes where none is known."""
    if nfe not in (*args.nfe, *args.solvers_only):
        return ["-", "-"]
    best = solvers_at(args, nfe)[0]
    described = f"{best['method']} {best['grid']}: {best['fd_teacher']:.3f}, {best['mse_teacher']:.5f}"
    return [described, f"{distance / best['fd_teacher']:.2f}"]


def print_summary(args: Args, rows: Sequence[dict[str, Any]]) -> None:
    """Medians over seeds, the spread, what mean steps have, and the ratios to the best solver at equal, two more and
    twice the calls.
    """
    lines = []
    for nfe in args.nfe:
        ours = [row for row in rows if row["nfe"] == nfe]
        distances = [row["fd_teacher"] for row in ours]
        middle = median(distances)
        frozen = spread([mean_steps(args, nfe, seed) for seed in range(args.seeds)])
        cells = [str(nfe), spread(distances), frozen, f"{median(row['mse_teacher'] for row in ours):.5f}"]
        solvers = (best_solver(args, count, middle) for count in (nfe, nfe + 2, 2 * nfe))
        lines.append([*cells, *(cell for pair in solvers for cell in pair)])
    columns = [cell for count in ("same NFE", "NFE + 2", "NFE x 2") for cell in (f"best solver, {count}", "ratio")]
    size = args.test_size or sizes_named(args.teacher).test_size
    title = f"{args.teacher}: median of {args.seeds} seeds (min to max), {size:,} held-out noises"
    print_table(title, ("NFE", "fd_teacher", "mean steps", "mse_teacher", *columns), lines)


def print_sources(args: Args, rows: Sequence[dict[str, Any]]) -> None:
    """Where the distance comes from: samples in another mode than their endpoint, and the others."""
    columns = ("sampler", "NFE", *shown(args))
    print_table(
        "mode switches (samples nearer to another noise's endpoint), and the rest", columns, sources(args, rows)
    )


def sources(args: Args, rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """The lines of that table: the best solver and the students at each number of calls."""
    for nfe in (*args.nfe, *args.solvers_only):
        best = solvers_at(args, nfe)[0]
        yield [f"{best['method']} {best['grid']}", str(nfe), *(f"{best[name]:.4f}" for name in shown(args))]
        if nfe in args.nfe:
            ours = [row for row in rows if row["nfe"] == nfe]
            yield ["redif-ppo", str(nfe), *(f"{median(row[name] for row in ours):.4f}" for name in shown(args))]


def shown(args: Args) -> tuple[str, ...]:
    """The measures of that table."""
    return SOURCES if args.data is None else (*SOURCES, "fd_data")


def draw_samples(args: Args, nfe: int) -> None:
    """``samples-N.png``: the same noises down the rows, best solver, student of the first seed, teacher."""
    first = solvers_at(args, nfe)[0]
    best = Row(**{item.name: first.get(item.name) for item in fields(Row)})
    student = Student.from_pretrained(args.out / f"redif-ppo-{nfe}-0" / "student", args.device)
    path = args.out / f"samples-{nfe}.png"
    save_samples(path, student, [best], evaluator_of(args), [Baseline(best.method, best.grid)])
    print(f"Picture: {path}")


def main(args: Args) -> None:
    prepare_folder(args.out)
    tasks = [task_of(args, *key) for key in product(args.nfe, range(args.seeds))]
    rows = [row for found in finish_all(tasks, args.jobs) for row in found]
    print_summary(args, rows)
    print_sources(args, rows)
    for nfe in args.nfe:
        draw_samples(args, nfe)


if __name__ == "__main__":
    run(main, Args)
