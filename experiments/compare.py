"""The comparison: every rival on the same teacher, noises and budget, judged by one judge; table, JSON and figures.

    python -m experiments.compare --teacher digits --nfe 4 5 6 8 10 --seeds 3 --out results/
    python -m experiments.compare --quick

What is finished is kept in ``--out`` and not repeated. Rivals that need no chance are fitted once.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from agents import clone
from experiments.figures import draw_curves, draw_samples, draw_schedules
from experiments.rivals.base import Base, bases_of
from experiments.rivals.field import FIELD, Entry, takes_part
from experiments.rivals.rival import Clock, StudentSampler, Task
from experiments.rivals.shortlist import nearest
from experiments.rivals.training_free import STARTED, STARTED_GRIDS
from experiments.stored import file_name, once, same_settings, write_json
from redif_env.diffusion.grids import GRIDS
from redif_env.fitted.initial_maps import fit_initial_map
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.settings import DEFAULT_GRID, shared_teacher
from redif_env.sb3.training.networks import NoiseSettings
from redif_env.storage.files import write_file
from redif_env.teachers.references import TEST_SEED, VALIDATION_SEED, ReferenceSet, reference_paths, reference_set
from redif_env.teachers.teacher import Teacher
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder

Field = Mapping[str, Entry]

WARM, FLOOR = "warm start", "teacher, other noises"
MEASURES = {
    "fd_data": 3,
    "mse_teacher": 4,
    "kd": 3,
    "swd": 3,
    "precision": 3,
    "recall": 3,
    "density": 3,
    "coverage": 3,
    "nll": 3,
    "wasserstein": 4,
}
"""Columns of the table beside the Frechet distance to the teacher, where they are known, and their digits."""
PICTURED = 12
OF_ALL_ROWS = (
    "seconds",
    "solver",
    "grid",
    "initial_map",
    "reference_size",
    "teacher_steps",
    "clone_updates",
    "test_size",
    "choosing_size",
    "held_out_size",
    "features",
)
"""Settings that rows of one folder have in common, or they could not stand in one table."""


@dataclass(frozen=True)
class Args:
    teacher: tuple[str, ...] = ("digits",)
    nfe: tuple[int, ...] = (4, 5, 6, 8, 10)
    trained_nfe: tuple[int, ...] = (4, 6, 8)
    """Of these, where rivals that are trained take part; training-free ones do everywhere."""
    seeds: int = 3
    seconds: float = 20.0
    """Time that each fit may take, on its share of the cores; endpoints to train on and the warm start are given."""
    budgets: tuple[float, ...] = (1.0,)
    """Multiples of that time, for all rivals that are trained: 10 is what those need that train a whole network."""
    methods: tuple[str, ...] = tuple(FIELD)
    solver: str | None = None
    """Base solver that our actions, and rivals that learn the same, begin from; so do the steps of networks. For each
    teacher and NFE the one that validation noises prefer, if not given, of linear steps or iPNDM and their grids."""
    grid: str = DEFAULT_GRID
    """Of a solver that is given."""
    initial_map: str | None = None
    """Or "linear", as in agents.ppo; of a solver that is given."""
    reference_size: int = 4096
    teacher_steps: int = 100
    """Predictions that the teacher spends on an endpoint to train on; judges have 100."""
    clone_updates: int = 400
    """Minibatches of cloning that make the warm start of all networks."""
    test_size: int = 2000
    choosing_size: int = 1024
    """Validation noises on which a base, and the grids of solvers, are chosen."""
    held_out_size: int = 512
    """Validation noises on which a fit is watched, and the best of it kept."""
    features: str | None = None
    """Of the judge: "inception:PATH" with torch-fidelity's weights, or a vision model; small classifiers of digits, or
    pixels, if not given. What is chosen among during a fit is always chosen by the latter."""
    out: Path = Path("results")
    jobs: int = 2
    """Fits at the same time, each with its share of the cores."""
    quick: bool = False
    """4 NFE, one seed, 20 seconds a fit, no networks, nothing fitted to the teacher's ways but the base, which is not
    chosen, and grids chosen on the noises that fits are watched on; in a folder of their own in out."""


@dataclass(frozen=True)
class Cell:
    """One fit of the table."""

    teacher: str
    method: str
    nfe: int
    seed: int
    budget: float

    @property
    def label(self) -> str:
        """The method's name in the table."""
        return self.method if self.budget == 1 else f"{self.method} (x{self.budget:g})"

    @property
    def name(self) -> str:
        """Of its files."""
        return file_name(f"{self.teacher}-{self.label}-{self.nfe}-{self.seed}")


def cells_of(args: Args, field: Field) -> list[Cell]:
    """All fits, the longest first; those without chance once."""
    found = []
    for teacher, nfe, method in product(args.teacher, args.nfe, args.methods):
        entry = field[method]
        left_out = entry.trained and nfe not in args.trained_nfe
        if left_out or not takes_part(method, nfe // placed(teacher).calls):
            continue
        runs = product(range(args.seeds), args.budgets) if entry.trained else [(0, 1.0)]
        found += [Cell(teacher, method, nfe, seed, budget) for seed, budget in runs]
    return sorted(found, key=lambda cell: (-cell.budget, not field[cell.method].trained))


@cache
def placed(name: str) -> Teacher:
    """The teacher, on the CPU."""
    return shared_teacher(name, torch.device("cpu"), torch.float32)


@cache
def evaluator(teacher: str, size: int, seed: int, train_size: int, features: str | None = None) -> Evaluator:
    """One for all fits of a process."""
    return Evaluator(placed(teacher), size, seed, train_size=train_size, features=features)


def base_of(args: Args, teacher: str, nfe: int) -> Base:
    """What is given, or else the base that comes nearest to the teacher, chosen once; if quick, the likeliest."""
    if args.solver is not None:
        return Base(args.solver, args.grid, args.initial_map)
    if args.quick:
        return bases_of(placed(teacher))[0]

    def make() -> dict[str, str]:
        bases = {" ".join(asdict(base).values()): base for base in bases_of(placed(teacher))}
        task = Task(*given(args, teacher, args.choosing_size), nfe // placed(teacher).calls, 0, args.seconds)
        samplers = {name: base.sampler(task.teacher, task.num_steps) for name, base in bases.items()}
        return asdict(bases[nearest(task, samplers, Clock(args.seconds))])

    return Base(**once(args.out / "bases" / f"{file_name(f'{teacher}-{nfe}')}.json", make))


def begins(entry: Entry) -> bool:
    """Whether a base is needed."""
    return entry.trained or entry.base


def given(args: Args, teacher: str, size: int) -> tuple[Teacher, ReferenceSet, Evaluator]:
    """The teacher, what may be trained on, and a judge of so many validation noises."""
    reference = reference_set(placed(teacher), args.reference_size, num_steps=args.teacher_steps)
    return placed(teacher), reference, evaluator(teacher, size, VALIDATION_SEED, args.reference_size)


def warm_folder(args: Args, teacher: str, nfe: int) -> Path:
    """Where the student is kept that all networks begin as."""
    return args.out / "warm" / file_name(f"{teacher}-{nfe}")


def warm_up(args: Args, teacher: str, nfe: int, threads: int) -> dict[str, Any]:
    """Clone the teacher, unless that is done; the clone's own row."""
    folder = warm_folder(args, teacher, nfe)

    def make() -> dict[str, Any]:
        torch.set_num_threads(threads)
        network = NoiseSettings(clone_updates=args.clone_updates)
        student, facts = clone.make(
            clone.Args(
                teacher=teacher,
                num_steps=nfe,
                **asdict(base_of(args, teacher, nfe)),
                network=network,
                out=folder / "run",
                resume=True,
            )
        )
        student.save_pretrained(folder / "student")
        cell = Cell(teacher, WARM, nfe, 0, 1.0)
        return judged(args, cell, StudentSampler(student), {"train_seconds": facts["train_seconds"]})

    return once(folder / "row.json", make)


def finish(args: Args, cell: Cell, entry: Entry, threads: int) -> dict[str, Any]:
    """Fit, judge and keep one cell, unless that is done."""
    return once(args.out / "rows" / f"{cell.name}.json", partial(fit, args, cell, entry, threads))


def fit(args: Args, cell: Cell, entry: Entry, threads: int) -> dict[str, Any]:
    """The row of one cell."""
    torch.set_num_threads(threads)
    size = args.held_out_size if entry.trained else args.choosing_size
    warm = warm_folder(args, cell.teacher, cell.nfe) / "student" if entry.network else None
    seconds = args.seconds * cell.budget
    base = base_of(args, cell.teacher, cell.nfe) if begins(entry) else Base()
    teacher, *rest = given(args, cell.teacher, size)
    task = Task(teacher, *rest, cell.nfe // teacher.calls, cell.seed, seconds, warm=warm, base=base)
    fitted = entry.rival(task)
    facts = {
        "train_seconds": round(fitted.seconds, 1),
        "network_calls": fitted.network_calls,
        "described": fitted.described,
        "levels": fitted.levels,
        "spent": fitted.spent,
    }
    return judged(args, cell, fitted.sampler, facts)


def judged(args: Args, cell: Cell, sampler: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """The row of one sampler; some of its samples are kept beside the teacher's."""
    teacher = placed(cell.teacher)
    judge = evaluator(cell.teacher, args.test_size, TEST_SEED, args.reference_size, args.features)
    samples = sampler(judge.noise, judge.condition)
    pictures = [teacher.images(part[:PICTURED]).contiguous() for part in (samples, judge.endpoints)]
    with write_file(args.out / "samples" / f"{cell.name}.safetensors") as temporary:
        save_file(dict(zip(("student", "teacher"), pictures, strict=True)), temporary)
    return {
        **asdict(judge.row(cell.label, facts.get("described", ""), cell.nfe, samples)),
        **measures(judge, teacher.clip(samples)),
        **{"teacher": cell.teacher, "seed": cell.seed, "budget": cell.budget, "judged": judge.described},
        **facts,
    }


def measures(judge: Evaluator, samples: torch.Tensor) -> dict[str, float]:
    """All that is known of samples as a set."""
    return judge.set_measures(samples) | judge.exact_measures(samples)


def floor(args: Args, name: str) -> dict[str, Any]:
    """The row of the teacher on noises of the training set: what chance alone makes of two perfect sets."""
    reference = reference_set(placed(name), args.reference_size, num_steps=args.teacher_steps)
    size = min(args.test_size, args.reference_size)
    judge = evaluator(name, size, TEST_SEED, args.reference_size, args.features)
    samples = reference.endpoints[:size].to(placed(name).device)
    row = asdict(judge.row(FLOOR, "", args.teacher_steps, samples)) | measures(judge, placed(name).clip(samples))
    return row | {"teacher": name, "seed": 0, "budget": 1.0, "judged": judge.described, "train_seconds": 0.0}


def finish_all(args: Args, cells: Sequence[Cell], field: Field) -> list[dict[str, Any]]:
    """The rows of the teachers, the warm starts and all cells, ``args.jobs`` at a time."""
    entries = [field[cell.method] for cell in cells]
    networks = [cell for cell, entry in zip(cells, entries, strict=True) if entry.network]
    for name in args.teacher:  # what all processes need is computed once
        given(args, name, args.choosing_size)
        _, reference, _ = given(args, name, args.held_out_size)
        evaluator(name, args.test_size, TEST_SEED, args.reference_size, args.features)
        if any(cell.method.startswith("redif") and cell.teacher == name for cell in networks):
            reference_paths(placed(name), reference)
        for grid in STARTED_GRIDS if set(args.methods) & set(STARTED) else ():
            fit_initial_map(placed(name), GRIDS[grid])
        for nfe in sorted({cell.nfe for cell in cells if cell.teacher == name and begins(field[cell.method])}):
            base_of(args, name, nfe).sampler(placed(name), nfe // placed(name).calls)
    floors = [once(args.out / "floor" / f"{file_name(name)}.json", partial(floor, args, name)) for name in args.teacher]
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    warm = sorted({(cell.teacher, cell.nfe) for cell in networks})
    if args.jobs == 1:
        rows = [warm_up(args, *key, threads) for key in warm]
        return floors + rows + [finish(args, *pair, threads) for pair in zip(cells, entries, strict=True)]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        started = [pool.submit(warm_up, args, *key, threads) for key in warm]
        rows = [future.result() for future in started]
        return floors + rows + list(pool.map(partial(finish, args, threads=threads), cells, entries))


def summary(rows: Sequence[dict[str, Any]], teacher: str, nfe: int) -> Table:
    """One table: a line a method, nearest first; below them the teacher on other noises, which is what chance makes.

    The first measure as median, mean and standard error over seeds, the others as means, beside what the fit cost.
    """
    own = [row for row in rows if row["teacher"] == teacher]
    chosen = [row for row in own if row["nfe"] == nfe and row["method"] != FLOOR]
    columns = [name for name in MEASURES if chosen[0].get(name) is not None]
    table = Table("method", title=f"{teacher}, {nfe} NFE, {chosen[0]['judged']}")
    for name in ("fd_teacher", "mean", "std. error", *columns, "seconds", "network calls"):
        table.add_column(name, justify="right")
    groups = [[row for row in chosen if row["method"] == method] for method in {row["method"] for row in chosen}]
    for group in sorted(groups, key=lambda group: median(row["fd_teacher"] for row in group)):
        table.add_row(*line(group, columns))
    table.add_section()
    table.add_row(*line([row for row in own if row["method"] == FLOOR], columns))
    return table


def line(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """The seeds of one method as a line of the table."""
    distances = [row["fd_teacher"] for row in rows]
    error = f"{stdev(distances) / len(rows) ** 0.5:.3f}" if len(rows) > 1 else "-"
    cells = [f"{mean(row[name] for row in rows):.{MEASURES[name]}f}" for name in columns]
    calls = mean(row.get("network_calls", 0) for row in rows)
    cost = [f"{mean(row['train_seconds'] for row in rows):.0f}", f"{calls:,.0f}"]
    spent = [row["spent"] for row in rows if row.get("spent")]
    name = rows[0]["method"] + (f" [{mean(spent):.2f} calls]" if spent else "")
    return [name, f"{median(distances):.3f}", f"{mean(distances):.3f}", error, *cells, *cost]


def check(args: Args, field: Field) -> None:
    """Refuse methods that are unknown, or cannot take part, and a grid whose solver is not given.

    Raises:
        ValueError: naming them.
    """
    unknown = sorted(set(args.methods) - set(field))
    if unknown:
        raise ValueError(f"methods={unknown} are unknown: choose among {', '.join(map(repr, field))}")
    if args.solver is None and (args.grid, args.initial_map) != (Args.grid, Args.initial_map):
        raise ValueError(
            f"grid={args.grid!r} and initial_map={args.initial_map!r} belong to a solver that is named: "
            "add --solver, or leave them out"
        )
    networks = [method for method in args.methods if field[method].network]
    for name in args.teacher:
        if networks and not list(placed(name).network.parameters()):
            raise ValueError(f"teacher={name!r} has no weights: leave {', '.join(networks)} out of --methods")


def compare(args: Args, field: Field) -> None:
    """Fit, judge, print and draw all of ``field`` that ``args`` ask for."""
    check(args, field)
    if args.quick:
        alone = tuple(name for name in args.methods if not field[name].network and name not in STARTED)
        seconds, out = min(args.seconds, 20.0), args.out / "quick"
        size = min(args.choosing_size, args.held_out_size)
        args = replace(args, nfe=args.nfe[:1], seeds=1, seconds=seconds, methods=alone, choosing_size=size, out=out)
    cells = cells_of(args, field)
    for teacher, nfe in product(args.teacher, args.nfe):
        if not any((cell.teacher, cell.nfe) == (teacher, nfe) for cell in cells):
            raise ValueError(
                f"nfe={nfe} has none of --methods on teacher={teacher!r}: add it to --trained-nfe, or choose others"
            )
    prepare_folder(args.out)
    same_settings(args.out, {name: getattr(args, name) for name in OF_ALL_ROWS})
    rows = finish_all(args, cells, field)
    write_json(args.out / "rows.json", rows)
    console = Console(width=190)
    for teacher in args.teacher:
        for nfe in args.nfe:
            console.print(summary(rows, teacher, nfe))
            own = [cell for cell in cells if (cell.teacher, cell.nfe, cell.seed) == (teacher, nfe, 0)]
            kept = [args.out / "samples" / f"{cell.name}.safetensors" for cell in own]
            draw_samples(kept, [cell.label for cell in own], args.out / f"samples-{teacher}-{nfe}.png")
            draw_schedules(rows, teacher, nfe, placed(teacher).schedule, args.out / f"schedules-{teacher}-{nfe}.png")
        draw_curves([row for row in rows if row["method"] != FLOOR], teacher, args.out / f"quality-{teacher}.png")
    print(f"Rows, samples and figures: {args.out}")


def main(args: Args) -> None:
    compare(args, FIELD)


if __name__ == "__main__":
    run(main, Args)
