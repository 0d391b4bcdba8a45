import locale
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from redif_env import Student
from redif_env.mdp.policies import Policy
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.storage.cache import cached, cached_file, read_tensor, write_tensor
from redif_env.storage.checkpoints import write_state
from redif_env.storage.files import CorruptFileError, cache_folder, write_file, write_folder
from redif_env.students.record import Record
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
    with pytest.warns(UserWarning, match=r"key\.safetensors was not written to the cache .*: set REDIF_CACHE"):
        assert cached("key", lambda: torch.ones(2)).tolist() == [1.0, 1.0]


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("REDIF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "redif"


def test_there_may_be_no_home(monkeypatch, tmp_path):
    """With a cache folder of one's own it is not needed; without, computing goes on, and the message says why."""
    monkeypatch.setattr("pathlib.Path.expanduser", no_home)
    monkeypatch.delenv("REDIF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cached("key", lambda: torch.ones(2)).tolist() == [1.0, 1.0]
    assert (tmp_path / "redif" / "key.safetensors").exists()
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.warns(UserWarning, match="no home folder for a cache .*: set REDIF_CACHE"):
        assert cached("key", lambda: torch.ones(2)).tolist() == [1.0, 1.0]


def no_home(path):
    if str(path).startswith("~"):
        raise RuntimeError("Could not determine home directory.")
    return path


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REDIF_CACHE", "~/mine")
    cached("key", lambda: torch.ones(2))
    with write_folder(Path("~/student")) as fresh:
        (fresh / "file").touch()
    with write_file(Path("~/picture.png")) as fresh:
        fresh.write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "picture.png", "student"]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    """The second user of a shared cache can read it, if the first one's umask lets him."""
    before = os.umask(umask)
    try:
        write_tensor(tmp_path / "key.safetensors", torch.ones(2))
        write_state(tmp_path / "state", {"a": torch.ones(2)})
        (tmp_path / "plain").touch()
        (tmp_path / "folder").mkdir()
    finally:
        os.umask(before)
    file, folder = ((tmp_path / name).stat().st_mode for name in ("plain", "folder"))
    assert (tmp_path / "key.safetensors").stat().st_mode == file
    assert (tmp_path / "state").stat().st_mode == folder
    assert {path.stat().st_mode for path in (tmp_path / "state").iterdir()} == {file}


def test_a_cache_that_cannot_be_read_costs_only_time(folder, monkeypatch):
    """A file of another user's, a locked folder: a warning that names it, and the tensor is computed."""
    write_tensor(folder / "key.safetensors", torch.zeros(2))
    locked = PermissionError(13, "Permission denied")

    def refuse(path, *arguments, **options):
        raise locked

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.open", refuse)
        with pytest.warns(UserWarning, match=r"key\.safetensors cannot be read .*Permission denied"):
            assert cached("key", lambda: torch.ones(2)).tolist() == [1.0, 1.0]
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.exists", lambda path: refuse(path) if folder in path.parents else False)
        with pytest.warns(UserWarning, match="cache folder .* cannot be read"):
            cached_file("key")


def test_a_full_disk_costs_only_time(folder, monkeypatch):
    """safetensors' own error is no OSError."""

    def full(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("redif_env.storage.cache.save_file", full)
    with pytest.warns(UserWarning, match=r"key\.safetensors was not written to the cache .*No space left"):
        assert cached("key", lambda: torch.ones(2)).tolist() == [1.0, 1.0]
    assert not list(folder.iterdir())


def test_links_stay_and_lead_to_what_was_written(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "to_file").symlink_to(tmp_path / "file")
    with write_folder(tmp_path / "link") as fresh:
        (fresh / "content").touch()
    with write_file(tmp_path / "to_file") as fresh:
        fresh.write_text("content")
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["content"]
    assert (tmp_path / "to_file").is_symlink()
    assert (tmp_path / "file").read_text() == "content"
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("name", [".", "..", "inner/.."])
def test_the_working_directory_is_not_replaced(tmp_path, monkeypatch, name):
    (tmp_path / "work" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ValueError, match="working directory or above it"), write_folder(Path(name)):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["work", "inner"]


@pytest.fixture
def plain_locale():
    """Texts whose encoding is not said are ASCII, or what Windows has."""
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    yield
    locale.setlocale(locale.LC_CTYPE, before)


@pytest.mark.skipif(sys.flags.utf8_mode, reason="no locale has a say")
def test_text_is_written_in_one_encoding(tmp_path, plain_locale):
    """Whatever the locale: a student's card and record, with names that need more than ASCII."""
    mdp = build_mdp(MDPSettings(teacher="gaussian-ring", num_steps=2))
    policy = Policy.from_table(torch.zeros(2, mdp.action_size), mdp.observation_size)
    student = Student(mdp, policy, Record({"out": "für \u7af9"}, evaluated_on="\u2192"))
    student.save_pretrained(tmp_path / "student")
    assert Student.from_pretrained(tmp_path / "student").record == student.record
    assert "für \u7af9" in (tmp_path / "student" / "README.md").read_text("utf-8")
    with pytest.raises(UnicodeEncodeError):  # the control
        (tmp_path / "text").write_text("\u7af9")


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
