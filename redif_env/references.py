"""Reference sets: initial noises with the teacher's endpoints of each, computed once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from redif_env.cache import cached
from redif_env.grids import Grid
from redif_env.solvers import Solver, sample
from redif_env.teachers import ENDPOINT_BATCH, Teacher

TRAIN_SEED, VALIDATION_SEED, TEST_SEED = 0, 1, 2
"""Noise seeds of the three disjoint sets: to train on, to choose the best student by, and to report."""

BASE_SIZE = 1024
"""Noises on which rewards look up what the base solver makes of them."""

QUIET_BELOW = 50_000
"""A reference set that costs fewer network calls than this shows no progress bar."""


@dataclass(frozen=True)
class ReferenceSet:
    """Pairs of initial noise and teacher endpoint, both ``(N, *S)``.

    ``key`` is a digest of teacher, noise and step count.
    """

    noise: Tensor
    endpoints: Tensor
    key: str

    def __len__(self) -> int:
        return len(self.noise)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ReferenceSet:
        """The same pairs on a device, in a floating point type."""
        return ReferenceSet(self.noise.to(device, dtype), self.endpoints.to(device, dtype), self.key)


def draw_noise(size: int, sample_shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal ``(size, *S)``, float32, from a generator of its own."""
    return torch.randn(size, *sample_shape, generator=torch.Generator().manual_seed(seed))


def reference_set(teacher: Teacher, size: int, seed: int = TRAIN_SEED, num_steps: int = 100) -> ReferenceSet:
    """The teacher's endpoints of ``size`` noises: from the cache, or computed (with a progress bar) and kept there.

    Args:
        size: number of pairs, at least 1.
        seed: of the noises.
        num_steps: teacher's network calls a sample.
    """
    if size < 1:
        raise ValueError(f"reference size must be at least 1, got {size}")
    noise = draw_noise(size, teacher.sample_shape, seed)
    key = reference_key(teacher, noise, num_steps)

    def compute() -> Tensor:
        with tqdm(total=size, desc="teacher endpoints", disable=size * num_steps < QUIET_BELOW) as bar:
            return teacher.endpoint(noise, num_steps, progress=bar.update).cpu()

    return ReferenceSet(noise, cached(key, compute), key)


def reference_key(teacher: Teacher, noise: Tensor, num_steps: int) -> str:
    """Under what the endpoints of ``noise`` are cached."""
    # The noise itself is in the key: should torch's generator change, old endpoints no longer belong to it.
    digest = hashlib.sha256(f"endpoints {teacher.fingerprint} {num_steps}".encode())
    digest.update(noise.numpy().tobytes())
    return digest.hexdigest()


def base_samples(teacher: Teacher, reference: ReferenceSet, solver: Solver, grid: Grid, num_steps: int) -> Tensor:
    """What a solver makes of the reference set's first noises in ``num_steps`` calls; cached like the endpoints.

    At most ``BASE_SIZE`` samples ``(M, *S)``, on the teacher's device, in the noises' type.
    """
    described = f"samples {reference.key} {solver} {grid} {num_steps} {BASE_SIZE}"
    noise = reference.noise[:BASE_SIZE].to(teacher.device)

    @torch.inference_mode()
    def compute() -> Tensor:
        return torch.cat([sample(teacher, solver, grid, part, num_steps) for part in noise.split(ENDPOINT_BATCH)])

    return cached(hashlib.sha256(described.encode()).hexdigest(), compute).to(noise)
