"""Files that are whole or absent: atomic writing, content digests, and the library's own folders."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError

ASSETS = Path(__file__).parent.parent / "assets"
"""Built-in teachers and feature networks."""

_UNFINISHED = ".unfinished."
"""Part of the names of temporary files and folders."""


class CorruptFileError(ValueError):
    """A file that this library wrote is not what it wrote."""


def cache_folder() -> Path:
    """The folder of computed reference sets: ``$REDIF_CACHE``, else ``redif`` in the user's cache folder.

    Raises:
        FileNotFoundError: if there is no home folder to have it in.
    """
    given = os.environ.get("REDIF_CACHE")
    try:
        if given:
            return Path(given).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "redif"
    except RuntimeError as error:
        raise FileNotFoundError(f"there is no home folder for a cache ({error}): set REDIF_CACHE") from error


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def write_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, then rename it: readers see the whole file or none.

    A link stays, and the file that it leads to is written. Permissions are those of any new file of the user's.

    Raises:
        PermissionError, OSError: as the file system says, naming the file; ``path`` is as it was.
    """
    path = path.expanduser().resolve()
    fresh: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = _temporary(path)
        os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = fresh.stat().st_mode
        yield fresh
        fresh.chmod(mode)  # some writers make a file anew, for its owner alone
        _replace(fresh, path, path)
    except BaseException as error:
        if fresh is not None:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
        _raise_naming(path, error)


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to fill, then put it in the place of ``path``.

    The old folder at ``path`` stays until the new folder is complete. A process killed in between leaves the old
    folder, or the new one, or (between two renames) neither, but never a mixture. A link stays, and the folder that it
    leads to is written.

    Raises:
        NotADirectoryError, ValueError: if ``path`` is a file, or the working directory or a folder above it.
        OSError: as the file system says, naming the folder; ``path`` is as it was.
    """
    path = path.expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file: give the path of a folder")
    if Path.cwd().is_relative_to(path):
        raise ValueError(f"{path} is the working directory or above it, and cannot be replaced: name a folder in it")
    fresh: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = _temporary(path)
        fresh.mkdir()
        mode = fresh.stat().st_mode & 0o666
        yield fresh
        for file in fresh.rglob("*"):  # some writers make files for their owner alone
            if file.is_file():
                file.chmod(mode)
        if path.exists():
            _exchange(fresh, path)
        else:
            _replace(fresh, path, path)
    except BaseException as error:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)
        _raise_naming(path, error)


def _exchange(fresh: Path, path: Path) -> None:
    """Put ``fresh`` in the place of the folder ``path``, which is deleted; or leave ``path`` as it was."""
    old = _temporary(path)
    old.mkdir()
    try:
        _replace(path, old / path.name, path)
        _replace(fresh, path, path)
    except BaseException:
        if (old / path.name).exists():
            os.replace(old / path.name, path)
        old.rmdir()
        raise
    # Files that are open elsewhere may refuse to go; remove_debris finds them.
    shutil.rmtree(old, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A name beside ``path`` that nothing has."""
    return path.with_name(f".{path.name}{_UNFINISHED}{secrets.token_hex(8)}")


def _raise_naming(path: Path, error: BaseException) -> NoReturn:
    """Raise ``error``; one of the file system's that does not name ``path`` as one of the same class that does."""
    if not isinstance(error, OSError | SafetensorError) or str(path) in str(error):
        raise error
    if isinstance(error, SafetensorError):
        raise OSError(f"{path} cannot be written ({error})") from error
    raise type(error)(error.errno, f"{path} cannot be written ({error.strerror or error})") from error


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


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON: the whole file or none."""
    with write_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def remove_debris(folder: Path) -> None:
    """Delete the temporary files that killed writers left in ``folder``. No writer may be at work there."""
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
        loose: names of files without a digest, which may be changed later.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    digests = {key: sha256(path) for key, path in names.items() if key not in loose and key != name}
    # Bytes, since text would have other line ends on Windows, and its digest with it.
    (folder / name).write_bytes(_sealed({**content, "sha256": digests}).encode())


def read_sealed(folder: Path, name: str, remedy: str) -> dict[str, Any]:
    """The content that :func:`write_sealed` wrote; every byte is checked.

    Args:
        folder, name: of the file.
        remedy: the advice in messages.

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
    """``content`` as JSON text with a digest of its own."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "seal": digest}, indent=2) + "\n"
