"""How every program starts: settings from the command line, and user errors said in one line."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
from safetensors import SafetensorError

from agents.runs import CONFIG_FILE, RunStoppedError, read_settings
from redif_env.mdp.settings import parse_device, shared_teacher
from redif_env.sb3 import UnhealthyRunError
from redif_env.teachers.teacher import Teacher

Settings = TypeVar("Settings")

DEFAULT_REWARD = (("feature", 1.0), ("energy", 0.1))
"""Reward terms and weights of the training programs: the best of ``experiments.ablate_rewards``."""


def run(main: Callable[[Settings], None], settings: type[Settings]) -> None:
    """Parse ``settings`` (a dataclass) from the command line, call ``main``; on bad input say a sentence and exit."""
    try:
        arguments = parse(settings)
        if getattr(arguments, "device", None) == "auto":
            print(f"device: {parse_device('auto')}")
        main(arguments)
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


def parse(settings: type[Settings]) -> Settings:
    """``settings`` from the command line; with ``--resume``, those of the run in ``--out`` where none are given."""
    arguments = tyro.cli(settings)
    if not getattr(arguments, "resume", False) or not (arguments.out / CONFIG_FILE).exists():
        return arguments
    stored = read_settings(arguments.out, arguments)
    return tyro.cli(settings, default=replace(stored, out=arguments.out, resume=True))


def wanted(conditions: Sequence[str] | None) -> list[int] | list[str] | None:
    """Conditions as the command line gives them: class labels if all are whole numbers, else prompts."""
    if conditions is None:
        return None
    labels = [int(word) for word in conditions if word.isdigit()]
    return labels if len(labels) == len(conditions) else list(conditions)


def teacher_of(settings: Any) -> Teacher:
    """The teacher that a training program's settings name; processes of the same settings share it."""
    return shared_teacher(
        settings.teacher,
        parse_device(settings.device),
        torch.float32,
        conditions=wanted(settings.conditions),
        null_label=settings.null_label,
        guidance_scale=settings.guidance_scale,
    )


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


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
