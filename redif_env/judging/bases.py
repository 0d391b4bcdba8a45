"""The choice of a base solver by validation noises: ``--solver auto`` and the comparison's base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from redif_env.diffusion.solvers import sample
from redif_env.fitted.initial_maps import LARGEST
from redif_env.judging.baselines import SOLVER_GRIDS
from redif_env.judging.evaluation import Evaluator, Sampler
from redif_env.mdp.settings import DEFAULT_GRID, DEFAULT_SOLVER, LINEAR, OWN, grid_of, initial_map_of, solver_of
from redif_env.teachers.teacher import PipelineTeacher, Teacher

AUTO = "auto"
"""The name at the command line of the base that validation noises prefer."""
LINEAR_GRIDS = ("time^1.25@2.5", "time^1.5@4", "time^1.5@8")
"""Grids that linear steps are tried on."""
POLYNOMIALS = ("ipndm2", "ipndm3")
"""Solvers that are tried where samples are too large for linear steps."""
MULTISTEP = "dpm++2m"
"""The stock solver of most text pipelines, which is tried on a pipeline's own timesteps."""
SMALL = 256
"""Numbers a sample up to which linear steps are tried: larger ones need more trajectories than training does."""
SCREEN_SIZE, SHORTLIST, SCREENED_SHARE = 128, 4, 16
"""Noises on which candidates are compared first, and how many of them are evaluated on all: the best four, or a
sixteenth of many."""


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

    def __str__(self) -> str:
        mapped = f" initial_map={self.initial_map}" if self.initial_map is not None else ""
        return f"{self.solver} {self.grid}{mapped}"

    def sampler(self, teacher: Teacher, num_steps: int) -> Sampler:
        """Itself as a sampler; what is to be fitted is fitted, or found in the cache."""
        grid = grid_of(self.grid, teacher, num_steps)
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


def bases_of(teacher: Teacher, num_steps: int = 1, adaptive: bool = False) -> list[Base]:
    """Candidates, the likeliest first.

    Linear steps; iPNDM where those cannot be fitted or the policy ends episodes; for a pipeline that drives itself also
    both iPNDM and DPM-Solver++ 2M on its own timesteps.
    """
    prompts = any(isinstance(value, str) and value for value in teacher.conditions.values)
    size = prod(teacher.sample_shape)
    if size <= SMALL and (num_steps + 1) * size <= LARGEST and not prompts and not adaptive:
        return [linear_base(grid) for grid in LINEAR_GRIDS]
    driven = isinstance(teacher, PipelineTeacher)
    own = [Base(solver, OWN) for solver in (*POLYNOMIALS, MULTISTEP) if driven]
    return [Base(), *own, *(Base(solver, grid) for solver in POLYNOMIALS for grid in SOLVER_GRIDS)]


def nearest_base(evaluator: Evaluator, bases: list[Base], num_steps: int) -> Base:
    """The base that comes nearest to the teacher on the evaluator's noises."""
    named = {str(base): base for base in bases}
    return named[nearest(evaluator, {name: base.sampler(evaluator.teacher, num_steps) for name, base in named.items()})]


def nearest(evaluator: Evaluator, candidates: Mapping[str, Sampler]) -> str:
    """The name of the sampler that comes nearest to the teacher on the evaluator's noises.

    All candidates are screened on ``SCREEN_SIZE`` noises, and the best few evaluated on all: a few noises tell most
    candidates apart, since their samples are paired with the teacher's.
    """
    if _screened(len(candidates), len(evaluator.noise)):
        distances = {name: evaluator.distance(made, SCREEN_SIZE) for name, made in candidates.items()}
        best = sorted(distances, key=distances.__getitem__)[: _shortlist(len(candidates))]
        candidates = {name: candidates[name] for name in best}
    distances = {name: evaluator.distance(made) for name, made in candidates.items()}
    return min(distances, key=distances.__getitem__)


def evaluated_samples(candidates: int, size: int) -> int:
    """Samples that :func:`nearest` makes of so many candidates on ``size`` noises."""
    if not _screened(candidates, size):
        return candidates * size
    return candidates * SCREEN_SIZE + _shortlist(candidates) * size


def _shortlist(candidates: int) -> int:
    return max(SHORTLIST, candidates // SCREENED_SHARE)


def _screened(candidates: int, size: int) -> bool:
    return size > SCREEN_SIZE and candidates > SHORTLIST
