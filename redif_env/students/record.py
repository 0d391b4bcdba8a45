"""What a student remembers of its making: for its model card, for ``redif info``, and for whoever finds it later."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("diffusers", "gymnasium", "numpy", "redif-env", "stable-baselines3", "torch", "torchmetrics")


@dataclass(frozen=True)
class Record:
    """How a student was made, and how good it was found; all of it plain JSON values.

    ``training``: the settings of the program that trained it; ``judged``: on what ``quality`` was measured, in words;
    ``quality``: rows of a table, the student's own first; ``versions``: of the packages that wrote it; ``license``: of
    the teacher's weights, by the hub's names.
    """

    training: dict[str, Any] = field(default_factory=dict)
    judged: str = ""
    quality: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    license: str = "unknown"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result, those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
