"""A decision process as part of a scheduler's config, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from redif_env.diffusion.grids import Grid
from redif_env.diffusion.noise_schedulers import read_scheduler, scheduler_config
from redif_env.diffusion.placement import HOST
from redif_env.diffusion.predictions import EDMPreconditioning, ScorePreconditioning
from redif_env.fitted.initial_maps import LinearInitialMap
from redif_env.fitted.linear_solver import LinearSolver
from redif_env.mdp.process import DenoisingMDP
from redif_env.mdp.settings import (
    LINEAR,
    OWN,
    grid_of,
    part_entry,
    part_of,
)
from redif_env.students.export.redif_scheduler import ReDiFScheduler
from redif_env.students.export.steps import steps_of, unfixed
from redif_env.teachers.components import decoder_of, encode_prompts
from redif_env.teachers.conditions import Conditions, ConditionsLike
from redif_env.teachers.driven.schedules import ReversedOutput, ScaledInputs
from redif_env.teachers.networks import call_by_name, conditions_of, shape_of
from redif_env.teachers.teacher import PipelineTeacher, Teacher

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

REMEDY = "give both as they were saved"


def scheduler_of(mdp: DenoisingMDP, actions: Tensor | None, trained_with: Mapping[str, Any] | None = None) -> Any:
    """The :class:`ReDiFScheduler` of a decision process and the mean action of each of its steps ``(num_steps, A)``.

    Args:
        mdp: the process.
        actions: None where the policy decides how many there are.
        trained_with: of a pipeline's student.

    Raises:
        ValueError: if the process uses a solver, grid, action map or observation that cannot be written to a file.
        TypeError: if no diffusers scheduler has its schedule.
    """
    teacher = mdp.teacher
    held = teacher.preconditioning
    steps = [] if actions is None or isinstance(mdp.solver, LinearSolver) else steps_of(mdp, actions)
    return ReDiFScheduler(
        # As JSON has them, so that a saved scheduler is the same.
        steps=[{name: list(v) if isinstance(v, tuple) else v for name, v in asdict(step).items()} for step in steps],
        skipped=_skipped(mdp),
        prediction_type=teacher.prediction_type.value,
        sigma_data=held.sigma_data if isinstance(held, EDMPreconditioning) else None,
        score=isinstance(held, ScorePreconditioning),
        reverse_output=isinstance(held, ReversedOutput),
        init_noise_sigma=_first_size(mdp),
        num_train_timesteps=_timesteps(teacher),
        refusal=_refusal(mdp),
        process=_described(mdp, actions),
        trained_with=trained_with,
    )


def process_of(
    scheduler: ReDiFScheduler,
    teacher: Teacher,
    initial_map: LinearInitialMap | None = None,
    linear: LinearSolver | None = None,
    allow_imports: bool = False,
) -> DenoisingMDP:
    """The decision process of a scheduler.

    Args:
        scheduler: of a student.
        teacher: makes the predictions.
        initial_map: what noise is mapped to first, if it was trained so.
        linear: the steps of its base solver, if that is linear.
        allow_imports: whether parts of one's own may be imported.

    Raises:
        ValueError: if the initial map or the linear steps are missing, or are not the student's.
    """
    saved = scheduler.config.process
    if (saved["solver"] == LINEAR) != (linear is not None):
        raise ValueError(f"linear is {linear}, but the scheduler has solver={saved['solver']!r}: {REMEDY}")
    if saved["linear_initial_map"] != (initial_map is not None):
        raise ValueError(
            f"initial_map is {initial_map}, but the scheduler has linear_initial_map={saved['linear_initial_map']}: "
            f"{REMEDY}"
        )
    return DenoisingMDP(
        teacher=teacher,
        solver=linear or part_of("solver", saved["solver"], allow_imports),
        grid=grid_of(OWN, teacher, saved["num_steps"])
        if saved["grid"] == OWN
        else part_of("grid", saved["grid"], allow_imports),
        num_steps=saved["num_steps"],
        action_map=part_of("action", saved["action"], allow_imports),
        observation=part_of("observation", saved["observation"], allow_imports),
        min_steps=saved["min_steps"],
        prices=None if saved["prices"] is None else (saved["prices"][0], saved["prices"][1]),
        learn_guidance=saved["learn_guidance"],
        initial_map=initial_map,
    )


def teacher_of(
    scheduler: ReDiFScheduler,
    network: ModelMixin,
    source: DiffusionPipeline | None,
    requested: Sequence[str] | None = None,
) -> Teacher:
    """``network`` as a teacher.

    Args:
        scheduler: of the student whose network it is.
        network: the network.
        source: the stock pipeline that decodes its latents and encodes its prompts, if it needs one.
        requested: prompts in the place of those that it was trained with.
    """
    saved = scheduler.config.process
    parameterization = read_scheduler(saved["noise"], saved["teacher"])
    name, config = saved["teacher"], {**network.config, "_class_name": type(network).__name__}
    shape, described = shape_of(config, name), saved["conditions"] or {}
    asked: ConditionsLike | None = requested or _requested(described)
    conditions = conditions_of(config, name, asked, described.get("null_label"))
    if conditions is None:
        assert source is not None
        assert asked is not None
        conditions = encode_prompts(source, asked)
    return Teacher(
        network,
        parameterization.schedule,
        shape,
        parameterization.prediction_type,
        name,
        preconditioning=parameterization.preconditioning,
        conditions=conditions,
        guidance_scale=saved["guidance_scale"],
        call=call_by_name,
        decoder=decoder_of(source, shape),
        source=source,
        bounds=saved["bounds"],
        own_network=saved["own_network"],
    )


def _described(mdp: DenoisingMDP, actions: Tensor | None) -> dict[str, Any]:
    """The process as JSON values."""
    teacher = mdp.teacher
    return {
        "num_steps": mdp.num_steps,
        "solver": LINEAR if isinstance(mdp.solver, LinearSolver) else part_entry("solver", mdp.solver),
        "grid": _grid_entry(mdp.grid, teacher, mdp.num_steps),
        "action": part_entry("action", mdp.action_map),
        "observation": part_entry("observation", mdp.observation),
        "min_steps": mdp.min_steps,
        "prices": None if mdp.prices is None else list(mdp.prices),
        "learn_guidance": mdp.learn_guidance,
        "linear_initial_map": mdp.initial_map is not None,
        "actions": None if actions is None else actions.tolist(),
        "noise": _noise(teacher),
        "conditions": _conditions(teacher.conditions),
        "guidance_scale": teacher.guidance_scale,
        "teacher": teacher.name,
        "own_network": teacher.own_network,
        "bounds": None if teacher.bounds is None else list(teacher.bounds),
    }


def _noise(teacher: Teacher) -> dict[str, Any] | None:
    """The config that has its schedule; None where none has, which for a pipeline is read off the pipeline."""
    try:
        return scheduler_config(teacher.parameterization)
    except TypeError:
        if isinstance(teacher, PipelineTeacher):
            return None
        raise


def _grid_entry(grid: Grid, teacher: Teacher, num_steps: int) -> str | dict[str, Any]:
    own = isinstance(teacher, PipelineTeacher) and grid == teacher.own_grid(num_steps)
    return OWN if own else part_entry("grid", grid)


def _refusal(mdp: DenoisingMDP) -> str:
    """Why a scheduler alone cannot take a student's steps; empty if it can."""
    reason = unfixed(mdp)
    if reason:
        return reason
    if mdp.initial_map is not None:
        return (
            "this student maps its noise first (linear_initial_map=True), which no pipeline does for a scheduler: use "
            "ReDiFPipeline or Student"
        )
    if isinstance(mdp.teacher.preconditioning, ScaledInputs):
        return (
            "this student's pipeline computes with its scheduler's sigmas, which no student's steps hold: use "
            "ReDiFPipeline.of"
        )
    if isinstance(mdp.teacher, PipelineTeacher) and mdp.teacher.drive.follows:
        return (
            "this student's pipeline steps a second state along, such as the sound of a video, by other steps than "
            "these: use ReDiFPipeline.of"
        )
    return ""


def _first_size(mdp: DenoisingMDP) -> float:
    """Standard deviation of the initial sample."""
    if isinstance(mdp.teacher, PipelineTeacher) and mdp.teacher.begins_with_noise:
        return 1.0
    first = mdp.grid.half_logsnr(torch.zeros(1, dtype=torch.float64, device=HOST), mdp.teacher.schedule)
    return float(mdp.teacher.schedule.size(first))


def _timesteps(teacher: Teacher) -> int:
    """How many timesteps its network was trained with."""
    betas = getattr(teacher.schedule, "betas", None)
    return getattr(teacher.schedule, "num_train_timesteps", 1000) if betas is None else len(betas)


def _skipped(mdp: DenoisingMDP) -> int:
    """Steps that the pipeline counts and leaves out, since it begins from an image."""
    if not (isinstance(mdp.teacher, PipelineTeacher) and mdp.teacher.probe.from_image):
        return 0
    return mdp.teacher.drive.start(mdp.num_steps).called - mdp.num_steps


def _conditions(conditions: Conditions) -> dict[str, Any] | None:
    """Conditions as JSON values; None where there are none."""
    if not conditions.inputs:
        return None
    null = (conditions.null or {}).get("class_labels")
    return {
        "values": list(conditions.values),
        "weights": None if conditions.weights is None else conditions.weights.tolist(),
        "null_label": None if null is None else int(null),
    }


def _requested(described: Mapping[str, Any]) -> ConditionsLike | None:
    if not described:
        return None
    values, weights = described["values"], described["weights"]
    return list(values) if weights is None else dict(zip(values, weights, strict=True))
