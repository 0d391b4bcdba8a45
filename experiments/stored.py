"""What an experiment has computed, stored in its folder: made once, and never mixed with results of other settings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from redif_env.storage.files import write_json


def file_name(text: str) -> str:
    """``text`` as the name of a file, on every system."""
    return re.sub(r'[\s,<>:"/\\|?*]+', "-", text)


def once(path: Path, make: Callable[[], Any]) -> Any:
    """The JSON value stored in ``path``; that of ``make`` if there is none yet."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def same_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder whose results were made with other settings; a new folder stores these as ``settings.json``.

    Raises:
        ValueError: if other settings are stored there, naming them.
    """
    then = once(out / "settings.json", lambda: settings)
    now = json.loads(json.dumps(settings))
    other = [f"{name}={now.get(name)!r} (was {then.get(name)!r})" for name in now if now.get(name) != then.get(name)]
    if other:
        raise ValueError(f"out='{out}' holds rows made with other settings: {', '.join(other)}: choose another folder")
