"""Rewards and action maps of one's own: from ``gym.make`` to the exported student, or refused at once."""

import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import redif_env  # noqa: F401
from redif_env import ReDiFPipeline, Student
from redif_env.diffusion.grids import LevelsGrid, TimeGrid
from redif_env.diffusion.solvers import IPNDM
from redif_env.mdp.actions import SolverMap, StepMap
from redif_env.mdp.observations import Features
from redif_env.mdp.policies import Policy
from redif_env.mdp.settings import MDPSettings, build_mdp, part_of
from redif_env.sb3 import make_vec_env
from redif_env.students.export import ReDiFScheduler
from tests.own_parts import Twice, darkness

TINY = {"teacher": "gaussian-ring", "reference_size": 16, "teacher_steps": 8, "num_steps": 2}


def test_a_plain_function_is_a_reward():
    env = gym.make("ReDiF-v0", **TINY, reward=darkness)
    env.reset(seed=0)
    env.step(np.zeros(5, np.float32))
    *_, info = env.step(np.zeros(5, np.float32))
    found = -float(env.unwrapped.last_transition.next_state.x.mean())
    assert {"darkness": info["reward/darkness"]} == {"darkness": pytest.approx(found)}
    env = gym.make("ReDiF-v0", **TINY, reward=lambda transition: torch.zeros_like(transition.terminated, dtype=float))
    env.reset(seed=0)
    assert env.step(np.zeros(5, np.float32))[1] == 0


def test_a_reward_of_other_arguments_is_refused_at_once():
    for function in (lambda: 0.0, lambda state, action: 0.0):
        with pytest.raises(TypeError, match="reward 'custom' must be a function of one Transition"):
            gym.make("ReDiF-v0", **TINY, reward=function)
    gym.make("ReDiF-v0", **TINY, reward=lambda transition, scale=2: transition.live * scale)


def test_an_action_map_of_one_s_own_goes_with_the_student(tmp_path):
    """The file names where it is imported from; that is done only if the user allows it."""
    own = Twice(0.5, (1.5,))
    agent = PPO("MlpPolicy", make_vec_env(8, **TINY, action=own), n_steps=2, batch_size=16, n_epochs=1).learn(32)
    student = Student.from_agent(agent)
    student.save_pretrained(tmp_path / "student")
    for load in (Student.from_pretrained, ReDiFPipeline.from_pretrained):
        with pytest.raises(ValueError, match=r"'tests.own_parts:Twice' is code outside .*allow_imports=True"):
            load(tmp_path / "student")
    again = Student.from_pretrained(tmp_path / "student", allow_imports=True)
    assert again.mdp.action_map == own
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(noise=noise), student(noise=noise))
    scheduler = ReDiFScheduler.from_pretrained(tmp_path / "student", subfolder="scheduler")
    scheduler.set_timesteps(2)  # its steps are numbers


def test_the_library_s_own_maps_need_no_permission(tmp_path):
    agent = PPO("MlpPolicy", make_vec_env(8, **TINY, action=SolverMap(max_gain=0.1)), n_steps=2, batch_size=16)
    Student.from_agent(agent).save_pretrained(tmp_path / "student")
    assert Student.from_pretrained(tmp_path / "student").mdp.action_map == SolverMap(max_gain=0.1)


OWN = {
    "grid": TimeGrid(1.3),
    "grid of levels": LevelsGrid((-3.0, 0.0)),
    "solver": IPNDM(4, cautious=True),
    "observation": Features(bands=2),
}


@pytest.mark.parametrize("name", OWN)
def test_other_parts_without_a_name_go_with_the_student_too(name, tmp_path):
    argument = name.split()[0]
    mdp = build_mdp(MDPSettings(teacher="digits", num_steps=2, **{argument: OWN[name]}))
    student = Student(mdp, Policy.from_table(torch.full((2, mdp.action_size), 0.3), mdp.observation_size))
    student.save_pretrained(tmp_path / "student")
    again = Student.from_pretrained(tmp_path / "student")
    assert getattr(again.mdp, argument) == OWN[name]
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(noise=noise), student(noise=noise))


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize(
    "path",
    [
        "redif_env.training.runs:subprocess.run",
        "os:system",
        "redif_env.mdp.settings:Path",
        "redif_env.diffusion.grids:TimeGrid",
        "redif_env.nowhere:Map",
        "redif_env.mdp.actions",
    ],
)
def test_a_student_s_file_calls_nothing_but_parts(path, allowed, monkeypatch):
    """Whatever it names: a command that a module of ours can reach was one call away."""
    ran = []
    monkeypatch.setattr("subprocess.run", lambda *given, **named: ran.append(given))
    monkeypatch.setattr("os.system", lambda *given, **named: ran.append(given))
    with pytest.raises(ValueError, match=f"action='{path}' (is code outside|is no ActionMap|cannot be imported)"):
        part_of("action", {"import": path, "arguments": {}}, allowed)
    assert not ran


def test_what_cannot_be_written_is_refused_at_once():
    @dataclass(frozen=True)
    class Local(StepMap):
        pass

    class Bare(Twice):
        def __init__(self, function):
            object.__setattr__(self, "max_shift", function)

    @dataclass(frozen=True)
    class Nowhere(TimeGrid):
        pass

    for argument, part in (("action", Local()), ("action", Bare(len)), ("grid", Nowhere())):
        with pytest.raises(ValueError, match=f"{argument}=.* cannot be written to a student's file"):
            gym.make("ReDiF-v0", **TINY, **{argument: part})


DOCS = Path(__file__).parents[2] / "docs"
PAGES = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("own_reward.md", "own_action.md"))
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", PAGES, re.DOTALL))


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Runs a program of those pages as its user would, in a folder with nothing else."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name, *arguments: monkeypatch.setattr(sys, "argv", [name, *arguments]) or runpy.run_path(name)
    sys.modules.pop("two_numbers", None)


def test_the_page_s_reward_is_what_the_agent_is_paid(program):
    space = program("brightness.py", "256")
    bright, noise = space["student"], space["noise"]
    assert torch.equal(Student.from_pretrained("bright")(noise=noise[:4]), bright(noise=noise[:4]))
    env = gym.make("ReDiF-v0", **TINY, reward=space["brightness"])
    env.reset(seed=0)
    rewards = [env.step(np.zeros(5, np.float32))[1] for _ in range(2)]
    finished = env.unwrapped.last_transition.next_state.x.clamp(-1, 1).mean()
    assert rewards == [0.0, pytest.approx(float(finished))]


def test_the_page_s_action_map_goes_with_the_student(program, capsys):
    space = program("train_two_numbers.py", "256")
    assert space["agent"].action_space.shape == (2,)
    assert "largest difference of the loaded student: 0.0" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"'two_numbers:TwoNumbers' is code outside .*allow_imports=True"):
        Student.from_pretrained("two-numbers")
    zero = gym.make("ReDiF-v0", **TINY, action=space["TwoNumbers"]())
    base = gym.make("ReDiF-v0", **TINY)
    paid = []
    for env, size in ((zero, 2), (base, 5)):
        env.reset(seed=0)
        paid.append([env.step(np.zeros(size, np.float32))[1] for _ in range(2)])
    assert paid[0] == paid[1]
