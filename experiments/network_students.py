"""Students that are networks of their own: what PPO makes of a clone of the teacher, beside the gradient.

    python -m experiments.network_students --seeds 3 --out results/networks

All rows of a network begin as one clone of the teacher, whatever the seed, and are evaluated on the same noises. The
gradient through the sampler is given the seconds that PPO took. Finished rows are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from agents import clone, ppo
from experiments.parallel import in_parallel
from experiments.rivals.regression import regression
from experiments.rivals.rival import Sampler, StudentSampler, Task
from experiments.stored import once
from experiments.tables import print_table, spread
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.settings import TeacherSettings, shared_teacher
from redif_env.sb3.training.networks import NoiseSettings
from redif_env.storage.files import write_json
from redif_env.teachers.references import VALIDATION_SEED, reference_paths, reference_set
from redif_env.teachers.teacher import Teacher
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder

WARM, PPO, GRADIENT = "warm start", "PPO", "gradient, equal seconds"
NETWORKS = {
    "whole": NoiseSettings(clone_updates=1000, clone_batch_size=128, clone_rate=1e-3),
    # A network that begins as a part of the teacher's needs more cloning.
    "narrow": NoiseSettings(
        width=0.65, time_embedding_dim=32, clone_updates=3000, clone_batch_size=256, clone_rate=2e-3
    ),
}
"""Architecture and cloning, by name."""
DIGITS = {"mse_teacher": 4, "precision": 3, "recall": 3}


@dataclass(frozen=True)
class Args:
    teacher: str = "digits"
    num_steps: int = 4
    solver: str = "dpm++3m"
    grid: str = "time^1.5"
    """Of the base solver: without a late start, as when the docs' tables were made."""
    initial_map: str | None = None
    """As in agents.ppo."""
    networks: tuple[str, ...] = tuple(NETWORKS)
    gradient: bool = True
    """Train the first network by the gradient too."""
    seeds: int = 3
    network_calls: int = 180_000
    """Of PPO's episodes; its updates come on top."""
    reference_size: int = 16384
    teacher_steps: int = 30
    """Predictions that the teacher spends on each endpoint to train on; evaluation has 100."""
    test_size: int = 2000
    held_out_size: int = 512
    out: Path = Path("results/networks")
    jobs: int = 2
    """Students at the same time, each with its share of the cores."""
    device: str = "cpu"
    """Of networks, in training and evaluation; "auto" is the machine's accelerator (cuda, xpu, mps)."""


def placed(args: Args) -> Teacher:
    return shared_teacher(TeacherSettings(teacher=args.teacher, device=args.device))


def settings(kind: type[Any], args: Args, **others: Any) -> Any:
    """Settings of a program, with what the experiment says of all of them."""
    names = ("teacher", "num_steps", "solver", "grid", "initial_map", "device")
    return kind(**{name: getattr(args, name) for name in names}, resume=True, **others)


def warm(name: str, args: Args) -> dict[str, Any]:
    """Clone the teacher, unless that is done; the clone's row."""

    def make() -> dict[str, Any]:
        student, facts = clone.make(settings(clone.Args, args, network=NETWORKS[name], out=args.out / name))
        student.save_pretrained(args.out / name / "student")
        row = evaluated(args, name, WARM, StudentSampler(student), facts["train_seconds"])
        return {**row, "parameters": sum(weight.numel() for weight in student.network.parameters())}

    found: dict[str, Any] = once(args.out / name / "row.json", make)
    return found


def rows_of(key: tuple[int, str], args: Args) -> list[dict[str, Any]]:
    """The rows of one seed and network, each stored once made."""
    seed, name = key
    out = args.out / f"{name}-{seed}"
    rows = [once(out / "ppo.json", partial(by_ppo, args, name, seed, out / "ppo"))]
    if args.gradient and name == args.networks[0]:
        seconds = rows[0]["seconds"]
        rows.append(once(out / "gradient.json", partial(by_gradient, args, name, seed, seconds)))
    return rows


def by_ppo(args: Args, name: str, seed: int, out: Path) -> dict[str, Any]:
    """``python -m agents.ppo --action noise`` from the clone."""
    network = replace(NETWORKS[name], init=str(args.out / name / "student"), clone_updates=None)
    sizes = {
        item: getattr(args, item) for item in ("network_calls", "reference_size", "teacher_steps", "held_out_size")
    }
    given = settings(ppo.Args, args, action="noise", seed=seed, network=network, held_out_every=10, out=out, **sizes)
    student, facts = ppo.train(given)
    student.save_pretrained(out / "student")
    return evaluated(args, name, PPO, StudentSampler(student), facts["train_seconds"])


def by_gradient(args: Args, name: str, seed: int, seconds: float) -> dict[str, Any]:
    """The same clone by the gradient of the features' distance, through all steps."""
    teacher = placed(args)
    reference = reference_set(teacher, args.reference_size, num_steps=args.teacher_steps)
    chooser = Evaluator(teacher, args.held_out_size, VALIDATION_SEED, args.teacher_steps, args.reference_size)
    task = Task(teacher, reference, chooser, args.num_steps, seed, seconds, warm=args.out / name / "student")
    fitted = regression(task)
    return evaluated(args, name, GRADIENT, fitted.sampler, fitted.seconds)


def evaluated(args: Args, name: str, method: str, sampler: Sampler, seconds: float) -> dict[str, Any]:
    """A row of the table."""
    judge = Evaluator(placed(args), args.test_size, train_size=args.reference_size)
    with torch.inference_mode():
        samples = sampler(judge.noise, judge.condition)
    row = asdict(judge.row(method, "learned", args.num_steps, samples))
    return {**row, **judge.set_measures(samples), "network": name, "seconds": seconds}


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a network and method: the Frechet distance, its ratio to the clone's, other measures; medians."""
    found = []
    clones = {row["network"]: row for row in rows if row["method"] == WARM}
    for name, method in dict.fromkeys((row["network"], row["method"]) for row in rows):
        group = [row for row in rows if (row["network"], row["method"]) == (name, method)]
        distances = [row["fd_teacher"] for row in group]
        share = median(distances) / clones[name]["fd_teacher"]
        measures = [f"{median(row[item] for row in group):.{digits}f}" for item, digits in DIGITS.items()]
        cells = [name, f"{clones[name]['parameters']:,}", method, spread(distances), f"{share:.2f}", *measures]
        found.append([*cells, f"{median(row['seconds'] for row in group):.0f}"])
    return found


def main(args: Args) -> None:
    if set(args.networks) - set(NETWORKS):
        raise ValueError(f"networks={args.networks} must be among {', '.join(map(repr, NETWORKS))}")
    prepare_folder(args.out)
    teacher = placed(args)
    # What all processes need is computed once, by this one.
    reference_paths(teacher, reference_set(teacher, args.reference_size, num_steps=args.teacher_steps))
    Evaluator(teacher, args.test_size)
    Evaluator(teacher, args.held_out_size, VALIDATION_SEED, args.teacher_steps)
    rows = in_parallel(partial(warm, args=args), args.networks, args.jobs)
    keys = list(product(range(args.seeds), args.networks))
    rows += [row for found in in_parallel(partial(rows_of, args=args), keys, args.jobs) for row in found]
    write_json(args.out / "rows.json", rows)
    columns = ("network", "parameters", "method", "fd_teacher", "of warm start", *DIGITS, "seconds")
    print_table(f"{args.teacher}, {args.num_steps} NFE, {args.test_size:,} held-out noises", columns, lines(rows))


if __name__ == "__main__":
    run(main, Args)
