"""How much of a student's distance is chance: the Frechet distance by the number of noises, and of infinitely many.

    python -m agents.clone --out runs/clone-4
    python -m experiments.set_sizes --students runs/clone-4/student

Between finite sets the distance is too large, by about a constant over their size, and a line through the means of
disjoint sets estimates what is left of infinitely many (Chong & Forsyth 2020, arXiv 1911.07023). The constant is small
here, as samples are paired with endpoints, and larger the farther pairs are apart: it compares pairs, not sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from redif_env.judging.evaluation import Evaluator
from redif_env.measures.metrics import frechet_distance, mean_squared_error, strayed
from redif_env.students.student import Student
from redif_env.teachers.teacher import load_teacher
from redif_env.training.command import run


@dataclass(frozen=True)
class Args:
    students: tuple[Path, ...]
    """Folders of students of one teacher."""
    teacher: str = "digits"
    """By whom they are judged."""
    sizes: tuple[int, ...] = (2000, 4000, 8000, 16000)
    """Noises; each divides the last, which is how many are drawn of the test noises."""
    teacher_steps: int = 100


def main(args: Args) -> None:
    judge = Evaluator(load_teacher(args.teacher), checked(args.sizes)[-1], teacher_steps=args.teacher_steps)
    table = Table(
        "student", title=f"FD to teacher by the number of test noises, {judge.feature_name}: means of disjoint sets"
    )
    for name in ("parameters", *map(str, args.sizes), f"range of {args.sizes[0]}", "infinite", "strayed", "MSE"):
        table.add_column(name, justify="right")
    for folder in args.students:
        table.add_row(str(folder), *cells(judge, Student.from_pretrained(folder), args.sizes))
    Console(width=160).print(table)


def checked(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """``sizes``, if disjoint sets of each make up the last.

    Raises:
        ValueError: if they do not.
    """
    if len(set(sizes)) < 2 or list(sizes) != sorted(sizes) or any(sizes[-1] % size for size in sizes):
        raise ValueError(
            f"sizes={sizes} must rise, two at least, and each divide the last: such as 2000 4000 8000 16000"
        )
    return sizes


@torch.inference_mode()
def cells(judge: Evaluator, student: Student, sizes: tuple[int, ...]) -> list[str]:
    """A student's row."""
    samples = judge.teacher.clip(student.trajectory(judge.noise, None, judge.condition)[-1].x)
    features, endpoints = judge.embed(samples), judge.endpoint_features
    found = [distances(features, endpoints, size) for size in sizes]
    means = [mean(some) for some in found]
    return [
        f"{sum(weight.numel() for weight in student.network.parameters()):,}",
        *(f"{value:.4f}" for value in means),
        f"{min(found[0]):.3f} to {max(found[0]):.3f}",
        f"{intercept(sizes, means):.4f}",
        f"{strayed(features[: sizes[0]], endpoints[: sizes[0]]).double().mean():.1%}",
        f"{mean_squared_error(samples, judge.endpoints):.5f}",
    ]


def distances(features: Tensor, others: Tensor, size: int) -> list[float]:
    """The Frechet distance of every ``size`` rows of ``(N, D)`` to the same rows of others."""
    return [frechet_distance(some, same) for some, same in zip(features.split(size), others.split(size), strict=True)]


def intercept(sizes: tuple[int, ...], values: list[float]) -> float:
    """Where a line through ``values`` over one by ``sizes`` meets infinitely many: least squares."""
    return float(np.polynomial.Polynomial.fit(1 / np.asarray(sizes), values, 1).convert().coef[0])


if __name__ == "__main__":
    run(main, Args)
