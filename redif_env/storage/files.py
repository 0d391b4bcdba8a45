"""Files that are whole or absent: atomic writing, content digests, and where the library keeps things."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent.parent / "assets"
"""Built-in teachers and feature networks."""

_UNFINISHED = ".unfinished."
"""Part of the name of whatever is not yet, or no longer, in its place."""


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
        PermissionError, OSError: as the file system says, naming the folder; ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}{_UNFINISHED}", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        _replace(Path(name), path, path)
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
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}{_UNFINISHED}", dir=path.parent))
    try:
        yield fresh
        fresh.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}{_UNFINISHED}old.", dir=path.parent))
            try:
                _replace(path, old / path.name, path)
                _replace(fresh, path, path)
            except BaseException:
                if (old / path.name).exists():
                    os.replace(old / path.name, path)
                old.rmdir()
                raise
            # What is still open elsewhere may refuse to go; remove_debris finds it.
            shutil.rmtree(old, ignore_errors=True)
        else:
            _replace(fresh, path, path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _replace(source: Path, target: Path, path: Path) -> None:
    """Rename, to write ``path``. Windows refuses it while a program, be it for a moment, has either open or mapped."""
    for pause in (0.1, 0.3, 0.6, None):
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if pause is None:
                raise PermissionError(
                    f"{path} cannot be written ({error.strerror}): close what has it open or was loaded "
                    "from it, or choose another place; what stood there is as it was"
                ) from error
            time.sleep(pause)


def remove_debris(folder: Path) -> None:
    """Delete what writers killed halfway have left in ``folder``. None may be at work there."""
    for path in folder.glob(f".*{_UNFINISHED}*") if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_sealed(folder: Path, name: str, content: dict[str, Any], loose: Collection[str] = ()) -> None:
    """Write ``content`` as ``folder/name`` (JSON), with the digest of every other file there and one of its own.

    Args:
        folder: complete but for this file.
        name: of the file.
        content: JSON values.
        loose: names of files that may be changed later, and have no digest.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    digests = {key: sha256(path) for key, path in names.items() if key not in loose and key != name}
    # Bytes, since text would have other line ends on Windows, and its digest with it.
    (folder / name).write_bytes(_sealed({**content, "sha256": digests}).encode())


def read_sealed(folder: Path, name: str, remedy: str) -> dict[str, Any]:
    """The content that :func:`write_sealed` wrote, once every byte is as it was.

    Args:
        folder, name: of the file.
        remedy: what messages tell the user to do.

    Raises:
        FileNotFoundError: if there is no such file.
        CorruptFileError: if it, or a file that it has a digest of, is missing or not what was written.
    """
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {name}: {remedy}")
    try:
        text = path.read_bytes().decode()
        content: dict[str, Any] = json.loads(text)
        digests = dict(content["sha256"])
        del content["seal"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} cannot be read ({error!r}): {remedy}") from error
    if text != _sealed(content):
        raise CorruptFileError(f"{path} is damaged (its digest differs): {remedy}")
    for key, expected in digests.items():
        if not (folder / key).is_file():
            raise CorruptFileError(f"{folder} lacks {key}: {remedy}")
        if sha256(folder / key) != expected:
            raise CorruptFileError(f"{folder / key} is damaged (its digest differs): {remedy}")
    return content


def _sealed(content: dict[str, Any]) -> str:
    """The one text that stands for ``content``: its digest is part of it, and any other text is not this one."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "seal": digest}, indent=2) + "\n"
