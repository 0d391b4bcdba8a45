"""Windows refuses to replace what is open or mapped into memory elsewhere: a sentence, and nothing is lost."""

import os

import pytest
import torch

from redif_env import Student
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.storage import files
from redif_env.storage.files import write_file, write_folder

REFUSED = "Access is denied"


class Refusing:
    """``os.replace`` that refuses some calls, by their number from 1 on."""

    def __init__(self, monkeypatch, *refused):
        self.calls, self.refused, self.replace = 0, refused, os.replace
        monkeypatch.setattr(files.os, "replace", self)
        monkeypatch.setattr(files.time, "sleep", lambda seconds: None)

    def __call__(self, source, target):
        self.calls += 1
        if self.calls in self.refused:
            raise PermissionError(13, REFUSED, str(source), None, str(target))
        self.replace(source, target)


def written(path):
    with write_file(path) as temporary:
        temporary.write_text("new")


def filled(path):
    with write_folder(path) as temporary:
        (temporary / "file").write_text("new")


@pytest.mark.parametrize("refused", [range(1, 5), range(2, 6)], ids=["to give way", "to come in"])
@pytest.mark.parametrize(("write", "name"), [(written, "file"), (filled, "folder")])
def test_what_cannot_be_replaced_stays(write, name, refused, tmp_path, monkeypatch):
    """One of the two renames is refused for good; a file needs but one."""
    (tmp_path / "folder").mkdir()
    for old in ("file", "folder/file"):
        (tmp_path / old).write_text("old")
    if name == "file":
        refused = range(1, 5)
    Refusing(monkeypatch, *refused)
    with pytest.raises(PermissionError, match=rf"{name} cannot be written \({REFUSED}\): close what has it open"):
        write(tmp_path / name)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "file",
        "folder",
        "folder/file",
    ]
    assert {(tmp_path / old).read_text() for old in ("file", "folder/file")} == {"old"}


@pytest.mark.parametrize("write", [written, filled])
def test_what_is_open_for_a_moment_is_waited_for(write, tmp_path, monkeypatch):
    """Virus scanners and indexers open each new file."""
    refusing = Refusing(monkeypatch, 1, 2, 3)
    write(tmp_path / "new")
    assert refusing.calls == 4
    assert (tmp_path / "new").exists()


def test_a_student_in_use_is_not_damaged(tmp_path, monkeypatch):
    """Saved over its own folder: with files mapped that may be replaced it goes on, else there is a sentence."""
    mdp = build_mdp(MDPSettings(teacher="gaussian-ring", num_steps=3))
    torch.manual_seed(0)
    Student(mdp, Policy(PolicyConfig((mdp.observation_size, 8, mdp.action_size)))).save_pretrained(tmp_path / "student")
    student = Student.from_pretrained(tmp_path / "student")
    noise = torch.randn(4, 2)
    before = student(noise=noise)
    student.save_pretrained(tmp_path / "student")
    assert torch.equal(student(noise=noise), before)
    Refusing(monkeypatch, *range(1, 5))
    with pytest.raises(PermissionError, match="student cannot be written"):
        student.save_pretrained(tmp_path / "student")
    assert torch.equal(Student.from_pretrained(tmp_path / "student")(noise=noise), before)
