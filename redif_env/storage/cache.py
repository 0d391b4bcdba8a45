"""Tensors that are costly to compute, stored on disk under a key that is a digest of all they depend on."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from redif_env.storage.files import ASSETS, CorruptFileError, cache_folder, write_file

_GIVEN: dict[str, Tensor] = {}
_GATHERED: list[dict[str, Tensor]] = []


def give(tensors: Mapping[str, Tensor]) -> None:
    """Have tensors at hand that another process has computed: :func:`cached` looks among them first."""
    _GIVEN.update(tensors)


@contextmanager
def gathered() -> Iterator[dict[str, Tensor]]:
    """A dict of every tensor that :func:`cached` returns in this context, by key: what :func:`give` takes elsewhere."""
    found: dict[str, Tensor] = {}
    _GATHERED.append(found)
    try:
        yield found
    finally:
        _GATHERED.remove(found)


def cached(key: str, compute: Callable[[], Tensor]) -> Tensor:
    """The tensor of ``key``: at hand already, or stored, or computed (:func:`_stored`)."""
    tensor = _GIVEN[key] if key in _GIVEN else _stored(key, compute)
    for found in _GATHERED:
        found[key] = tensor.detach().cpu()
    return tensor


def _stored(key: str, compute: Callable[[], Tensor]) -> Tensor:
    """The tensor stored under ``key``, in the package's own assets or the user's cache; else computed and stored.

    A cache that cannot be read or written (another user's file, a full disk, no home) is a warning, and the tensor is
    computed.

    Raises:
        CorruptFileError: if a stored file is not what was written.
    """
    found = cached_file(key)
    if found is not None:
        try:
            return read_tensor(found)
        except OSError as error:
            warnings.warn(f"cache file {found} cannot be read ({error}): it is computed anew", stacklevel=2)
    tensor = compute()
    store(key, tensor)
    return tensor


def cached_file(key: str) -> Path | None:
    """The file that holds the tensor of ``key``; None if there is none, or its folder cannot be looked into."""
    for folder in cache_folders():
        path = folder / f"{key}.safetensors"
        try:
            if path.exists():
                return path
        except OSError as error:
            warnings.warn(f"cache folder {folder} cannot be read ({error}): set REDIF_CACHE", stacklevel=2)
    return None


def cached_files(pattern: str) -> list[Path]:
    """The files whose keys match a glob ``pattern``, by name; none of a folder that cannot be looked into."""
    found: list[Path] = []
    for folder in cache_folders():
        try:
            found += folder.glob(f"{pattern}.safetensors")
        except OSError as error:
            warnings.warn(f"cache folder {folder} cannot be read ({error}): set REDIF_CACHE", stacklevel=2)
    return sorted(found, key=lambda path: path.name)


def cache_folders() -> list[Path]:
    """Where tensors are looked for: the package's own assets, then the user's cache if there is a place for one."""
    try:
        return [ASSETS / "cache", cache_folder()]
    except FileNotFoundError:
        return [ASSETS / "cache"]


def store(key: str, tensor: Tensor) -> None:
    """Write ``tensor`` to the user's cache; if that cannot be written, a warning, at the price of computing again."""
    try:
        write_tensor(cache_folder() / f"{key}.safetensors", tensor)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"{key}.safetensors was not written to the cache ({error}): set REDIF_CACHE", stacklevel=2)


def write_tensor(path: Path, tensor: Tensor) -> None:
    """Write a tensor with its digest, whole or not at all."""
    tensor = tensor.detach().cpu().contiguous()
    with write_file(path) as temporary:
        save_file({"value": tensor}, temporary, metadata={"sha256": _digest(tensor)})


def read_tensor(path: Path) -> Tensor:
    """Read what :func:`write_tensor` wrote.

    Raises:
        CorruptFileError: if it is something else, or damaged.
        OSError: if it cannot be read.
    """
    try:
        with path.open("rb"):  # so that what the file system refuses is not taken for damage
            pass
        with safe_open(path, framework="pt") as file:
            tensor, expected = file.get_tensor("value"), (file.metadata() or {}).get("sha256")
    except (SafetensorError, ValueError) as error:
        raise CorruptFileError(f"cache file {path} cannot be read ({error}): delete it, it is computed anew") from error
    if _digest(tensor) != expected:
        raise CorruptFileError(f"cache file {path} is damaged (its digest differs): delete it, it is computed anew")
    return tensor


def _digest(tensor: Tensor) -> str:
    described = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    return hashlib.sha256(described + tensor.numpy().tobytes()).hexdigest()
