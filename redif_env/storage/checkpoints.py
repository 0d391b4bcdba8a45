"""Checkpoints: nested states in folders that are whole or absent, without a pickle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save_file
from torch import Tensor

from redif_env.storage.files import CorruptFileError, read_sealed, remove_debris, write_folder, write_sealed

FORMAT = 2
STATE_FILE, TENSORS_FILE = "state.json", "tensors.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def newest_state(folder: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint that is whole; None if there is none. A damaged one is a warning.

    Raises:
        CorruptFileError: if there are checkpoints, and none of them can be read.
    """
    remove_debris(folder)
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            return read_state(path)
        except (CorruptFileError, FileNotFoundError) as error:
            warnings.warn(f"a checkpoint is left out: {error}", stacklevel=3)
    if found:
        raise CorruptFileError(f"no checkpoint in {folder} can be read: delete the folder to start again")
    return None


def add_state(folder: Path, number: int, state: dict[str, Any], keep: int) -> None:
    """Write a checkpoint, named by its number, and remove all but the newest ``keep``.

    An old one that cannot be removed is a warning: the new one is written.
    """
    write_state(folder / f"{number:012d}", state)
    for path in checkpoints(folder)[:-keep]:
        try:
            remove_checkpoint(path)
        except OSError as error:
            warnings.warn(f"old checkpoint {path} was not removed ({error})", stacklevel=2)


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint; its record first, so that a part of one is never read as a whole one."""
    for name in (STATE_FILE, TENSORS_FILE):
        (path / name).unlink(missing_ok=True)
    path.rmdir()


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write nested dicts and lists of tensors, arrays and JSON values as a folder, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    plain = _take_tensors(state, "", tensors)
    with write_folder(path) as fresh:
        save_file(tensors, fresh / TENSORS_FILE)
        write_sealed(fresh, STATE_FILE, {"format": FORMAT, "state": plain})


def read_state(path: Path) -> dict[str, Any]:
    """Read a folder that :func:`write_state` wrote.

    Raises:
        FileNotFoundError, CorruptFileError: if it is missing, or not what was written.
    """
    remedy = "delete this checkpoint, an older one or the start will do"
    content = read_sealed(path, STATE_FILE, remedy)
    if content["format"] != FORMAT:
        raise CorruptFileError(f"{path} has format {content['format']}, this version reads {FORMAT}: {remedy}")
    # Read rather than mapped: a run that goes on deletes its old checkpoints, which Windows refuses for mapped files.
    state: dict[str, Any] = _put_tensors(content["state"], load((path / TENSORS_FILE).read_bytes()))
    return state


def _take_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` with its tensors and arrays moved to ``tensors``, and replaced by their names."""
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        if isinstance(value, np.ndarray):
            # torch and safetensors agree on few unsigned types.
            value = torch.from_numpy(value.astype(np.int64) if value.dtype.kind == "u" else value)
        # A copy: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {kind: name}
    if isinstance(value, Mapping):
        items = [[key, _take_tensors(item, f"{name}.{key}", tensors)] for key, item in value.items()]
        return {"items": items}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_take_tensors(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    return value.item() if isinstance(value, np.generic) else value


def _put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_put_tensors(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:
        return tensors[value["array"]].numpy()
    return {key: _put_tensors(item, tensors) for key, item in value["items"]}
