"""Nested states on disk: what is read is what was written, or nothing."""

import numpy as np
import pytest
import torch

from redif_env.storage.checkpoints import (
    STATE_FILE,
    TENSORS_FILE,
    checkpoints,
    read_state,
    remove_checkpoint,
    write_state,
)
from redif_env.storage.files import CorruptFileError, read_sealed, remove_debris, write_file, write_folder, write_sealed

STATE = {
    "weights": {"a.b": torch.arange(6.0).reshape(2, 3), "double": torch.tensor(1 / 3, dtype=torch.float64)},
    "slots": {0: {"step": torch.tensor(5.0)}, 1: {}},
    "arrays": [np.array([True, False]), np.arange(3, dtype=np.uint32), np.float64(0.1)],
    "big": 2**127 - 1,
    "none": None,
    "empty": torch.zeros(0, 4),
    "infinite": float("inf"),
    "text": ["x", 1, 2.5, False],
}


def equal(left, right):
    if isinstance(left, dict):
        return set(left) == set(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(equal(*pair) for pair in zip(left, right, strict=True))
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return np.array_equal(left, right)


def test_states_come_back(tmp_path):
    """Tensors of every type, arrays, keys that are numbers, integers beyond 64 bits, shared memory."""
    shared = torch.arange(4.0)
    state = {**STATE, "views": [shared[:2], shared]}
    write_state(tmp_path / "000000000010", state)
    assert equal(state, read_state(tmp_path / "000000000010"))


def test_any_changed_byte_is_refused(tmp_path):
    path = tmp_path / "000000000010"
    write_state(path, STATE)
    for name in (STATE_FILE, TENSORS_FILE):
        whole = (path / name).read_bytes()
        for place in range(0, len(whole), 5):
            (path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(CorruptFileError, match="delete this checkpoint"):
                read_state(path)
        (path / name).write_bytes(whole)
    (path / TENSORS_FILE).unlink()
    with pytest.raises(CorruptFileError, match=r"lacks tensors\.safetensors"):
        read_state(path)


def test_another_format_is_refused(tmp_path):
    write_state(tmp_path / "1", STATE)
    content = read_sealed(tmp_path / "1", STATE_FILE, "")
    write_sealed(tmp_path / "1", STATE_FILE, {"format": 9, "state": content["state"]})
    with pytest.raises(CorruptFileError, match="has format 9, this version reads 2"):
        read_state(tmp_path / "1")


def test_checkpoints_are_listed_oldest_first_and_removed(tmp_path):
    assert checkpoints(tmp_path / "nowhere") == []
    for number in (300, 20, 1000):
        write_state(tmp_path / f"{number:012d}", {"number": number})
    (tmp_path / "notes").mkdir()
    assert [int(path.name) for path in checkpoints(tmp_path)] == [20, 300, 1000]
    remove_checkpoint(checkpoints(tmp_path)[0])
    assert [int(path.name) for path in checkpoints(tmp_path)] == [300, 1000]


def test_temporary_files_of_killed_writers_are_deleted(tmp_path):
    """All other files remain."""
    (tmp_path / ".hidden").write_text("mine")
    write_state(tmp_path / "7", STATE)

    class Killed(BaseException):
        pass

    def leave(writer, path):
        """A writer that is killed and leaves its temporary file."""
        with writer(path) as temporary:
            kept = temporary.with_name(temporary.name + "x")
            temporary.rename(kept)
            raise Killed

    for writer, name in ((write_folder, "8"), (write_file, "result.json")):
        with pytest.raises((Killed, FileNotFoundError)):
            leave(writer, tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 4
    remove_debris(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "7"]
    remove_debris(tmp_path / "nowhere")


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    write_state(tmp_path / "1", STATE)
    monkeypatch.setattr("redif_env.storage.checkpoints.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_state(tmp_path / "2", STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
