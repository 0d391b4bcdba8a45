"""How every program starts: settings from the command line, and user errors said in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import tyro

Settings = TypeVar("Settings")

DEFAULT_REWARD = (("feature", 1.0), ("energy", 0.1))
"""Reward terms and weights of the training programs: the best of ``experiments.ablate_rewards``."""


def run(main: Callable[[Settings], None], settings: type[Settings]) -> None:
    """Parse ``settings`` (a dataclass) from the command line, call ``main``; on bad input say a sentence and exit."""
    arguments = tyro.cli(settings)
    try:
        main(arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


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
