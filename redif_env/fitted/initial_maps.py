"""Linear initial maps: they replace the first steps of a trajectory and need no network call.

While noise dominates, the teacher's trajectory is nearly linear in the initial noise, and exactly linear for Gaussian
data (Wang and Vastola 2024, arXiv 2412.09726, use the closed form). Here the map is fitted by least squares to teacher
trajectories from the training noises.
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
from redif_env.diffusion.placement import HOST, widest
from redif_env.diffusion.schedules import Schedule
from redif_env.diffusion.solvers import DPMSolverPP, trajectory
from redif_env.fitted.regression import least_squares
from redif_env.storage.cache import cached
from redif_env.teachers.references import QUIET_BELOW, TRAIN_SEED, draw_starts, reference_key
from redif_env.teachers.teacher import Teacher

STEPS = 25
"""Teacher predictions per trajectory."""
SIZE, RATIO = 4096, 4
"""Minimum number of trajectories, and trajectories per sample dimension."""
LARGEST = 4096
"""Maximum number of inputs of a fitted map."""


@dataclass(frozen=True, eq=False)
class LinearInitialMap:
    """Affine map from standard normal noise to the teacher's trajectory at one noise level.

    Args:
        half_logsnr: the level.
        matrix: ``(D, D)``, acts on flat samples from the right.
        offset: ``(C, D)``, one row per condition.

    The output has variance-preserving scale (``Schedule.normalised``).
    """

    half_logsnr: float
    matrix: Tensor
    offset: Tensor

    def __call__(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Map ``noise`` ``(B, *S)``, of the conditions with indices ``condition`` ``(B,)`` (on the host)."""
        # Float64 where the device has it, so that the result of a row does not depend on its batch.
        matrix, offset = self.placed(noise.device)
        mapped = noise.flatten(1).to(matrix.dtype) @ matrix + offset[condition.to(offset.device)]
        return mapped.to(noise.dtype).reshape(noise.shape)

    def placed(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Its numbers on a device, in the most precise type that it has."""
        return self.matrix.to(device, widest(device)), self.offset.to(device, widest(device))

    @property
    def key(self) -> str:
        """SHA-256 digest of the parameters."""
        digest = hashlib.sha256(f"{self.half_logsnr:.6f}".encode())
        for tensor in (self.matrix, self.offset):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def fit_initial_map(teacher: Teacher, grid: Grid) -> LinearInitialMap:
    """Fit the linear initial map to the first level of ``grid``, with a progress bar, or load it from the cache.

    Raises:
        ValueError: if the grid starts at pure noise, samples have more than ``LARGEST`` dimensions, or the teacher
            takes prompts.
    """
    zero = torch.zeros(1, dtype=torch.float64, device=HOST)
    half_logsnr = grid.half_logsnr(zero, teacher.schedule).item()
    noisiest = teacher.schedule.half_logsnr_at(zero + 1).item()
    count = math.prod(teacher.sample_shape)
    if half_logsnr <= noisiest:
        raise ValueError(
            "initial_map='linear' needs a grid that starts below pure noise: choose grid='time@4', or initial_map=None"
        )
    check_fittable(teacher, count, "initial_map='linear'", "initial_map=None")
    noise, condition = draw_starts(teacher, max(SIZE, RATIO * count), TRAIN_SEED)

    def compute() -> Tensor:
        targets = torch.cat(list(_targets(teacher, noise, condition, half_logsnr)))
        prior = torch.eye(count, dtype=torch.float64, device=HOST)
        return least_squares(noise.flatten(1), targets.flatten(1), condition, len(teacher.conditions), prior).float()

    description = f"linear initial map {reference_key(teacher, noise, condition, STEPS)} {half_logsnr:.6f}"
    fitted = cached(hashlib.sha256(description.encode()).hexdigest(), compute)
    return LinearInitialMap(half_logsnr, fitted[:count], fitted[count:])


def check_fittable(teacher: Teacher, inputs: int, given: str, instead: str) -> None:
    """Check that a map with this many inputs can be fitted for the teacher.

    Args:
        teacher: the teacher; new prompts have no fitted offset, so prompts are refused.
        inputs: number of inputs of the map.
        given: the argument to name in the message.
        instead: what to choose instead.

    Raises:
        ValueError: if ``inputs`` exceeds ``LARGEST``, or the teacher takes prompts.
    """
    if inputs > LARGEST:
        raise ValueError(f"{given} fits maps with at most {LARGEST} inputs, got {inputs}: choose {instead}")
    if any(isinstance(value, str) and value for value in teacher.conditions.values):
        raise ValueError(f"{given} supports class labels only, and {teacher.name!r} takes prompts: choose {instead}")


@dataclass(frozen=True)
class _GridToLevel(Grid):
    """Uniform times from noise to a level, reached at position 1/2."""

    end: float

    def interior(self, position: Tensor, schedule: Schedule) -> Tensor:
        level = torch.tensor(self.end, dtype=torch.float64, device=HOST)
        return schedule.half_logsnr_at(torch.lerp(torch.ones_like(level), schedule.time(level), 2 * position))


@torch.inference_mode()
def _targets(teacher: Teacher, noise: Tensor, condition: Tensor, half_logsnr: float) -> Iterator[Tensor]:
    """Normalised samples ``(B, *S)`` of the teacher's trajectories at the level, batch by batch."""
    batches = list(zip(noise.split(teacher.run_size), condition.split(teacher.run_size), strict=True))
    for part, rows in tqdm(batches, desc="linear initial map", disable=len(noise) * STEPS < QUIET_BELOW):
        x = part.to(teacher.device)
        steps = trajectory(teacher, DPMSolverPP(2), _GridToLevel(half_logsnr), x, 2 * STEPS, rows)
        state = next(islice(steps, STEPS - 1, None))
        yield teacher.schedule.normalised(state.x, state.half_logsnr).cpu()
