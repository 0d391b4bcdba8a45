"""Metadata of a student: how it was trained and evaluated, for the model card and ``redif info``."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("diffusers", "gymnasium", "numpy", "redif-env", "stable-baselines3", "torch", "torchmetrics")


@dataclass(frozen=True)
class Record:
    """Training settings and evaluation results of a student, as JSON values.

    Args:
        training: settings of the program that trained it.
        evaluated_on: description of the evaluation.
        results: rows of the evaluation, the student's first.
        versions: versions of the packages that wrote it.
        license: license of the teacher's weights, by the hub's names.
    """

    training: dict[str, Any] = field(default_factory=dict)
    evaluated_on: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    license: str = "unknown"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that affect results."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
