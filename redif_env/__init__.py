"""ReDiF: few-step diffusion students by reinforcement learning.

``import redif_env`` registers ``ReDiF-v0`` with Gymnasium, as soon as that is imported too, and loads nothing heavy;
the names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

if TYPE_CHECKING:
    from redif_env.envs.environments import ReDiFEnv, ReDiFVectorEnv
    from redif_env.students.export import ReDiFPipeline, ReDiFScheduler
    from redif_env.students.student import Student
    from redif_env.teachers.teacher import GaussianMixtureTeacher, Teacher, load_teacher

__version__ = "0.1.0"

__all__ = [
    "GaussianMixtureTeacher",
    "ReDiFEnv",
    "ReDiFPipeline",
    "ReDiFScheduler",
    "ReDiFVectorEnv",
    "Student",
    "Teacher",
    "load_teacher",
]

_HOMES = {
    "GaussianMixtureTeacher": "redif_env.teachers.teacher",
    "ReDiFEnv": "redif_env.envs.environments",
    "ReDiFPipeline": "redif_env.students.export",
    "ReDiFScheduler": "redif_env.students.export",
    "ReDiFVectorEnv": "redif_env.envs.environments",
    "Student": "redif_env.students.student",
    "Teacher": "redif_env.teachers.teacher",
    "load_teacher": "redif_env.teachers.teacher",
}


PRESETS: dict[str, dict[str, Any]] = {
    "Digits-4": {"teacher": "digits", "num_steps": 4},
    "Digits-6": {"teacher": "digits", "num_steps": 6},
    "Digits-8": {"teacher": "digits", "num_steps": 8},
    "DigitsClasses-4": {"teacher": "digits-classes", "num_steps": 4},
    "Mnist-4": {"teacher": "mnist", "num_steps": 4},
    "Cifar10-4": {"teacher": "cifar10", "num_steps": 4},
    "Cifar10-6": {"teacher": "cifar10", "num_steps": 6},
}
"""Standard tasks, ``ReDiF/<name>-v0``: arguments that are never changed, so that results compare."""


# Whoever only samples from a student never loads Gymnasium.
@when_imported("gymnasium")
def _register(gymnasium: ModuleType) -> None:
    points = {
        "entry_point": "redif_env.envs.environments:ReDiFEnv",
        "vector_entry_point": "redif_env.envs.environments:ReDiFVectorEnv",
    }
    gymnasium.register(id="ReDiF-v0", **points)
    for name, arguments in PRESETS.items():
        gymnasium.register(id=f"ReDiF/{name}-v0", **points, kwargs=arguments)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'redif_env' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
