import os
import subprocess
import sys

import pytest
import torch

from redif_env.storage.cache import cached, read_tensor, write_tensor
from redif_env.storage.files import CorruptFileError, cache_folder, write_file, write_folder
from redif_env.teachers.references import TEST_SEED, TRAIN_SEED, VALIDATION_SEED, draw_starts, reference_set


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REDIF_CACHE", str(tmp_path))
    return tmp_path


def test_computed_once(folder):
    calls = []

    def compute():
        calls.append(1)
        return torch.arange(6.0).reshape(2, 3)

    first, second = cached("key", compute), cached("key", compute)
    assert len(calls) == 1
    assert torch.equal(first, second)
    assert [path.name for path in folder.iterdir()] == ["key.safetensors"]


def test_damaged_files_are_refused(folder):
    """A flipped bit, a truncated file or another file is an error that names the file and the remedy."""
    write_tensor(folder / "key.safetensors", torch.arange(100.0))
    whole = (folder / "key.safetensors").read_bytes()
    for place in (len(whole) - 1, len(whole) // 2, 9):
        (folder / "key.safetensors").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CorruptFileError, match=r"key.safetensors .*: delete it, it is computed anew"):
            cached("key", lambda: torch.zeros(1))
    for content in (whole[:-7], b"", b"hello"):
        (folder / "key.safetensors").write_bytes(content)
        with pytest.raises(CorruptFileError, match="delete it"):
            cached("key", lambda: torch.zeros(1))


def test_unwritable_cache_folder_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("REDIF_CACHE", str(tmp_path / "file"))
    assert cached("key", lambda: torch.ones(2)).tolist() == [1.0, 1.0]


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("REDIF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "redif"


def test_interrupted_writing_leaves_nothing(tmp_path):
    (tmp_path / "old.txt").write_text("old")

    def write_half(context, name):
        with context as temporary:
            (temporary / name).write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half(write_file(tmp_path / "old.txt"), "")
    with pytest.raises(KeyboardInterrupt):
        write_half(write_folder(tmp_path / "new"), "half")
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"]
    assert (tmp_path / "old.txt").read_text() == "old"


def test_folders_are_replaced_whole(tmp_path):
    for content in ("first", "second"):
        with write_folder(tmp_path / "folder") as temporary:
            (temporary / content).write_text(content)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "second"]
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="give the path of a folder"), write_folder(tmp_path / "file"):
        pass


def test_killed_writer_leaves_no_valid_cache_file(folder):
    """After SIGKILL during writing, the next run computes the tensor again."""
    script = (
        "import sys, torch\n"
        "from redif_env.storage import cache, files\n"
        "def slow(tensors, path, metadata):\n"
        "    path.write_bytes(b'half'); print('writing', flush=True); sys.stdin.read()\n"
        "cache.save_file = slow\n"
        "cache.cached('key', lambda: torch.ones(3))\n"
    )
    environment, pipe = {**os.environ, "REDIF_CACHE": str(folder)}, subprocess.PIPE
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"writing\n"
        process.kill()
    assert any(folder.iterdir())
    assert not (folder / "key.safetensors").exists()
    assert cached("key", lambda: torch.ones(3)).tolist() == [1.0] * 3
    assert read_tensor(folder / "key.safetensors").tolist() == [1.0] * 3


def test_reference_sets_are_keyed_by_all_they_depend_on(folder, ring):
    first = reference_set(ring, 8, seed=0, num_steps=5)
    keys = {
        first.key,
        reference_set(ring, 9, seed=0, num_steps=5).key,
        reference_set(ring, 8, seed=1, num_steps=5).key,
        reference_set(ring, 8, seed=0, num_steps=6).key,
    }
    assert len(keys) == 4
    again = reference_set(ring, 8, seed=0, num_steps=5)
    assert torch.equal(again.endpoints, first.endpoints)
    torch.testing.assert_close(first.endpoints, ring.endpoint(first.noise, 5))


def test_the_three_sets_share_no_noise(ring):
    """Training, validation and test sets share no noise, also between sets of different sizes."""
    sets = [draw_starts(ring, 3000, seed)[0] for seed in (TRAIN_SEED, VALIDATION_SEED, TEST_SEED)]
    rows = [tuple(row) for noise in sets for row in noise.tolist()]
    assert len(set(rows)) == 9000


def test_default_reference_set_is_shipped():
    """The endpoints of the default environment are in the package."""
    from redif_env import load_teacher
    from redif_env.storage.files import ASSETS

    teacher = load_teacher("digits")
    reference = reference_set(teacher, 4096)
    assert (ASSETS / "cache" / f"{reference.key}.safetensors").is_file()
    torch.testing.assert_close(reference.endpoints[:4], teacher.endpoint(reference.noise[:4]), rtol=0, atol=1e-2)
