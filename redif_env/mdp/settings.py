"""From the names that ``gym.make`` and the command line take to the objects they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from redif_env.diffusion.grids import GRIDS, Grid
from redif_env.diffusion.solvers import SOLVERS, Solver
from redif_env.fitted.initial_maps import LinearInitialMap, fit_initial_map
from redif_env.fitted.linear_solver import LinearSolver, fit_solver
from redif_env.mdp.actions import ACTION_MAPS, ActionMap
from redif_env.mdp.observations import OBSERVATIONS, Observation, Sample
from redif_env.mdp.process import DenoisingMDP
from redif_env.teachers.conditions import ConditionsLike
from redif_env.teachers.teacher import PipelineTeacher, Teacher, load_teacher

T = TypeVar("T")

LINEAR = "linear"
"""The name of what is fitted to a teacher's ways: a start, the steps of a solver."""

OWN = "own"
"""The name of the grid that a pipeline has of its own."""

DEFAULT_SOLVER, DEFAULT_GRID = "ipndm", "time^1.5@20"
"""The base solver where none is named, iPNDM of order 3 (in up to 4 steps of order 2): from 6 steps on PPO brings the
digits' samples nearer to their own endpoints from it than from DPM-Solver++ 3M, in a quarter of the calls (README)."""


def look_up(argument: str, name: str, known: Mapping[str, T]) -> T:
    """The object called ``name``.

    Raises:
        ValueError: naming the argument, the value and what is known.
    """
    if name not in known:
        raise ValueError(f"{argument}={name!r} is unknown: choose one of {', '.join(map(repr, known))}")
    return known[name]


def name_of(value: T, known: Mapping[str, T]) -> str:
    """The name under which an equal object is known.

    Raises:
        ValueError: if there is none.
    """
    for name, candidate in known.items():
        if candidate == value:
            return name
    raise ValueError(f"{value!r} has no name; only {', '.join(map(repr, known))} can be written to a file")


def parse_dtype(dtype: str) -> torch.dtype:
    """``"float32"`` or ``"float64"``, the types an environment may keep samples in."""
    return look_up("dtype", dtype, {"float32": torch.float32, "float64": torch.float64})


def parse_device(device: str) -> torch.device:
    """A torch device that this machine has.

    Raises:
        ValueError: if it has not.
    """
    try:
        parsed = torch.device(device)
        torch.empty(1, device=parsed)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} cannot be used here ({error}): try 'cpu'") from error
    return parsed


def shared_teacher(
    name_or_path: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    conditions: ConditionsLike | None = None,
    null_label: int | None = None,
    guidance_scale: float | None = None,
) -> Teacher:
    """A teacher that all environments of this process share: it is frozen, and networks are large.

    ``conditions``, ``null_label`` and ``guidance_scale`` as in :meth:`redif_env.Teacher.from_pretrained`.
    """
    # In a form that can be a key.
    wanted: tuple[Any, ...] | None = None
    if conditions is not None:
        wanted = tuple(conditions.items()) if isinstance(conditions, Mapping) else tuple(conditions)
    weighted = isinstance(conditions, Mapping)
    return _shared_teacher(name_or_path, device, dtype, wanted, weighted, null_label, guidance_scale)


@lru_cache(maxsize=8)
def _shared_teacher(
    name_or_path: str,
    device: torch.device,
    dtype: torch.dtype,
    wanted: tuple[Any, ...] | None,
    weighted: bool,
    null_label: int | None,
    guidance_scale: float | None,
) -> Teacher:
    conditions: ConditionsLike | None = dict(wanted) if wanted is not None and weighted else wanted
    teacher = load_teacher(name_or_path, conditions=conditions, null_label=null_label, guidance_scale=guidance_scale)
    return teacher.to(device, dtype)


def initial_map_of(initial_map: str | LinearInitialMap | None, teacher: Teacher, grid: Grid) -> LinearInitialMap | None:
    """The initial map that a name stands for: fitted if it is "linear".

    Raises:
        ValueError: if the name is unknown, or no linear map can be fitted.
    """
    if initial_map is None or isinstance(initial_map, LinearInitialMap):
        return initial_map
    return look_up("initial_map", initial_map, {LINEAR: fit_initial_map})(teacher, grid)


def grid_of(grid: str | Grid, teacher: Teacher, num_steps: int) -> Grid:
    """The grid that a name stands for; a pipeline's own timesteps if it is "own".

    Raises:
        ValueError: if the name is unknown, or the teacher is no pipeline that drives itself.
    """
    if isinstance(grid, Grid):
        return grid
    if grid != OWN:
        return look_up("grid", grid, GRIDS)
    if not isinstance(teacher, PipelineTeacher):
        raise ValueError(f"grid={OWN!r} needs a teacher from a pipeline, got {teacher.name!r}: choose another grid")
    return teacher.own_grid(num_steps)


def solver_of(
    solver: str | Solver, teacher: Teacher, grid: Grid, num_steps: int, initial_map: LinearInitialMap | None
) -> Solver:
    """The solver that a name stands for; fitted to the grid, the steps and the start if it is "linear".

    Raises:
        ValueError: if the name is unknown, or no linear steps can be fitted.
    """
    if isinstance(solver, Solver):
        return solver
    return look_up("solver", solver, {**SOLVERS, LINEAR: None}) or fit_solver(teacher, grid, num_steps, initial_map)


def solver_name(solver: Solver) -> str:
    """The name of a solver.

    Raises:
        ValueError: if it has none.
    """
    return LINEAR if isinstance(solver, LinearSolver) else name_of(solver, SOLVERS)


def build_mdp(
    teacher: str | Path | Teacher,
    num_steps: int,
    action: str | ActionMap,
    observation: str | Observation | Sample,
    solver: str | Solver,
    grid: str | Grid,
    device: str,
    dtype: str,
    *,
    min_steps: int | None = None,
    prices: tuple[float, float] | None = None,
    conditions: ConditionsLike | None = None,
    null_label: int | None = None,
    guidance_scale: float | None = None,
    learn_guidance: bool = False,
    initial_map: str | LinearInitialMap | None = None,
) -> DenoisingMDP:
    """The decision process that the arguments of ``gym.make("ReDiF-v0")`` describe."""
    placed, floating = parse_device(device), parse_dtype(dtype)
    if isinstance(teacher, Teacher):
        if (conditions, null_label, guidance_scale) != (None, None, None):
            raise ValueError(
                "conditions, null_label and guidance_scale belong to a teacher that is named: a Teacher has its own, "
                "give them to Teacher.from_pretrained"
            )
        model = teacher.to(placed)
    else:
        model = shared_teacher(
            str(teacher),
            placed,
            floating,
            conditions=conditions,
            null_label=null_label,
            guidance_scale=guidance_scale,
        )
    steps_on = grid_of(grid, model, num_steps)
    begins = initial_map_of(initial_map, model, steps_on)
    return DenoisingMDP(
        teacher=model,
        solver=solver_of(solver, model, steps_on, num_steps, begins),
        grid=steps_on,
        num_steps=num_steps,
        action_map=look_up("action", action, ACTION_MAPS) if isinstance(action, str) else action,
        observation=look_up("observation", observation, OBSERVATIONS) if isinstance(observation, str) else observation,
        min_steps=min_steps,
        prices=None if prices is None else (float(prices[0]), float(prices[1])),
        learn_guidance=learn_guidance,
        initial_map=begins,
    )
