"""Students that are networks of their own: what PPO makes of a warm start, beside the gradient through the sampler.

    python -m experiments.network_students --seeds 3 --out results/networks

All rows of a network begin as one clone of the teacher, whatever the seed, and are judged on the same noises. The
gradient is given the seconds that PPO took, and once more the network calls that PPO made (a backward pass counts as
two calls).
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from agents import clone, ppo
from experiments.rivals.regression import regression
from experiments.rivals.rival import BACKWARD_CALLS, Sampler, StudentSampler, Task
from experiments.stored import file_name, once, write_json
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.settings import shared_teacher
from redif_env.sb3.training.networks import NoiseSettings
from redif_env.sb3.training.recipes import settled
from redif_env.students.student import Student
from redif_env.teachers.references import VALIDATION_SEED, reference_paths, reference_set
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder

WARM, PPO, EQUAL_SECONDS, EQUAL_CALLS = "warm start", "PPO", "gradient, equal seconds", "gradient, equal calls"
METHODS = (WARM, PPO, EQUAL_SECONDS, EQUAL_CALLS)
OF_WIDTHS = (
    "widths",
    "time_embedding_dims",
    "clone_updates",
    "clone_batch_sizes",
    "clone_rates",
    "network_calls",
    "learning_rates",
    "explorations",
)
"""Settings that each width has its own of: of its network, its cloning and PPO."""
MEASURES = ("fd_teacher", "mse_teacher", "kd", "precision", "recall", "coverage")


@dataclass(frozen=True)
class Args:
    teacher: str = "digits"
    num_steps: int = 4
    solver: str = "dpm++3m"
    grid: str = "time^1.5"
    """Of the base solver: without a late start, as when most tables of the docs were made."""
    initial_map: str | None = None
    """As in agents.ppo."""
    seeds: int = 3
    methods: tuple[str, ...] = METHODS
    network_calls: tuple[int, ...] = (180_000, 180_000)
    """Of PPO's episodes, for each width; its updates come on top. A narrower network makes more of them in its time."""
    clone_updates: tuple[int, ...] = (1000, 3000)
    """Minibatches of cloning, for each width; a network that does not begin with the teacher's weights needs more."""
    clone_batch_sizes: tuple[int, ...] = (128, 256)
    clone_rates: tuple[float, ...] = (1e-3, 2e-3)
    learning_rates: tuple[float, ...] = (2e-4, 2e-4)
    """Of PPO, for each width."""
    explorations: tuple[tuple[float, float], ...] = ((0.15, 0.05), (0.15, 0.05))
    widths: tuple[float, ...] = (1.0, 0.65)
    """Channels of the students, as a multiple of the teacher's; the gradient has the first of them alone."""
    time_embedding_dims: tuple[int | None, ...] = (None, 32)
    """Of the time's embedding, for each width; as many as the width has if not given."""
    lora_ranks: tuple[int, ...] = ()
    """Adapters on a copy of the teacher, of these ranks."""
    student: str | None = None
    """Of --action solver, whose steps all begin from; the base solver's if not given."""
    reference_size: int = 16384
    teacher_steps: int = 30
    """Predictions that the teacher spends on each of them; judges have 100."""
    test_size: int = 2000
    held_out_size: int = 512
    out: Path = Path("results/networks")
    jobs: int = 2
    """Students at the same time, each with its share of the cores."""


@dataclass(frozen=True)
class Cell:
    """One network and one seed."""

    network: NoiseSettings
    network_calls: int
    learning_rate: float
    exploration: tuple[float, float]
    seed: int

    @property
    def described(self) -> str:
        rank = self.network.lora_rank
        return f"adapters, rank {rank}" if rank else f"width {self.network.width:g}"

    @property
    def kind(self) -> str:
        """Of the network, as a folder's name."""
        return self.described.replace(", rank ", "-").replace(" ", "-")


def cells_of(args: Args) -> list[Cell]:
    """Every network with every seed."""
    columns = [getattr(args, name) for name in OF_WIDTHS]
    kinds = []
    for width, dim, updates, size, rate, *facts in zip(*columns, strict=True):
        network = NoiseSettings(
            base_student=args.student,
            width=width,
            time_embedding_dim=dim,
            clone_updates=updates,
            clone_batch_size=size,
            clone_rate=rate,
        )
        kinds.append((network, *facts))
    whole, *facts = kinds[0]
    kinds += [(replace(whole, lora_rank=rank), *facts) for rank in args.lora_ranks]
    return [Cell(*kind, seed) for seed, kind in product(range(args.seeds), kinds)]


def warm(args: Args, cell: Cell, threads: int) -> dict[str, Any]:
    """The row of the clone, kept once made."""
    torch.set_num_threads(threads)
    bench = Bench(args, cell)
    return once(bench.cloned.parent / "row.json", bench.clone)


def finish(args: Args, cell: Cell, threads: int) -> list[dict[str, Any]]:
    """The rows of one cell, each kept once made."""
    rows = {WARM: warm(args, cell, threads)}
    bench = Bench(args, cell)
    if PPO in args.methods:
        rows[PPO] = once(bench.folder / "ppo.json", bench.ppo)
    for method in set(args.methods) & {EQUAL_SECONDS, EQUAL_CALLS}:
        if cell.network.lora_rank or cell.network.width != args.widths[0]:
            continue
        spent = rows[PPO]["seconds"], rows[PPO]["network_calls"]
        seconds, calls = (spent[0], None) if method == EQUAL_SECONDS else (float("inf"), spent[1])
        make = partial(bench.gradient, method, seconds, calls)
        rows[method] = once(bench.folder / f"{file_name(method)}.json", make)
    return [rows[method] for method in METHODS if method in rows]


class Bench:
    """Makes and judges the rows of one cell."""

    def __init__(self, args: Args, cell: Cell) -> None:
        self.args, self.cell, self.folder = args, cell, args.out / f"{cell.kind}-{cell.seed}"
        self.cloned = args.out / f"{cell.kind}-clone" / "student"
        self.teacher = shared_teacher(args.teacher, torch.device("cpu"), torch.float32)

    def clone(self) -> dict[str, Any]:
        """The warm start of all others."""
        settings = clone.Args(
            teacher=self.args.teacher,
            num_steps=self.args.num_steps,
            solver=self.args.solver,
            grid=self.args.grid,
            initial_map=self.args.initial_map,
            network=self.cell.network,
            out=self.cloned.parent,
            resume=True,
        )
        student, facts = clone.make(settings)
        student.save_pretrained(self.cloned)
        return self.judged(WARM, StudentSampler(student), facts["train_seconds"], 0)

    def ppo(self) -> dict[str, Any]:
        """``python -m agents.ppo --action noise`` from the clone."""
        settings = settled(
            ppo.Args(
                teacher=self.args.teacher,
                num_steps=self.args.num_steps,
                solver=self.args.solver,
                grid=self.args.grid,
                initial_map=self.args.initial_map,
                action="noise",
                seed=self.cell.seed,
                network_calls=self.cell.network_calls,
                learning_rate=self.cell.learning_rate,
                exploration=self.cell.exploration,
                network=replace(self.cell.network, init=str(self.cloned), clone_updates=None),
                reference_size=self.args.reference_size,
                teacher_steps=self.args.teacher_steps,
                held_out_size=self.args.held_out_size,
                held_out_every=10,
                out=self.folder / "ppo",
                resume=True,
            )
        )
        student, facts = ppo.train(settings)
        student.save_pretrained(self.folder / "ppo" / "student")
        steps = facts["environment_steps"]
        # A rollout asks for the value of one state more, and every epoch goes forward and backward.
        calls = steps + steps // self.args.num_steps + steps * settings.epochs * (1 + BACKWARD_CALLS)
        return self.judged(PPO, StudentSampler(student), facts["train_seconds"], calls)

    def gradient(self, method: str, seconds: float, calls: int | None) -> dict[str, Any]:
        """The same clone by the gradient of the features' distance, through all steps."""
        args = self.args
        reference = reference_set(self.teacher, args.reference_size, num_steps=args.teacher_steps)
        chooser = Evaluator(self.teacher, args.held_out_size, VALIDATION_SEED, args.teacher_steps, args.reference_size)
        task = Task(self.teacher, reference, chooser, args.num_steps, self.cell.seed, seconds, calls, warm=self.cloned)
        fitted = regression(task)
        return self.judged(method, fitted.sampler, fitted.seconds, fitted.network_calls)

    def judged(self, method: str, sampler: Sampler, seconds: float, calls: int) -> dict[str, Any]:
        """A row of the table."""
        judge = Evaluator(self.teacher, self.args.test_size, train_size=self.args.reference_size)
        with torch.inference_mode():
            samples = sampler(judge.noise, judge.condition)
        network = Student.from_pretrained(self.cloned).network
        return {
            **asdict(judge.row(method, "learned", self.args.num_steps, samples)),
            **judge.set_measures(self.teacher.clip(samples)),
            **{"network": self.cell.described, "seed": self.cell.seed, "judged": judge.described},
            **{"seconds": seconds, "network_calls": calls},
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
        }


def summary(rows: Sequence[dict[str, Any]], args: Args) -> Table:
    """A line a network and method: medians over seeds, the range of the first measure, and its ratio to the clone's."""
    title = f"{args.teacher}, {args.num_steps} NFE, {args.seeds} seeds, {rows[0]['judged']}"
    table = Table("network", "parameters", title=title)
    table.add_column("method", no_wrap=True)
    for name in ("fd_teacher", "range", "of warm start", *MEASURES[1:], "seconds", "network calls"):
        table.add_column(name, justify="right")
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network]
        begun = median(row["fd_teacher"] for row in own if row["method"] == WARM)
        for method in dict.fromkeys(row["method"] for row in own):
            table.add_row(network, f"{own[0]['parameters']:,}", method, *_numbers(own, method, begun))
    return table


def _numbers(rows: Sequence[dict[str, Any]], method: str, begun: float) -> list[str]:
    own = [row for row in rows if row["method"] == method]
    found = sorted(row["fd_teacher"] for row in own)

    def middle(name: str) -> float:
        return median(row[name] for row in own)

    cells = [f"{median(found):.3f}", f"{found[0]:.3f}-{found[-1]:.3f}", f"{median(found) / begun:.2f}"]
    cells += [f"{middle(name):.4f}" for name in MEASURES[1:]]
    return [*cells, f"{middle('seconds'):.0f}", f"{middle('network_calls'):,.0f}"]


def main(args: Args) -> None:
    unknown = sorted(set(args.methods) - set(METHODS))
    for name in OF_WIDTHS[1:]:
        if len(getattr(args, name)) != len(args.widths):
            raise ValueError(f"{name}={getattr(args, name)} must be as many as widths={args.widths}")
    if unknown or WARM not in args.methods:
        raise ValueError(f"methods={args.methods} must hold {WARM!r} and be among {', '.join(map(repr, METHODS))}")
    if set(args.methods) & {EQUAL_SECONDS, EQUAL_CALLS} and PPO not in args.methods:
        raise ValueError(f"methods={args.methods} must hold {PPO!r}, which the gradient's budget is taken from")
    prepare_folder(args.out)
    teacher = shared_teacher(args.teacher, torch.device("cpu"), torch.float32)
    # What all processes need is computed once, by this one.
    reference_paths(teacher, reference_set(teacher, args.reference_size, num_steps=args.teacher_steps))
    Evaluator(teacher, args.test_size)
    Evaluator(teacher, args.held_out_size, VALIDATION_SEED, args.teacher_steps)
    cells, threads = cells_of(args), max(1, (os.cpu_count() or 1) // args.jobs)
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        # One clone a network, before the seeds need it.
        first = [cell for cell in cells if not cell.seed]
        list(pool.map(warm, [args] * len(first), first, [threads] * len(first)))
        found = pool.map(finish, [args] * len(cells), cells, [threads] * len(cells))
        rows = [row for own in found for row in own]
    write_json(args.out / "rows.json", rows)
    Console(width=190).print(summary(rows, args))
    print(f"Rows and students: {args.out}")


if __name__ == "__main__":
    run(main, Args)
