"""Tensors that are costly to compute, kept on disk under a key that is a digest of all they depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from redif_env.storage.files import ASSETS, CorruptFileError, cache_folder, write_file


def cached(key: str, compute: Callable[[], Tensor]) -> Tensor:
    """The tensor kept under ``key``, from the package's own assets or the user's cache; else computed and kept.

    If the cache folder cannot be written, the tensor is computed each time.

    Raises:
        CorruptFileError: if a kept file is not what was written.
    """
    kept = cached_file(key)
    if kept is not None:
        return read_tensor(kept)
    tensor = compute()
    # A read-only home must not stop training; the price is to compute again next time.
    with suppress(OSError):
        write_tensor(cache_folder() / f"{key}.safetensors", tensor)
    return tensor


def cached_file(key: str) -> Path | None:
    """Where the tensor of ``key`` is kept, if it is."""
    for folder in (ASSETS / "cache", cache_folder()):
        path = folder / f"{key}.safetensors"
        if path.exists():
            return path
    return None


def write_tensor(path: Path, tensor: Tensor) -> None:
    """Write a tensor with its digest, whole or not at all."""
    tensor = tensor.detach().cpu().contiguous()
    with write_file(path) as temporary:
        save_file({"value": tensor}, temporary, metadata={"sha256": _digest(tensor)})


def read_tensor(path: Path) -> Tensor:
    """Read what :func:`write_tensor` wrote.

    Raises:
        CorruptFileError: if it is something else, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensor, expected = file.get_tensor("value"), (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFileError(f"cache file {path} cannot be read ({error}): delete it, it is computed anew") from error
    if _digest(tensor) != expected:
        raise CorruptFileError(f"cache file {path} is damaged (its digest differs): delete it, it is computed anew")
    return tensor


def _digest(tensor: Tensor) -> str:
    described = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    return hashlib.sha256(described + tensor.numpy().tobytes()).hexdigest()
