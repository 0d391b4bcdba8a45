"""The command line's options, made of the environment's arguments."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import pytest
import tyro

from redif_env.diffusion.solvers import Solver
from redif_env.envs.task import Task
from redif_env.sb3.training.ppo import Args
from redif_env.sb3.training.recipes import settled
from redif_env.training.command import parse
from redif_env.training.options import Weights, arguments_of, option_type, options_of


@pytest.mark.parametrize(
    ("hint", "kind"),
    [
        (int, int),
        (bool, bool),
        (str | Solver, str),
        (str | Solver | None, str | None),
        (tuple[float, float] | None, tuple[float, float] | None),
        (str | Solver | Mapping[str, float], Weights),
        (Sequence[int] | Sequence[str] | Mapping[int, float] | None, tuple[str, ...]),
    ],
)
def test_objects_are_given_by_name(hint, kind):
    assert option_type(hint) == kind


def test_the_defaults_make_the_default_task():
    options = tyro.cli(options_of(Task), args=[])
    assert Task(**arguments_of(options, Task)) == Task(reward={"endpoint": 1.0})


def test_words_become_arguments():
    words = ["--conditions", "3", "5", "--reward", "feature", "1", "energy", "0.1", "--prices", "0.1", "1"]
    task = Task(**arguments_of(tyro.cli(options_of(Task), args=words), Task))
    assert task.conditions == ("3", "5")  # the network decides whether words are labels
    assert task.reward == {"feature": 1.0, "energy": 0.1}
    assert task.prices == (0.1, 1.0)
    prompts = arguments_of(tyro.cli(options_of(Task), args=["--conditions", "a cat", "7"]), Task)
    assert prompts["conditions"] == ("a cat", "7")


def test_options_can_be_left_out_or_have_other_defaults():
    kind = options_of(Task, without=("dtype",), teacher="mnist", observation=None)
    assert {item.name for item in fields(kind)} == {item.name for item in fields(Task)} - {"dtype"}
    assert (kind().teacher, kind().observation) == ("mnist", None)
    assert "dtype" not in arguments_of(kind(reward=(("endpoint", 1.0),)), Task)


def test_a_field_needs_no_default():
    kind = tyro.cli(options_of(Documented), args=["--size", "3"])
    assert kind.size == 3
    assert options_of(Documented)().size is None


@dataclass(frozen=True)
class Documented:
    """A dataclass of one field."""

    size: int
    """How large."""


def test_parsing_settles_and_resumes(tmp_path):
    """The recipe's values where none are given; those of the run in the folder where it is gone on with."""
    assert parse(Args, settled, []).learning_rate == 1e-3
    assert parse(Args, settled, ["--action", "noise"]).learning_rate == 2e-4
    stored = {"program": "ppo", "settings": {"num_steps": 7, "reward": [["path", 2.0]]}, "versions": {}, "git": None}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    found = parse(Args, settled, ["--resume", "--out", str(tmp_path), "--epochs", "9"])
    assert (found.num_steps, found.epochs, found.reward, found.resume) == (7, 9, (("path", 2.0),), True)
