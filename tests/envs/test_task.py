"""Each argument is written once: in the dataclass of a task, from where signatures, docs and options have it."""

import inspect
import json
import pickle
import sys
from dataclasses import fields
from importlib import import_module

import gymnasium as gym
import pytest

from redif_env import ReDiFEnv, ReDiFVectorEnv
from redif_env.envs.task import Task
from redif_env.mdp.arguments import docs_of
from redif_env.sb3 import make_vec_env
from tests.fresh import ours_forgotten

TINY = {"teacher": "gaussian-ring", "reference_size": 16, "teacher_steps": 8}
NAMES = [item.name for item in fields(Task)]
PLANTED = """
from dataclasses import dataclass

import redif_env.envs.task as task

@dataclass(frozen=True, kw_only=True)
class Wider(task.Task):
    shade: float = 0.25
    \"\"\"Lightness of the noise.\"\"\"

task.Task = Wider

import inspect
import gymnasium as gym
from redif_env import ReDiFEnv, ReDiFVectorEnv
from redif_env.sb3 import make_vec_env

for made in (ReDiFEnv, ReDiFVectorEnv, make_vec_env):
    assert inspect.signature(made).parameters["shade"].default == 0.25, made
assert "- `shade=0.25`: Lightness of the noise." in ReDiFEnv.__doc__
small = {"teacher": "gaussian-ring", "reference_size": 8, "teacher_steps": 4}
gym.make("ReDiF-v0", **small, shade=0.5)
gym.make_vec("ReDiF-v0", num_envs=2, **small, shade=0.5)
try:
    gym.make("ReDiF-v0", shadow=1)
except TypeError as error:
    assert "did you mean 'shade'?" in str(error), error

from redif_env import cli
cli.main()
"""


def test_an_argument_is_added_in_one_place(tmp_path, monkeypatch, capsys):
    """A field of a wider task: in both environments, in the adapter, in the page, at the command line."""
    monkeypatch.setattr(sys, "argv", ["redif", "train", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    with ours_forgotten(), pytest.raises(SystemExit) as left:
        import_module("planted")
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert "--shade FLOAT" in printed
    assert "Lightness of the noise. (default: 0.25)" in printed
    assert "shade" not in inspect.signature(ReDiFEnv).parameters


@pytest.mark.parametrize("made", [ReDiFEnv, ReDiFVectorEnv, make_vec_env])
def test_the_signature_shows_every_argument(made):
    found = inspect.signature(made).parameters
    for item in fields(Task):
        assert (found[item.name].default, found[item.name].annotation) == (item.default, item.type)
        assert found[item.name].kind is inspect.Parameter.KEYWORD_ONLY
    assert set(found) - set(NAMES) <= {"num_envs", "group_size", "autoreset_mode", "max_episode_steps", "render_mode"}


def test_the_page_shows_every_argument():
    docs = docs_of(Task)
    assert set(docs) == set(NAMES)
    page = " ".join(inspect.getdoc(ReDiFEnv).split())
    for item in fields(Task):
        assert f"- `{item.name}={item.default!r}`: {docs[item.name]}" in page
    assert "{arguments}" not in page


def test_an_unknown_argument_is_named():
    """With the environment, and with the nearest name or all of them."""
    with pytest.raises(TypeError, match=r"ReDiFEnv got .* argument 'num_step': did you mean 'num_steps'\?"):
        gym.make("ReDiF-v0", num_step=3)
    with pytest.raises(TypeError, match=r"ReDiFVectorEnv got .* 'group_sizes': did you mean 'group_size'\?"):
        gym.make_vec("ReDiF-v0", num_envs=2, group_sizes=2)
    with pytest.raises(TypeError, match=r"make_vec_env got .* 'qqq': choose among num_envs, .*, autocast"):
        make_vec_env(2, qqq=1)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        Task(num_step=3)


def test_specs_survive_json_and_pickle():
    made = gym.make("ReDiF-v0", **TINY, num_steps=2, reward={"endpoint": 2.0})
    for spec in (gym.envs.registration.EnvSpec.from_json(made.spec.to_json()), pickle.loads(pickle.dumps(made.spec))):
        again = gym.make(spec)
        assert again.unwrapped.batch.mdp.num_steps == 2
        assert again.spec.kwargs["reward"] == {"endpoint": 2.0}
    assert json.loads(made.spec.to_json())["kwargs"]["teacher"] == "gaussian-ring"
