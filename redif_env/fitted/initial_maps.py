"""Linear starts: where the way from a noise has come to, guessed without a network call.

Down to a level where noise still rules, the teacher's way is all but linear in the initial noise: exactly so if the
data are Gaussian (Wang and Vastola 2024, arXiv 2412.09726, who take that Gaussian's closed form). Here the linear map
is fitted to ways that the teacher itself went from noises of the training set.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from tqdm import tqdm

from redif_env.diffusion.grids import Grid
from redif_env.diffusion.schedules import Schedule
from redif_env.diffusion.solvers import DPMSolverPP, trajectory
from redif_env.fitted.regression import least_squares
from redif_env.storage.cache import cached
from redif_env.teachers.references import QUIET_BELOW, TRAIN_SEED, draw_starts, reference_key
from redif_env.teachers.teacher import Teacher

STEPS = 25
"""Predictions that the teacher spends on each way; they are short."""
SIZE, RATIO = 4096, 4
"""Ways at least, and ways for each number of a sample: a map of D numbers has D times D of its own."""
LARGEST = 4096
"""Numbers that a fitted map may look at."""


@dataclass(frozen=True, eq=False)
class LinearInitialMap:
    """From standard normal noise to where the teacher's way from it passes a level.

    ``matrix`` ``(D, D)`` acts on flat samples from the right, ``offset`` ``(C, D)`` is added, one row a condition; what
    comes out has the size that variance-preserving schedules have (``Schedule.normalised``).
    ``half_logsnr`` is the level.
    """

    half_logsnr: float
    matrix: Tensor
    offset: Tensor

    def __call__(self, noise: Tensor, condition: Tensor) -> Tensor:
        """``(B, *S)`` like ``noise``, for rows ``condition`` ``(B,)`` of the teacher's conditions."""
        # In double precision, so that a row comes out the same whatever batch it is in.
        matrix, offset = (part.to(noise.device, torch.float64) for part in (self.matrix, self.offset))
        moved = noise.flatten(1).double() @ matrix + offset[condition]
        return moved.to(noise.dtype).reshape(noise.shape)

    @property
    def key(self) -> str:
        """A digest of all its numbers."""
        digest = hashlib.sha256(f"{self.half_logsnr:.6f}".encode())
        for tensor in (self.matrix, self.offset):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def fit_initial_map(teacher: Teacher, grid: Grid) -> LinearInitialMap:
    """The linear start at the first level of ``grid``: from the cache, or fitted (with a progress bar) and kept there.

    Raises:
        ValueError: if the grid begins with pure noise, samples are too large for a map of all their numbers, or the
            teacher takes prompts, of which there are ever new ones.
    """
    begins = torch.zeros(1, dtype=torch.float64, device=teacher.device)
    half_logsnr = grid.half_logsnr(begins, teacher.schedule).item()
    noisiest = teacher.schedule.half_logsnr_at(begins + 1).item()
    count = math.prod(teacher.sample_shape)
    if half_logsnr <= noisiest:
        raise ValueError(
            "initial_map='linear' needs a grid that begins late: choose grid='time@4', or initial_map=None"
        )
    check_fitted(teacher, count, "initial_map='linear'", "initial_map=None")
    noise, condition = draw_starts(teacher, max(SIZE, RATIO * count), TRAIN_SEED)

    def compute() -> Tensor:
        reached = torch.cat(list(_ways(teacher, noise, condition, half_logsnr)))
        # Drawn to the noise itself, which a late start takes.
        prior = torch.eye(count, dtype=torch.float64)
        return least_squares(noise.flatten(1), reached.flatten(1), condition, len(teacher.conditions), prior).float()

    described = f"linear start {reference_key(teacher, noise, condition, STEPS)} {half_logsnr:.6f}"
    fitted = cached(hashlib.sha256(described.encode()).hexdigest(), compute)
    return LinearInitialMap(half_logsnr, fitted[:count], fitted[count:])


def check_fitted(teacher: Teacher, numbers: int, given: str, instead: str) -> None:
    """Refuse to fit maps from so many numbers, or for prompts, of which there are ever new ones.

    Raises:
        ValueError: naming what was ``given``, and what to choose ``instead``.
    """
    if numbers > LARGEST:
        raise ValueError(
            f"{given} fits maps from all that they look at, at most {LARGEST} numbers, and here there are {numbers}: "
            f"choose {instead}"
        )
    if any(isinstance(value, str) and value for value in teacher.conditions.values):
        raise ValueError(f"{given} knows class labels alone, and {teacher.name!r} takes prompts: choose {instead}")


@dataclass(frozen=True)
class _Approach(Grid):
    """Uniform time to a level, in the first half of the positions."""

    end: float

    def interior(self, position: Tensor, schedule: Schedule) -> Tensor:
        level = torch.tensor(self.end, dtype=torch.float64, device=position.device)
        return schedule.half_logsnr_at(torch.lerp(torch.ones_like(level), schedule.time(level), 2 * position))


@torch.inference_mode()
def _ways(teacher: Teacher, noise: Tensor, condition: Tensor, half_logsnr: float) -> Iterator[Tensor]:
    """Where the teacher's ways pass the level, ``(B, *S)`` of normalised size, batch by batch."""
    parts = list(zip(noise.split(teacher.run_size), condition.split(teacher.run_size), strict=True))
    for part, asked in tqdm(parts, desc="linear start", disable=len(noise) * STEPS < QUIET_BELOW):
        steps = trajectory(
            teacher,
            DPMSolverPP(2),
            _Approach(half_logsnr),
            part.to(teacher.device),
            2 * STEPS,
            asked.to(teacher.device),
        )
        state = next(islice(steps, STEPS - 1, None))
        yield teacher.schedule.normalised(state.x, state.half_logsnr).cpu()
