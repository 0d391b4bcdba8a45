"""A student goes home: its mean steps as a scheduler for the pipeline that it was trained in."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

from redif_env.diffusion.predictions import EDMPreconditioning
from redif_env.storage.files import write_folder
from redif_env.students.export import redif_scheduler
from redif_env.students.export.redif_scheduler import ReDiFStepsScheduler
from redif_env.students.student import Student
from redif_env.teachers.driven.schedules import ReversedOutput, ScaledInputs
from redif_env.teachers.teacher import PipelineTeacher

MODULE = "redif_scheduler"


def steps_scheduler(student: Student) -> ReDiFStepsScheduler:
    """The scheduler of a student's mean steps, which knows what it was trained with.

    Raises:
        ValueError: if the student decides its number of calls, or a scheduler cannot hold its steps.
    """
    teacher = student.mdp.teacher
    preconditioning = teacher.preconditioning
    if isinstance(preconditioning, ScaledInputs):
        raise ValueError(
            f"teacher {teacher.name!r} computes with its scheduler's sigmas, which no student's steps hold"
        )
    return ReDiFStepsScheduler(
        steps=[{**asdict(step), "x0_weights": list(step.x0_weights)} for step in student.steps()],
        prediction_type=teacher.prediction_type.value,
        sigma_data=preconditioning.sigma_data if isinstance(preconditioning, EDMPreconditioning) else None,
        reverse_output=isinstance(preconditioning, ReversedOutput),
        trained_with=_trained_with(teacher) if isinstance(teacher, PipelineTeacher) else None,
    )


def save_scheduler(student: Student, folder: str | Path) -> None:
    """Write ``scheduler/`` with the config of :func:`steps_scheduler` and the one file that reads it."""
    scheduler = steps_scheduler(student)
    with write_folder(Path(folder)) as fresh:
        scheduler.save_pretrained(str(fresh / "scheduler"))
        (fresh / "scheduler" / f"{MODULE}.py").write_text(inspect.getsource(redif_scheduler))


def differences(scheduler: ReDiFStepsScheduler, pipe: Any, **arguments: Any) -> list[str]:
    """In what a pipeline and its call differ from those that a student was trained with, in words."""
    trained = scheduler.config.trained_with or {}
    found = []
    if trained.get("pipeline") not in (None, type(pipe).__name__):
        found.append(f"trained in a {trained['pipeline']}, used in a {type(pipe).__name__}")
    for name, value in (trained.get("arguments") or {}).items():
        if name in arguments and arguments[name] != value:
            found.append(f"trained with {name}={value}, used with {arguments[name]}")
    if trained.get("loras", []) != loras_of(pipe):
        found.append(f"trained with LoRAs {trained.get('loras')}, used with {loras_of(pipe)}")
    return found


def loras_of(pipe: Any) -> list[str]:
    """Names of the LoRAs that a pipeline's networks have now."""
    listed = pipe.get_list_adapters() if hasattr(pipe, "get_list_adapters") else {}
    return sorted({name for names in listed.values() for name in names})


def _trained_with(teacher: PipelineTeacher) -> dict[str, Any]:
    plain = {name: value for name, value in teacher.drive.shared.items() if isinstance(value, str | int | float | bool)}
    return {
        "pipeline": teacher.probe.pipeline,
        "arguments": plain,
        "loras": loras_of(teacher.source),
        "fingerprint": teacher.fingerprint,
    }
