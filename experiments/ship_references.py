"""Compute what is shipped with the digits teacher: reference sets, initial maps and the linear steps of make demo.

    python -m experiments.ship_references

Run after ``experiments.train_teacher``. Files that are in ``redif_env/assets/cache`` already stay: delete the folder
first to drop the sets of an older teacher.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import tyro

from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.solvers import SOLVERS
from redif_env.fitted.initial_maps import fit_initial_map
from redif_env.fitted.linear_solver import fit_solver, solver_key
from redif_env.mdp.settings import DEFAULT_GRID, DEFAULT_SOLVER
from redif_env.measures.distances import root_mean_square
from redif_env.storage.cache import cached_file
from redif_env.storage.files import ASSETS
from redif_env.teachers.references import TRAIN_SEED, VALIDATION_SEED, base_samples, reference_set
from redif_env.teachers.teacher import load_teacher


@dataclass(frozen=True)
class Args:
    """Sizes of the two sets, and the step counts at which the base solver's samples are stored."""

    train_size: int = 4096
    validation_size: int = 512
    num_steps: tuple[int, ...] = (4, 6, 8)


def main(args: Args) -> None:
    folder = ASSETS / "cache"
    os.environ["REDIF_CACHE"] = str(folder)
    teacher = load_teacher("digits")
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
