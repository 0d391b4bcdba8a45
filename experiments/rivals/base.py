"""The base solver of all who learn our actions; networks are cloned along its steps."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.solvers import sample
from redif_env.judging.baselines import SOLVER_GRIDS
from redif_env.judging.evaluation import Sampler
from redif_env.mdp.settings import DEFAULT_GRID, DEFAULT_SOLVER, LINEAR, initial_map_of, solver_of
from redif_env.teachers.teacher import Teacher

LINEAR_GRIDS = ("time^1.25@2.5", "time^1.5@4", "time^1.5@8")
"""Grids that linear steps are tried on."""
POLYNOMIALS = ("ipndm2", "ipndm3")
"""Solvers that are tried where samples are too large for linear steps."""
SMALL = 256
"""Numbers a sample up to which linear steps are tried: larger ones need more trajectories than training does."""


@dataclass(frozen=True)
class Base:
    """A solver on a grid, with or without an initial map, by the names that ``agents.ppo`` takes."""

    solver: str = DEFAULT_SOLVER
    grid: str = DEFAULT_GRID
    initial_map: str | None = None

    @property
    def fixed(self) -> bool:
        """Whether it is fitted to one number of steps."""
        return self.solver == LINEAR

    def sampler(self, teacher: Teacher, num_steps: int) -> Sampler:
        """Itself as a sampler; what is to be fitted is fitted, or found in the cache."""
        grid = GRIDS[self.grid]
        initial_map = initial_map_of(self.initial_map, teacher, grid)
        solver = solver_of(self.solver, teacher, grid, num_steps, initial_map)

        @torch.inference_mode()
        def made(noise: Tensor, condition: Tensor) -> Tensor:
            x = noise if initial_map is None else initial_map(noise, condition)
            return sample(teacher, solver, grid, x, num_steps, condition)

        return made


def linear_base(grid: str) -> Base:
    """Linear steps on a grid, from a linear initial map."""
    return Base(LINEAR, grid, LINEAR)


def bases_of(teacher: Teacher) -> list[Base]:
    """Candidates, the likeliest first: linear steps; where samples are too large for those, iPNDM."""
    if prod(teacher.sample_shape) <= SMALL:
        return [linear_base(grid) for grid in LINEAR_GRIDS]
    return [Base(), *(Base(solver, grid) for solver in POLYNOMIALS for grid in SOLVER_GRIDS)]
