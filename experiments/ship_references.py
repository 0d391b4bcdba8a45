"""Compute what is shipped with the built-in teachers besides their weights, in ``redif_env/assets/cache``.

    python -m experiments.ship_references                       # digits: sets, initial maps, linear steps of make demo
    python -m experiments.ship_references --teacher cifar10     # sets; an hour on one core

Run after ``experiments.train_teacher``. Files that are there already stay: delete the folder first to drop the sets of
an older teacher.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.solvers import SOLVERS
from redif_env.fitted.initial_maps import fit_initial_map
from redif_env.fitted.linear_solver import fit_solver, solver_key
from redif_env.mdp.settings import DEFAULT_GRID, DEFAULT_SOLVER, TeacherSettings, shared_teacher
from redif_env.measures.distances import root_mean_square
from redif_env.storage.cache import cached, cached_file
from redif_env.storage.files import ASSETS
from redif_env.teachers.references import (
    TEST_SEED,
    TRAIN_SEED,
    VALIDATION_SEED,
    base_samples,
    draw_starts,
    reference_key,
    reference_set,
    sizes_of,
)
from redif_env.teachers.teacher import Teacher


@dataclass(frozen=True)
class Args:
    teacher: Literal["digits", "cifar10"] = "digits"
    device: str = "cpu"
    """Of the teacher; "auto" is the machine's accelerator (cuda, xpu, mps)."""
    train_size: int = 4096
    """Sizes of the two sets of digits; those of cifar10 are its defaults."""
    validation_size: int = 512
    num_steps: tuple[int, ...] = (4, 6, 8)
    """Step counts at which the base solver's samples of digits are stored."""


def main(args: Args) -> None:
    folder = ASSETS / "cache"
    os.environ["REDIF_CACHE"] = str(folder)
    teacher = shared_teacher(TeacherSettings(teacher=args.teacher, device=args.device))
    if args.teacher == "digits":
        ship_digits(args, teacher, folder)
    else:
        ship_pictures(teacher)


def ship_pictures(teacher: Teacher) -> None:
    """The endpoints of the teacher's default sets, as pictures of 8 bits: a quarter of the size of float32."""
    sizes = sizes_of(teacher)
    counts = sizes.reference_size, sizes.held_out_size, sizes.test_size
    for size, seed in zip(counts, (TRAIN_SEED, VALIDATION_SEED, TEST_SEED), strict=True):
        noise, condition = draw_starts(teacher, size, seed)
        key = reference_key(teacher, noise, condition, sizes.teacher_steps)
        cached(key, partial(pictures, teacher, noise, condition, sizes.teacher_steps))
        print(f"{size} endpoints of {sizes.teacher_steps} network calls, seed {seed}: {key}")


def pictures(teacher: Teacher, noise: Tensor, condition: Tensor, num_steps: int) -> Tensor:
    """The endpoints ``(N, C, H, W)`` as uint8, from 0 for -1 to 255 for 1."""
    endpoints = teacher.endpoint(noise, num_steps, condition).cpu()
    return ((endpoints.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def ship_digits(args: Args, teacher: Teacher, folder: Path) -> None:
    """Sets of two sizes, the initial maps and linear steps of the demo, and samples of the base solver."""
    reference_set(teacher, args.validation_size, VALIDATION_SEED)
    reference = reference_set(teacher, args.train_size, TRAIN_SEED)
    maps = {grid: fit_initial_map(teacher, GRIDS[grid]) for grid in ("time@4", "time^1.25@2.5")}
    for count in args.num_steps:
        base = base_samples(teacher, reference, SOLVERS[DEFAULT_SOLVER], GRIDS[DEFAULT_GRID], count)
        distance = root_mean_square(base, reference.endpoints[: len(base)]).mean()
        print(f"{count} steps, {DEFAULT_SOLVER} on {DEFAULT_GRID}: distance to the endpoints {distance:.5f}")
    del os.environ["REDIF_CACHE"]  # the trajectories that linear steps are fitted to are too large to ship
    linear = teacher, GRIDS["time^1.25@2.5"], 4, maps["time^1.25@2.5"]
    fit_solver(*linear)
    fitted = cached_file(solver_key(*linear))
    if fitted is not None and fitted.parent != folder:
        shutil.copy(fitted, folder)


if __name__ == "__main__":
    main(tyro.cli(Args))
