"""Films: what a sampler makes of the same noises, call by call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from redif_env.diffusion.grids import GRIDS, Grid
from redif_env.diffusion.placement import HOST, full_precision
from redif_env.diffusion.solvers import DDIM, SOLVERS, DPMSolverPP, Solver, trajectory
from redif_env.diffusion.types import State
from redif_env.judging.evaluation import prices_of
from redif_env.mdp.settings import DEFAULT_GRID, DEFAULT_SOLVER
from redif_env.measures.rendering import as_images, to_pixels
from redif_env.students.student import Student
from redif_env.teachers.teacher import PipelineTeacher, Teacher

FRAMES = 12
"""Steps of a film that are shown at most, besides its beginning."""
SIDE = 256
"""Side of a shown sample in pixels, at most."""
PRICES = 4
"""Prices at which a student that chooses its number of calls is shown."""


@dataclass(frozen=True)
class Film:
    """A sampler's way from N noises to N samples in F frames, the first of which is the noise."""

    name: str
    calls: float
    """Network calls a sample in all, the mean over samples."""
    milliseconds: float
    """Time of one sample, where all N are made together."""
    spent: list[float]
    """Network calls a sample up to each frame."""
    timesteps: list[float]
    """Training timesteps of the levels at which the network is called."""
    samples: NDArray[np.uint8]
    """The samples ``(F, N, H, W, 3)``."""
    estimates: NDArray[np.uint8]
    """The clean samples predicted there ``(F, N, H, W, 3)``; in the first frame nothing is, so it is the noise."""


@dataclass(frozen=True)
class Starts:
    """Noises ``(N, *S)`` and rows ``(N,)`` of the teacher's conditions, that all samplers begin with."""

    noise: Tensor
    condition: Tensor

    @classmethod
    def draw(cls, teacher: Teacher, seeds: Sequence[int], rows: Sequence[int]) -> Starts:
        """The noise of each seed, under each condition: condition by condition."""
        noises = [
            torch.randn(teacher.sample_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
            for seed in seeds
        ]
        noise = torch.stack(noises).repeat(len(rows), *[1] * len(teacher.sample_shape))
        condition = torch.tensor(rows, dtype=torch.int64, device=HOST).repeat_interleave(len(seeds))
        return cls(noise.to(teacher.device), condition)


def teacher_film(teacher: Teacher, starts: Starts, num_steps: int) -> Film:
    """The teacher as it makes endpoints: DPM-Solver++(2M) on uniform time."""
    return solver_film("teacher", teacher, starts, DPMSolverPP(2), GRIDS["time"], num_steps)


def base_films(teacher: Teacher, starts: Starts, counts: Iterable[int]) -> list[Film]:
    """A solver without training in each of these numbers of steps: the default base solver of environments."""
    own = isinstance(teacher, PipelineTeacher)
    solver, name = (DDIM(), "DDIM") if own else (SOLVERS[DEFAULT_SOLVER], "iPNDM")
    return [solver_film(f"solver ({name})", teacher, starts, solver, _grid(teacher, count), count) for count in counts]


def _grid(teacher: Teacher, num_steps: int) -> Grid:
    return teacher.own_grid(num_steps) if isinstance(teacher, PipelineTeacher) else GRIDS[DEFAULT_GRID]


def solver_film(name: str, teacher: Teacher, starts: Starts, solver: Solver, grid: Grid, num_steps: int) -> Film:
    """A solver on a grid."""

    def run() -> list[State]:
        return list(trajectory(teacher, solver, grid, starts.noise, num_steps, starts.condition))

    return _filmed(name, teacher, starts, run)


def student_films(name: str, student: Student, starts: Starts) -> list[Film]:
    """A student; one that chooses its number of calls by a price at several of its prices."""
    films = []
    for price in prices_of(student, PRICES):

        def run(price: float | None = price) -> list[State]:
            return student.trajectory(starts.noise, price, starts.condition)

        films.append(_filmed(name, student.mdp.teacher, starts, run))
    return films


@torch.no_grad()
def _filmed(name: str, teacher: Teacher, starts: Starts, run: Callable[[], list[State]]) -> Film:
    with full_precision(starts.noise.device):
        begin = time.perf_counter()
        states = run()
        images = teacher.images(states[-1].x).to(HOST)  # decoding is part of what a sample costs
        seconds = time.perf_counter() - begin
        kept = sorted({round(place) for place in np.linspace(0, len(states) - 1, FRAMES)})
        shown = [states[index] for index in kept]
        samples = [starts.noise, *(teacher.schedule.normalised(state.x, state.half_logsnr) for state in shown)]
        estimates = [starts.noise, *(state.x0_history[:, 0] for state in shown)]
        pictures = [[_pixels(teacher.images(x)) for x in row] for row in (samples[:-1], estimates[:-1])]
    last = _pixels(images)
    count = len(starts.noise)
    spent = [state.nfe.double().mean().item() for state in states]
    return Film(
        name=name,
        calls=spent[-1],
        milliseconds=1000 * seconds / count,
        spent=[0.0, *(spent[index] for index in kept)],
        timesteps=_timesteps(teacher, states),
        samples=np.stack([*pictures[0], last]),
        estimates=np.stack([*pictures[1], last]),
    )


def _timesteps(teacher: Teacher, states: Sequence[State]) -> list[float]:
    """Training timesteps at which the network was called, the mean over the samples that were not finished."""
    found = []
    for index in range(len(states)):
        called = states[index].predictions > (states[index - 1].predictions if index else 0)
        # The newest of the levels at which predictions were made.
        levels = states[index].half_logsnr_history[called, 0]
        found.append(teacher.schedule.timestep(levels).mean().item())
    return found


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    pictures = as_images(images.float())
    if max(pictures.shape[-2:]) > SIDE:
        factor = SIDE / max(pictures.shape[-2:])
        pictures = F.interpolate(pictures, scale_factor=factor, mode="area")
    return to_pixels(pictures)
