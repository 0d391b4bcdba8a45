"""What an experiment has computed, kept in its folder: made once, and never mixed with what other settings made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from redif_env.storage.files import write_file


def file_name(text: str) -> str:
    """``text`` as the name of a file."""
    return text.replace(", ", "-").replace(" ", "-").replace("/", "-")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON: the whole file or none."""
    with write_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def once(path: Path, make: Callable[[], Any]) -> Any:
    """The JSON value kept in ``path``; that of ``make`` if there is none yet."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text("utf-8"))


def same_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Hold a folder to the settings that everything in it is made with: the first to come writes them there.

    Args:
        out: folder; the settings are its ``settings.json``.
        settings: JSON values by name.

    Raises:
        ValueError: if other settings are there, naming them.
    """
    then = once(out / "settings.json", lambda: settings)
    now = json.loads(json.dumps(settings))
    told = [f"{name}={now.get(name)!r} (was {then.get(name)!r})" for name in now if now.get(name) != then.get(name)]
    if told:
        raise ValueError(f"out='{out}' holds rows made with other settings: {', '.join(told)}: choose another folder")
