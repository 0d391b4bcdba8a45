"""The comparison: every rival on the same teacher, noises and budget, evaluated alike; table, JSON and a figure.

    python -m experiments.compare --teacher digits --nfe 4 5 6 8 10 --seeds 3 --out results/
    python -m experiments.compare --quick

Finished rows are stored in ``--out`` and not repeated. Rivals that need no chance are fitted once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import product
from math import inf
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

from agents import clone
from experiments.figures import draw_curves
from experiments.parallel import in_parallel
from experiments.placement import Placement
from experiments.rivals.field import FIELD, Entry, takes_part
from experiments.rivals.rival import TRAJECTORIES, Sampler, StudentSampler, Task
from experiments.rivals.sigma_space import pool_of
from experiments.stored import file_name, once, same_settings
from experiments.tables import print_table
from redif_env.judging.bases import Base, bases_of, nearest_base
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.settings import DEFAULT_GRID
from redif_env.sb3.training.networks import NoiseSettings
from redif_env.storage.files import write_json
from redif_env.teachers.references import TEST_SEED, VALIDATION_SEED, ReferenceSet, reference_paths, reference_set
from redif_env.teachers.teacher import Teacher
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder

SECONDS = 20.0
WARM, FLOOR = "warm start", "teacher, other noises"
MEASURES = {"fd_data": 3, "mse_teacher": 4, "kd": 3, "precision": 3, "recall": 3, "density": 3, "coverage": 3}
"""Columns of the table beside the Frechet distance to the teacher, where they are known, and their digits."""
OF_ROWS = ("teacher", "nfe", "trained_nfe", "seeds", "methods", "out", "jobs", "quick")
"""Settings that may differ between the rows of one folder; the others may not, or they could not stand in one table."""


@dataclass(frozen=True)
class Args(Placement):
    teacher: tuple[str, ...] = ("digits",)
    nfe: tuple[int, ...] = (4, 5, 6, 8, 10)
    trained_nfe: tuple[int, ...] = (4, 6, 8)
    """Of these, where rivals that are trained take part; training-free ones do everywhere."""
    seeds: int = 3
    seconds: float | None = None
    """Time that each fit may take, on its share of the cores: 20 if not given, unbounded with network_calls alone.
    Endpoints and trajectories to train on and the warm start are given."""
    network_calls: int | None = None
    """Network calls that each fit may make, for comparisons that do not depend on the machine's speed; with seconds
    too, whichever is spent first ends the fit."""
    methods: tuple[str, ...] = tuple(FIELD)
    solver: str | None = None
    """Base solver of our actions, of rivals that learn the same, and of cloned networks. If not given, of linear steps
    or iPNDM and their grids the one that validation noises prefer, for each teacher and NFE."""
    grid: str = DEFAULT_GRID
    """Of a solver that is given."""
    initial_map: str | None = None
    """Or "linear", as in agents.ppo; of a solver that is given."""
    reference_size: int = 4096
    teacher_steps: int = 100
    """Predictions that the teacher spends on an endpoint to train on; evaluation has 100."""
    trajectories: int = TRAJECTORIES
    """Of the teacher, to the first noises to train on, for the methods that are fitted to some."""
    clone_updates: int = 400
    """Minibatches of cloning that make the warm start of all networks."""
    test_size: int = 2000
    choosing_size: int = 1024
    """Validation noises on which a base, and the grids of solvers, are chosen."""
    held_out_size: int = 512
    """Validation noises on which a fit is watched, and its best sampler chosen."""
    features: str | None = None
    """Of evaluation: "inception:PATH" with torch-fidelity's weights, or a vision model; small classifiers of digits, or
    pixels, if not given. What is chosen during a fit is always chosen by the latter."""
    data: str | None = None
    """Images to compare samples with besides the teacher's, as agents.ppo takes them."""
    out: Path = Path("results")
    jobs: int = 2
    """Fits at the same time, each with its share of the cores."""
    quick: bool = False
    """4 NFE, one seed, 20 seconds a fit, no networks, the likeliest base, and grids chosen on the noises that fits are
    watched on; in a folder of its own in out."""


@dataclass(frozen=True)
class Cell:
    """One fit of the table."""

    teacher: str
    method: str
    nfe: int
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return file_name(f"{self.teacher}-{self.method}-{self.nfe}-{self.seed}")


def seconds_of(args: Args) -> float:
    """Time that a fit may take; without a bound if network calls alone are bounded."""
    if args.seconds is not None:
        return args.seconds
    return SECONDS if args.network_calls is None else inf


def cells_of(args: Args, field: Mapping[str, Entry]) -> list[Cell]:
    """All fits, those of trained rivals first; those without chance once."""
    found = []
    for teacher, nfe, method in product(args.teacher, args.nfe, args.methods):
        trained = field[method].trained
        if takes_part(method, nfe // args.teacher_named(teacher).calls) and (nfe in args.trained_nfe or not trained):
            found += [Cell(teacher, method, nfe, seed) for seed in range(args.seeds if trained else 1)]
    return sorted(found, key=lambda cell: not field[cell.method].trained)


@cache
def evaluator(
    teacher: Teacher, size: int, seed: int, train_size: int, features: str | None = None, data: str | None = None
) -> Evaluator:
    """One for all fits of a process."""
    return Evaluator(teacher, size, seed, train_size=train_size, features=features, data=data)


def base_of(args: Args, teacher: str, nfe: int) -> Base:
    """What is given, or else the base that comes nearest to the teacher, chosen once; if quick, the likeliest."""
    if args.solver is not None:
        return Base(args.solver, args.grid, args.initial_map)
    if args.quick:
        return bases_of(args.teacher_named(teacher))[0]

    def choose() -> dict[str, str]:
        model, _, judge = given(args, teacher, args.choosing_size)
        steps = nfe // model.calls
        return asdict(nearest_base(judge, bases_of(model, steps), steps))

    return Base(**once(args.out / "bases" / f"{file_name(f'{teacher}-{nfe}')}.json", choose))


def given(args: Args, teacher: str, size: int) -> tuple[Teacher, ReferenceSet, Evaluator]:
    """The teacher, what may be trained on, and an evaluator of so many validation noises."""
    model = args.teacher_named(teacher)
    reference = reference_set(model, args.reference_size, num_steps=args.teacher_steps)
    return model, reference, evaluator(model, size, VALIDATION_SEED, args.reference_size)


def warm_folder(args: Args, teacher: str, nfe: int) -> Path:
    """Of the student that all networks begin as."""
    return args.out / "warm" / file_name(f"{teacher}-{nfe}")


def warm_up(key: tuple[str, int], args: Args) -> dict[str, Any]:
    """Clone the teacher, unless that is done; the clone's own row. ``key`` is the teacher's name and the NFE."""
    teacher, nfe = key
    folder = warm_folder(args, teacher, nfe)

    def make() -> dict[str, Any]:
        network, base = NoiseSettings(clone_updates=args.clone_updates), asdict(base_of(args, teacher, nfe))
        settings = clone.Args(
            teacher=teacher, num_steps=nfe, **base, network=network, device=args.device, out=folder / "run", resume=True
        )
        student, facts = clone.make(settings)
        student.save_pretrained(folder / "student")
        cell, costs = Cell(teacher, WARM, nfe, 0), {"train_seconds": facts["train_seconds"]}
        return evaluated(args, cell, StudentSampler(student), costs)

    return once(folder / "row.json", make)


def finish(work: tuple[Cell, Entry], args: Args) -> dict[str, Any]:
    """Fit, evaluate and store one cell, unless that is done."""
    return once(args.out / "rows" / f"{work[0].name}.json", partial(fit, args, *work))


def fit(args: Args, cell: Cell, entry: Entry) -> dict[str, Any]:
    """The row of one cell."""
    size = args.held_out_size if entry.trained else args.choosing_size
    warm = warm_folder(args, cell.teacher, cell.nfe) / "student" if entry.network else None
    base = base_of(args, cell.teacher, cell.nfe) if entry.needs_base else Base()
    teacher, *rest = given(args, cell.teacher, size)
    budget = (seconds_of(args), args.network_calls)
    given_to_all = {"warm": warm, "base": base, "trajectories": args.trajectories}
    fitted = entry.rival(Task(teacher, *rest, cell.nfe // teacher.calls, cell.seed, *budget, **given_to_all))
    costs = {"train_seconds": round(fitted.seconds, 1), "network_calls": fitted.network_calls}
    return evaluated(args, cell, fitted.sampler, {**costs, "described": fitted.described})


def evaluated(args: Args, cell: Cell, sampler: Sampler, facts: dict[str, Any]) -> dict[str, Any]:
    """The row of one sampler."""
    judge = test_evaluator(args, cell.teacher)
    samples = sampler(judge.noise, judge.condition)
    row = asdict(judge.row(cell.method, facts.get("described", ""), cell.nfe, samples))
    return {**row, **measures(judge, samples), "teacher": cell.teacher, "seed": cell.seed, **facts}


def test_evaluator(args: Args, teacher: str) -> Evaluator:
    """With the test noises."""
    sizes = args.test_size, TEST_SEED, args.reference_size
    return evaluator(args.teacher_named(teacher), *sizes, args.features, args.data)


def measures(judge: Evaluator, samples: torch.Tensor) -> dict[str, Any]:
    """All that is known of samples as a set, and what it is measured on."""
    return judge.set_measures(samples) | {"judged": judge.description}


def floor(args: Args, name: str) -> dict[str, Any]:
    """The row of the teacher on noises of the training set: the sampling floor."""
    teacher = args.teacher_named(name)
    reference = reference_set(teacher, args.reference_size, num_steps=args.teacher_steps)
    size = min(args.test_size, args.reference_size)
    judge = evaluator(teacher, size, TEST_SEED, args.reference_size, args.features, args.data)
    samples = reference.endpoints[:size].to(teacher.device)
    row = asdict(judge.row(FLOOR, "", args.teacher_steps, samples)) | measures(judge, samples)
    return row | {"teacher": name, "seed": 0, "train_seconds": 0.0}


def prepare(args: Args, cells: Sequence[Cell], field: Mapping[str, Entry]) -> None:
    """Compute once what all processes need."""
    for name in args.teacher:
        given(args, name, args.choosing_size)
        teacher, reference, _ = given(args, name, args.held_out_size)
        test_evaluator(args, name)
        own = [cell for cell in cells if cell.teacher == name]
        if any(cell.method == "redif-ppo, network" for cell in own):
            reference_paths(teacher, reference)
        if any(field[cell.method].paths for cell in own):
            pool_of(teacher, reference, args.trajectories)
        for nfe in sorted({cell.nfe for cell in own if field[cell.method].needs_base}):
            base_of(args, name, nfe).sampler(teacher, nfe // teacher.calls)


def finish_all(args: Args, cells: Sequence[Cell], field: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """The rows of the teachers, the warm starts and all cells, ``args.jobs`` at a time."""
    prepare(args, cells, field)
    floors = [once(args.out / "floor" / f"{file_name(name)}.json", partial(floor, args, name)) for name in args.teacher]
    work = [(cell, field[cell.method]) for cell in cells]
    warm = sorted({(cell.teacher, cell.nfe) for cell, entry in work if entry.network})
    rows = in_parallel(partial(warm_up, args=args), warm, args.jobs)
    return floors + rows + in_parallel(partial(finish, args=args), work, args.jobs)


def print_summary(rows: Sequence[dict[str, Any]], teacher: str, nfe: int) -> None:
    """One table: a line a method, nearest first; last the teacher on other noises, which is the sampling floor.

    The Frechet distance as median, mean and standard error over seeds, other measures as means, and the fit's cost.
    """
    own = [row for row in rows if row["teacher"] == teacher]
    chosen = [row for row in own if row["nfe"] == nfe and row["method"] != FLOOR]
    columns = [name for name in MEASURES if chosen[0].get(name) is not None]
    groups = [[row for row in chosen if row["method"] == method] for method in {row["method"] for row in chosen}]
    groups.sort(key=lambda group: median(row["fd_teacher"] for row in group))
    groups.append([row for row in own if row["method"] == FLOOR])
    names = ("method", "fd_teacher", "mean", "std. error", *columns, "seconds", "network calls")
    title = f"{teacher}, {nfe} NFE, {chosen[0]['judged']}"
    print_table(title, names, [line(group, columns) for group in groups])


def line(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """The seeds of one method as a line of the table."""
    distances = [row["fd_teacher"] for row in rows]
    error = f"{stdev(distances) / len(rows) ** 0.5:.3f}" if len(rows) > 1 else "-"
    cells = [f"{mean(row[name] for row in rows):.{MEASURES[name]}f}" for name in columns]
    calls = mean(row.get("network_calls", 0) for row in rows)
    cost = [f"{mean(row['train_seconds'] for row in rows):.0f}", f"{calls:,.0f}"]
    return [rows[0]["method"], f"{median(distances):.3f}", f"{mean(distances):.3f}", error, *cells, *cost]


def check(args: Args, field: Mapping[str, Entry]) -> None:
    """Refuse methods that are unknown, or cannot take part, and a grid whose solver is not given.

    Raises:
        ValueError: naming them.
    """
    unknown = sorted(set(args.methods) - set(field))
    if unknown:
        raise ValueError(f"methods={unknown} are unknown: choose among {', '.join(map(repr, field))}")
    if seconds_of(args) <= 0 or (args.network_calls is not None and args.network_calls < 1):
        raise ValueError(
            f"seconds={args.seconds} and network_calls={args.network_calls} must be above 0: a fit needs some"
        )
    if args.solver is None and (args.grid, args.initial_map) != (Args.grid, Args.initial_map):
        raise ValueError(
            f"grid={args.grid!r} and initial_map={args.initial_map!r} belong to a solver that is named: "
            "add --solver, or leave them out"
        )
    networks = [method for method in args.methods if field[method].network]
    for name in args.teacher:
        if networks and not list(args.teacher_named(name).network.parameters()):
            raise ValueError(f"teacher={name!r} has no weights: leave {', '.join(networks)} out of --methods")
    found = {(cell.teacher, cell.nfe) for cell in cells_of(args, field)}
    for teacher, nfe in product(args.teacher, args.nfe):
        if (teacher, nfe) not in found:
            raise ValueError(
                f"nfe={nfe} has none of --methods on teacher={teacher!r}: add it to --trained-nfe, or choose others"
            )


def quick(args: Args, field: Mapping[str, Entry]) -> Args:
    """What ``--quick`` stands for."""
    networks = {name for name, entry in field.items() if entry.network}
    alone = tuple(name for name in args.methods if name not in networks)
    seconds = min(seconds_of(args), SECONDS)
    size = min(args.choosing_size, args.held_out_size)
    out = args.out / "quick"
    return replace(args, nfe=args.nfe[:1], seeds=1, methods=alone, out=out, choosing_size=size, seconds=seconds)


def compare(args: Args, field: Mapping[str, Entry]) -> None:
    """Fit, evaluate, print and draw all of ``field`` that ``args`` ask for."""
    args = quick(args, field) if args.quick else args
    check(args, field)
    cells = cells_of(args, field)
    prepare_folder(args.out)
    same_settings(args.out, {name: value for name, value in asdict(args).items() if name not in OF_ROWS})
    rows = finish_all(args, cells, field)
    write_json(args.out / "rows.json", rows)
    for teacher in args.teacher:
        stem = file_name(teacher)
        for nfe in args.nfe:
            print_summary(rows, teacher, nfe)
        draw_curves([row for row in rows if row["method"] != FLOOR], teacher, args.out / f"quality-{stem}.png")
    print(f"Rows and figures: {args.out}")


def main(args: Args) -> None:
    compare(args, FIELD)


if __name__ == "__main__":
    run(main, Args)
