"""Files that are whole or absent: atomic writing, content digests, and where the library keeps things."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
"""Built-in teachers and feature networks."""


class CorruptFileError(ValueError):
    """A file that this library wrote is not what it wrote."""


def cache_folder() -> Path:
    """Where computed reference sets are kept: ``$REDIF_CACHE``, else ``redif`` in the user's cache folder."""
    given = os.environ.get("REDIF_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "redif"


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def write_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, then rename it: readers see the whole file or none.

    Raises:
        PermissionError, OSError: as the file system says, naming the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to fill, then put it in the place of ``path``.

    What stood at ``path`` stays until the new folder is complete. A process killed in between leaves the old folder,
    or the new one, or (between two renames) neither, but never a mixture.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file: give the path of a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield fresh
        fresh.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.replace(path, old / path.name)
            os.replace(fresh, path)
            shutil.rmtree(old)
        else:
            os.replace(fresh, path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
