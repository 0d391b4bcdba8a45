"""What it is worth to begin late: solvers that take the initial noise, or a linear map of it, for a sample of a level
with less of it.

    python -m experiments.late_start
    python -m experiments.late_start --teacher mnist --power 1 --size 256
    python -m experiments.late_start --solvers ipndm2 --power 1 --initial-maps noise linear

A line for each place to begin, ``sigma / alpha`` there, the schedule's own first. The longest runs, here 40 calls, show
what is lost by it: a solver that long makes no error of its own worth mentioning. On validation noises, of which no
table reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from rich.console import Console
from rich.table import Table

from redif_env.diffusion.grids import TimeGrid
from redif_env.diffusion.solvers import SOLVERS, sample
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.settings import initial_map_of, look_up, shared_teacher
from redif_env.teachers.references import VALIDATION_SEED
from redif_env.training.command import run


@dataclass(frozen=True)
class Args:
    teacher: str = "digits"
    solvers: tuple[str, ...] = ("ipndm2", "dpm++3m")
    power: float = 1.5
    """Of the time grid."""
    sigma_max: tuple[float, ...] = (60.0, 20.0, 8.0, 4.0)
    """Places to begin, beside the schedule's own."""
    nfe: tuple[int, ...] = (4, 6, 8, 40)
    initial_maps: tuple[str, ...] = ("noise",)
    """Or "linear" too: from where a linear map takes the noise (redif_env.fitted.initial_maps)."""
    size: int = 512
    """Noises."""


def main(args: Args) -> None:
    judge = Evaluator(shared_teacher(args.teacher, torch.device("cpu"), torch.float32), args.size, VALIDATION_SEED)
    table = Table("solver", "initial_map", title=f"{args.teacher}: fd_teacher / mse_teacher, {judge.described}")
    for name in ("from", *(f"{nfe} NFE" for nfe in args.nfe)):
        table.add_column(name, justify="right")
    for name in args.solvers:
        for start, sigma_max in product(args.initial_maps, (None, *args.sigma_max)):
            if start == "linear" and sigma_max is None:
                continue
            cells = [cell(judge, name, TimeGrid(args.power, sigma_max), start, nfe) for nfe in args.nfe]
            table.add_row(name, start, "its own" if sigma_max is None else f"{sigma_max:g}", *cells)
    Console(width=120).print(table)


@torch.inference_mode()
def cell(judge: Evaluator, name: str, grid: TimeGrid, start: str, nfe: int) -> str:
    """Both distances of a solver's samples."""
    solver, steps = look_up("solvers", name, SOLVERS), nfe // judge.teacher.calls
    begin = initial_map_of(None if start == "noise" else start, judge.teacher, grid)
    noise = judge.noise if begin is None else begin(judge.noise, judge.condition)
    row = judge.row("", "", nfe, sample(judge.teacher, solver, grid, noise, steps, judge.condition))
    return f"{row.fd_teacher:.3f} / {row.mse_teacher:.4f}"


if __name__ == "__main__":
    run(main, Args)
