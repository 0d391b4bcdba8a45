"""How every training program starts: settings from the command line, and user errors in one line."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import tyro
from safetensors import SafetensorError

from redif_env.mdp.settings import TeacherSettings, default_sizes, parse_device, shared_teacher
from redif_env.teachers.teacher import Teacher
from redif_env.training.options import arguments_of
from redif_env.training.runs import CONFIG_FILE, RunStoppedError, UnhealthyRunError, check_settings, read_settings

Settings = TypeVar("Settings")

DEFAULT_REWARD = (("feature", 1.0), ("energy", 0.1))
"""Reward terms and weights of the training programs: the best of ``experiments.ablate --what rewards``."""


def run(
    main: Callable[[Settings], None],
    settings: type[Settings],
    settled: Callable[[Settings], Settings] = lambda given: given,
    *,
    arguments: Sequence[str] | None = None,
    prog: str | None = None,
) -> None:
    """Parse ``settings`` (a dataclass) from the command line and call ``main``; on bad input print a sentence and exit.

    ``settled`` fills in what depends on other settings; ``arguments`` are by default those of this process.
    """
    try:
        given: Any = parse(settings, settled, sys.argv[1:] if arguments is None else arguments, prog)
        if getattr(given, "device", None) == "auto":
            print(f"device: {parse_device('auto')}")
        main(given)
    except (ValueError, FileNotFoundError, PermissionError, ImportError) as error:
        _leave(f"error: {error}", 2)
    except (OSError, SafetensorError) as error:
        if "No space left" not in str(error) and getattr(error, "errno", None) != errno.ENOSPC:
            raise
        _leave(f"error: the disk is full ({error}): make room, then add --resume; what was written is whole", 1)
    except UnhealthyRunError as error:
        _leave(f"error: {error}", 1)
    except RunStoppedError as stopped:
        _leave(str(stopped), stopped.exit_code)


def with_sizes(settings: Settings) -> Settings:
    """``settings`` with the teacher's default sizes of reference sets where they are None."""
    sizes = default_sizes(teacher_settings(settings))
    missing = [item.name for item in fields(sizes) if getattr(settings, item.name, 0) is None]
    return replace(settings, **{name: getattr(sizes, name) for name in missing})  # type: ignore[type-var]


def parse(
    settings: type[Settings],
    settled: Callable[[Settings], Settings],
    arguments: Sequence[str],
    prog: str | None = None,
) -> Settings:
    """``settings`` from the command line; with ``--resume``, those of the run in ``--out`` where none are given.

    Parsed twice: the first time says which defaults are in force, which the help of the second then shows.
    """
    given: Any = tyro.cli(settings, args=[word for word in arguments if word not in ("-h", "--help")], prog=prog)
    if hasattr(given, "out"):
        given = replace(given, out=given.out.expanduser())
    if getattr(given, "resume", False) and (given.out / CONFIG_FILE).exists():
        given = replace(read_settings(given.out, given), out=given.out, resume=True)
    found: Settings = tyro.cli(settings, args=list(arguments), default=settled(given), prog=prog)
    check_settings(found)
    return found


def teacher_of(settings: Any) -> Teacher:
    """The teacher that a training program's settings name; processes of the same settings share it."""
    return shared_teacher(teacher_settings(settings))


def teacher_settings(settings: Any) -> TeacherSettings:
    """Those among a training program's settings that decide its teacher."""
    return TeacherSettings(**arguments_of(settings, TeacherSettings))


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
