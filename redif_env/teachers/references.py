"""Reference sets: initial noises with the teacher's endpoints of each, computed once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from redif_env.diffusion.grids import Grid, TimeGrid
from redif_env.diffusion.placement import HOST, full_precision, place
from redif_env.diffusion.solvers import DPMSolverPP, Solver, sample, trajectory
from redif_env.storage.cache import cached
from redif_env.teachers.teacher import PipelineTeacher, Teacher

TRAIN_SEED, VALIDATION_SEED, TEST_SEED = 0, 1, 2
"""Noise seeds of the three disjoint sets: to train on, to choose the best student by, and to report."""

PATH_LEVELS = 25
"""Levels at which a teacher's way is kept, beside its start."""

QUIET_BELOW = 50_000
"""A reference set that costs fewer network calls than this shows no progress bar."""


@dataclass(frozen=True)
class SetSizes:
    """Sizes of a teacher's reference sets where none are given, and the predictions it spends on each endpoint."""

    reference_size: int = 4096
    """Pairs to train on."""
    held_out_size: int = 512
    """Noises by which the best student is chosen; 512 if not given, 256 of "cifar10", 64 of a driven pipeline."""
    test_size: int = 2000
    """Noises of the report; 2,000 if not given, 512 of "cifar10", 256 of a driven
    pipeline."""
    teacher_steps: int = 100
    """Predictions per endpoint."""
    base_size: int = 1024
    """Noises of the reference set on which rewards are scaled by what the base solver makes of them."""


SHIPPED_SIZES = {"cifar10": SetSizes(1024, 256, 512, 40, 256)}
"""Of teachers that are slow on a CPU: the sets that come with the package (``experiments.ship_references``)."""
DRIVEN_SIZES = SetSizes(512, 64, 256, 40, 64)
"""Of pipelines that make predictions by their own call, whose networks are large."""


def sizes_of(teacher: Teacher) -> SetSizes:
    """The default sizes for a teacher."""
    return sizes_named(teacher.name, isinstance(teacher, PipelineTeacher))


def sizes_named(name: str, driven: bool = False) -> SetSizes:
    """The default sizes for a teacher of this name; ``driven`` by its own call or not."""
    return DRIVEN_SIZES if driven else SHIPPED_SIZES.get(name, SetSizes())


class InitialMap(Protocol):
    """What replaces the first steps: from initial noise ``(B, *S)`` and conditions ``(B,)`` to where steps begin."""

    @property
    def key(self) -> str:
        """A digest of all that decides what it does."""

    def __call__(self, noise: Tensor, condition: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ReferenceSet:
    """Initial noises with the teacher's endpoints of each, both ``(N, *S)``.

    ``condition`` ``(N,)`` int64, on the host, is the row of the teacher's conditions of each; ``key`` a digest of
    teacher, noise, condition and step count; ``num_steps`` the predictions that the teacher spent on each.
    """

    noise: Tensor
    condition: Tensor
    endpoints: Tensor
    key: str
    num_steps: int = 100

    def __len__(self) -> int:
        return len(self.noise)

    def rows(self, index: Tensor) -> ReferenceSet:
        """The pairs that ``index`` ``(M,)`` (int64, on the host) picks."""
        placed, condition = index.to(self.noise.device), self.condition[index]
        key = hashlib.sha256(f"{self.key} {index.tolist()}".encode()).hexdigest()
        return replace(self, noise=self.noise[placed], endpoints=self.endpoints[placed], condition=condition, key=key)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ReferenceSet:
        """The same with its samples on a device, in a floating point type."""
        return replace(self, noise=self.noise.to(device, dtype), endpoints=self.endpoints.to(device, dtype))


def draw_starts(teacher: Teacher, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Standard normal noise ``(size, *S)`` float32 and conditions ``(size,)``, from a generator of their own.

    Raises:
        ValueError: if there is not memory for so many.
    """
    generator = torch.Generator().manual_seed(seed)
    try:
        noise = torch.randn((size, *teacher.sample_shape), generator=generator, dtype=torch.float32, device=HOST)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(
            f"{size} noises do not fit into memory ({error}): lower the size of the set (reference_size, "
            "held_out_size, test_size, or size)"
        ) from error
    return noise, teacher.conditions.draw(size, generator)


def reference_set(teacher: Teacher, size: int, seed: int = TRAIN_SEED, num_steps: int = 100) -> ReferenceSet:
    """The teacher's endpoints of ``size`` noises: from the cache, or computed (with a progress bar) and kept there.

    Args:
        size: number of pairs, at least 1.
        seed: of the noises.
        num_steps: teacher's network calls a sample.
    """
    if size < 1:
        raise ValueError(f"reference size must be at least 1, got {size}")
    noise, condition = draw_starts(teacher, size, seed)
    key = reference_key(teacher, noise, condition, num_steps)

    def compute() -> Tensor:
        with tqdm(total=size, desc="teacher endpoints", disable=size * num_steps < QUIET_BELOW) as bar:
            return teacher.endpoint(noise, num_steps, condition, progress=bar.update).cpu()

    endpoints = cached(key, compute)
    if endpoints.dtype == torch.uint8:  # shipped as pictures of 8 bits
        endpoints = endpoints.float() / 127.5 - 1
    return ReferenceSet(noise, condition, endpoints, key, num_steps)


def reference_key(teacher: Teacher, noise: Tensor, condition: Tensor, num_steps: int) -> str:
    """Under what the endpoints of ``noise`` and ``condition`` are cached."""
    # The noise itself is in the key: should torch's generator change, old endpoints no longer belong to it.
    digest = hashlib.sha256(f"endpoints {teacher.fingerprint} {num_steps}".encode())
    digest.update(noise.numpy().tobytes())
    if len(teacher.conditions) > 1:
        digest.update(condition.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ReferencePaths:
    """The teacher's trajectories from the noises of a reference set to their endpoints, at K levels.

    ``angle`` ``(K,)`` float64, on the host, falls from noise to 0, clean data: ``atan(sigma / alpha)``, in which
    trajectories are smooth; ``x`` ``(N, K, *S)`` are samples there, of the size that variance-preserving schedules have
    (:meth:`redif_env.diffusion.schedules.Schedule.normalised`).
    """

    angle: Tensor
    x: Tensor

    def at(self, pair: Tensor, half_logsnr: Tensor) -> Tensor:
        """Samples ``(B, *S)`` of the trajectories of rows ``pair`` ``(B,)`` at levels ``half_logsnr`` ``(B,)``."""
        if bool((pair < 0).any()):
            raise ValueError("reward 'path' has trajectories of the reference set alone: leave options['noise'] out")
        angle = angle_of(half_logsnr).clamp(max=self.angle[0])
        after = torch.searchsorted(-self.angle, -angle).clamp(1, len(self.angle) - 1)
        share = (self.angle[after - 1] - angle) / (self.angle[after - 1] - self.angle[after])
        row, index = torch.stack([pair, after]).to(self.x.device)
        before = self.x[row, index - 1]
        return torch.lerp(before, self.x[row, index], place(share, before))


def angle_of(half_logsnr: Tensor) -> Tensor:
    """``atan(sigma / alpha)``: from 0 at clean data to pi / 2 where there is no signal."""
    return torch.atan(torch.exp(-half_logsnr))


def reference_paths(teacher: Teacher, reference: ReferenceSet) -> ReferencePaths:
    """The trajectories to a reference set's endpoints: from the cache, or computed (with a progress bar) and stored."""
    steps = reference.num_steps
    # Denser towards clean data, where trajectories turn within a few hundredths of the angle.
    shares = 1 - (1 - torch.linspace(0, 1, min(steps, PATH_LEVELS) + 1, dtype=torch.float64, device=HOST)) ** 1.5
    stored = (steps * shares).round().long().unique().tolist()
    schedule, grid = teacher.schedule, TimeGrid()
    positions = torch.tensor(stored, dtype=torch.float64, device=HOST) / steps
    levels = grid.half_logsnr(positions, schedule)

    @torch.inference_mode()
    def path(noise: Tensor, condition: Tensor) -> Tensor:
        with full_precision(noise.device):
            states = trajectory(teacher, DPMSolverPP(2), grid, noise, steps, condition)
            passed = [schedule.normalised(state.x, state.half_logsnr) for state in states]
        first = schedule.normalised(noise * schedule.init_noise_sigma, levels[:1].expand(len(noise)))
        return torch.stack([[first, *passed][index] for index in stored], dim=1).to(HOST)

    def compute() -> Tensor:
        noise = reference.noise.to(teacher.device)
        parts = list(zip(noise.split(teacher.run_size), reference.condition.split(teacher.run_size), strict=True))
        quiet = len(noise) * steps < QUIET_BELOW
        return torch.cat([path(*part) for part in tqdm(parts, desc="teacher's trajectories", disable=quiet)])

    described = f"trajectories {reference.key} {stored} {reference.noise.dtype}"
    x = cached(hashlib.sha256(described.encode()).hexdigest(), compute).to(reference.noise)
    return ReferencePaths(angle_of(levels), x)


def base_samples(
    teacher: Teacher,
    reference: ReferenceSet,
    solver: Solver,
    grid: Grid,
    num_steps: int,
    initial_map: InitialMap | None = None,
) -> Tensor:
    """A solver's samples of the reference set's first noises in ``num_steps`` calls; cached like the endpoints.

    They start from the initial map of the noises, if ``initial_map`` is given. At most ``base_size`` samples
    ``(M, *S)``, on the teacher's device, in the noises' type.
    """
    size = sizes_of(teacher).base_size
    described = f"samples {reference.key} {solver} {grid} {num_steps} {size}"
    if initial_map is not None:
        described += f" {initial_map.key}"
    noise, condition = reference.noise[:size].to(teacher.device), reference.condition[:size]

    @torch.inference_mode()
    def compute() -> Tensor:
        with full_precision(noise.device):
            first = noise if initial_map is None else initial_map(noise, condition)
            parts = zip(first.split(teacher.run_size), condition.split(teacher.run_size), strict=True)
            return torch.cat([sample(teacher, solver, grid, part, num_steps, rows) for part, rows in parts])

    return cached(hashlib.sha256(described.encode()).hexdigest(), compute).to(noise)
