"""Sampling in the variable ``x / alpha`` over ``sigma / alpha``, in which all schedules have the same trajectories.

There the ODE reads ``dx / dsigma = eps`` (Song et al. 2021, Eq. 14), so a DDIM step is Euler's, and a multistep
solver's step is the step size times a weighted sum of noise predictions. Rivals that are defined there share this file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redif_env.diffusion.grids import Grid
from redif_env.diffusion.placement import HOST, place
from redif_env.diffusion.solvers import ADAMS_BASHFORTH
from redif_env.teachers.references import ReferencePaths, ReferenceSet, reference_paths
from redif_env.teachers.teacher import Teacher


@dataclass(frozen=True)
class SigmaSpace:
    """A teacher and the ``num_steps + 1`` levels of a sampler on it.

    ``half_logsnr`` is finite but for the last, which is clean data; the first has signal.
    """

    teacher: Teacher
    half_logsnr: Tensor

    @property
    def sigma(self) -> Tensor:
        """``sigma / alpha`` of the levels, float64; the last is 0."""
        return torch.exp(-self.half_logsnr)

    @property
    def num_steps(self) -> int:
        """Steps between the levels."""
        return len(self.half_logsnr) - 1

    def place(self, x: Tensor, index: int) -> Tensor:
        """Samples ``(B, *S)`` of variance-preserving size at a level, in sigma space: ``alpha = 1``."""
        return x * torch.sqrt(1 + self.sigma[index] ** 2).to(x)

    def direction(self, x: Tensor, half_logsnr: Tensor, condition: Tensor) -> Tensor:
        """The noise prediction at ``x`` ``(B, *S)``, which is ``dx / dsigma``, at one level for all."""
        rows = half_logsnr.expand(len(x))
        schedule = self.teacher.schedule
        scaled = x * place(schedule.level(rows).alpha, x)
        return self.teacher.predict(scaled, rows, schedule.timestep(rows), condition).eps


def sigma_space(teacher: Teacher, grid: Grid, num_steps: int) -> SigmaSpace:
    """The levels of ``num_steps`` steps on a grid."""
    position = torch.arange(num_steps + 1, dtype=torch.float64, device=HOST) / num_steps
    levels = grid.half_logsnr(position, teacher.schedule)
    return SigmaSpace(teacher, torch.cat([levels[:-1].clamp(*teacher.schedule.ends), levels[-1:]]))


def adams_bashforth(order: int) -> Tensor:
    """iPNDM's weights of that order, newest first, ``(order,)`` float64."""
    return ADAMS_BASHFORTH[order - 1, :order]


def weighted(weights: Tensor, directions: list[Tensor]) -> Tensor:
    """The sum of directions, newest first, by weights."""
    return sum(weight.to(direction) * direction for weight, direction in zip(weights, directions, strict=False))


@dataclass(frozen=True)
class Pool:
    """Trajectories of the teacher: noises ``(N, *S)``, conditions ``(N,)``, and their samples at any level."""

    noise: Tensor
    condition: Tensor
    endpoints: Tensor
    paths: ReferencePaths

    def at(self, half_logsnr: Tensor) -> Tensor:
        """Samples ``(N, *S)`` of variance-preserving size at one level; the endpoints at clean data."""
        if half_logsnr.isinf():
            return self.endpoints
        rows = torch.arange(len(self.noise), device=HOST)
        return self.paths.at(rows, half_logsnr.expand(len(rows)))

    def targets(self, space: SigmaSpace) -> list[Tensor]:
        """Samples ``(N, *S)`` in sigma space at each level."""
        device = space.teacher.device
        return [space.place(self.at(level).to(device), index) for index, level in enumerate(space.half_logsnr)]


def pool_of(teacher: Teacher, whole: ReferenceSet, size: int) -> Pool:
    """The first ``size`` trajectories of a reference set; they are given to rivals, as its endpoints are."""
    noise, condition, endpoints = whole.noise[:size], whole.condition[:size], whole.endpoints[:size]
    part = replace(whole, noise=noise, condition=condition, endpoints=endpoints, key=f"{whole.key} first {len(noise)}")
    return Pool(noise, condition, endpoints, reference_paths(teacher, part))
