"""A run's folder: the settings it was started with, written once, and compared with those it is resumed with."""

from __future__ import annotations

import json
import math
import subprocess
import warnings
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from redif_env.storage.checks import check_at_least
from redif_env.storage.files import remove_debris, write_json
from redif_env.students.record import installed_versions

CONFIG_FILE, RESULT = "config.json", "result.json"
NOT_STORED = ("resume", "dry_run")
"""Settings that say what to do with a run, not what it is."""

COUNTS = (
    *("num_steps", "min_steps", "num_envs", "group_size", "batches", "epochs", "network_calls", "reference_size"),
    *("teacher_steps", "held_out_every", "checkpoint_every", "population", "noises", "elite"),
)
"""Settings that must be at least 1."""
RANGES = {"gamma": (0, 1), "average": (0, 1), "smoothing": (0, 1), "memory": (0, 1), "seed": (0, 2**32 - 1)}
"""Smallest and largest value of other settings."""

Settings = TypeVar("Settings")


class UnhealthyRunError(Exception):
    """A run that cannot go on; the message says what to change."""


class RunStoppedError(Exception):
    """A run was stopped by a signal, and has left a checkpoint."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def settings_json(settings: Any) -> dict[str, Any]:
    """A settings dataclass as JSON values."""
    stored = {item.name: getattr(settings, item.name) for item in fields(settings) if item.name not in NOT_STORED}
    return json.loads(json.dumps(stored, default=_plain))


def check_settings(settings: Any) -> None:
    """Hold the numbers among a program's settings against their ranges; None passes.

    Raises:
        ValueError: naming the setting and its value.
    """
    given = {item.name: getattr(settings, item.name) for item in fields(settings)}
    check_at_least(1, **{name: given.get(name) for name in COUNTS})
    check_at_least(0, table_calls=given.get("table_calls"))
    for name, value in given.items():
        if isinstance(value, int | float) and not abs(value) < 2**63:
            raise ValueError(f"{name} must be a finite number of 64 bits, got {value}")
    check_at_least(2, test_size=given.get("test_size"), held_out_size=given.get("held_out_size"))
    for name, (low, high) in RANGES.items():
        value = given.get(name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value}")
    for name in ("learning_rate", "clip_range", "std_init", "difference", "damping", "largest"):
        value = given.get(name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {value}")
    for size in given.get("hidden") or ():
        check_at_least(1, hidden=size)
    exploration = given.get("exploration")
    if exploration is not None and not math.inf > exploration[0] >= exploration[1] > 0:
        raise ValueError(f"exploration must fall from the first number to the second, both above 0, got {exploration}")


def unfinished(settings: Any, program: str) -> bool:
    """Whether there is something left to do in ``settings.out``, which is made; if not, say so. See :func:`check`.

    Raises:
        ValueError: if the folder cannot be written, or holds another run.
    """
    prepare_folder(settings.out)
    check(settings, program)
    if not (settings.out / RESULT).exists():
        return True
    print(f"{settings.out} is finished: {RESULT} has its table, student/ its student")
    return False


def prepare_folder(out: Path) -> None:
    """Make the output folder, and find out before any work whether it can be written.

    Raises:
        ValueError: if it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"out='{out}' cannot be written ({error.strerror}): choose another folder") from error


def begin(settings: Any, program: str) -> None:
    """Write ``config.json``, unless the run was started before; :func:`check` first.

    Called once everything else has accepted the settings, so that refused settings take no folder.
    """
    check(settings, program)
    path = settings.out / CONFIG_FILE
    if path.exists():
        remove_debris(settings.out)
        return
    config = {"program": program, "settings": settings_json(settings), **surroundings()}
    write_json(path, config)


def check(settings: Any, program: str) -> None:
    """Compare the run in ``settings.out``, if there is one, with ``settings``; other versions are a warning.

    Args:
        settings: dataclass with ``out`` and ``resume``.
        program: name of the algorithm.

    Raises:
        ValueError: if there is a run and ``resume`` is false, or it was started with other settings.
    """
    if not (settings.out / CONFIG_FILE).exists():
        return
    if not settings.resume:
        raise ValueError(
            f"out='{settings.out}' holds a run already: add --resume to go on with it, or choose another folder"
        )
    then, now = read_config(settings.out), settings_json(settings)
    changed = [key for key, value in then["settings"].items() if key != "out" and now.get(key) != value]
    if changed or then["program"] != program:
        differences = ", ".join(f"{key}={now.get(key)!r} (was {then['settings'][key]!r})" for key in changed)
        raise ValueError(
            f"out='{settings.out}' holds a run of {then['program']} with other settings"
            f"{': ' + differences if differences else ''}: "
            "choose another folder, or leave the settings out"
        )
    for name, value in surroundings().items():
        if then[name] != value:
            warnings.warn(
                f"{name} have changed since the run was started ({then[name]} to {value}): the result may differ from "
                "that of an unbroken run",
                stacklevel=2,
            )


def read_config(out: Path) -> dict[str, Any]:
    """A run's ``config.json``.

    Raises:
        ValueError: if it is none.
    """
    path = out / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        known = set(config) == {"program", "settings", "versions", "git"}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): choose another folder") from error
    if not known:
        raise ValueError(f"{path} is no run's config, its keys are {sorted(config)}: choose another folder")
    return config


def read_settings(out: Path, defaults: Settings) -> Settings:
    """The settings that the run in ``out`` was started with.

    Raises:
        ValueError: if it has settings that this version does not know.
    """
    stored = read_config(out)["settings"]
    known = {item.name: getattr(defaults, item.name) for item in fields(defaults)}  # type: ignore[arg-type]
    unknown = sorted(set(stored) - set(known))
    for name, default in known.items():
        if is_dataclass(default) and name in stored:
            unknown += [f"{name}.{key}" for key in stored[name] if not hasattr(default, key)]
    if unknown:
        raise ValueError(f"{out / CONFIG_FILE} has unknown settings {unknown}: resume it with the version it names")
    return replace(defaults, **{name: _restored(value, known[name]) for name, value in stored.items()})  # type: ignore[type-var]


def surroundings() -> dict[str, Any]:
    """Versions of the packages, and the commit of this checkout."""
    return {"versions": installed_versions(), "git": _git_state()}


def _git_state() -> dict[str, Any] | None:
    def ask(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()

    try:
        # Pictures and students that users write into the checkout are no change of the code.
        changed = ask("status", "--porcelain", "--untracked-files=no")
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _restored(value: Any, default: Any) -> Any:
    """A JSON value in the type that the setting's default has."""
    if is_dataclass(default) and not isinstance(default, type):
        own = {name: _restored(item, getattr(default, name)) for name, item in value.items()}
        return replace(default, **own)
    if isinstance(default, Path):
        return Path(value)
    if isinstance(value, list):
        return tuple(_restored(item, None) for item in value)
    return value
