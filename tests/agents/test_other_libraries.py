"""The blocks of docs/agents.md: each library trains on the environment, and its student is what it trained."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from redif_env import Student
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.policies import Policy

# Other libraries warn of their own changes to come, and of bounds.
pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- tested: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.parametrize("library", BLOCKS)
def test_a_block_of_the_page_trains_and_exports(library, request):
    for name in {"CleanRL": [], "own": []}.get(library, [library]):
        pytest.importorskip(name, reason="make test-ray")
    if library == "ray":
        request.getfixturevalue("patient_ray")
    space = {}
    exec(compile(BLOCKS[library], f"docs/agents.md, {library}", "exec"), space)
    assert space["student"](num_samples=2).shape == (2, 2)


def test_every_library_has_a_block():
    assert {"stable_baselines3", "sb3_contrib", "CleanRL", "torchrl", "ray", "tianshou"} <= set(BLOCKS)


@pytest.mark.parametrize(
    ("program", "library", "settings"),
    [
        ("cleanrl_ppo", "torch", {}),
        ("skrl_ppo", "skrl", {}),
        ("stable_baselines", "sb3_contrib", {"algorithm": "TRPO", "network_calls": 1000}),
        ("stable_baselines", "sb3_contrib", {"algorithm": "CrossQ", "network_calls": 1000}),
    ],
)
def test_a_program_trains_exports_and_judges(program, library, settings, tmp_path):
    pytest.importorskip(library, reason="make test-ray")
    module = importlib.import_module(f"agents.{program}")
    task = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20, "reward": (("endpoint", 1.0),)}
    quick = {"network_calls": 4000, "num_envs": 32, "test_size": 64, "baselines": "none"}
    module.main(module.Args(**task, **(quick | settings), out=tmp_path))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["environment_steps"] <= quick["network_calls"] + 32
    (row,) = (row for row in result["rows"] if row["method"].startswith("redif-"))
    student = Student.from_pretrained(tmp_path / "student")
    zero = Policy.from_table(torch.zeros(4, 5), student.mdp.observation_size)
    judge = Evaluator(student.mdp.teacher, 64, teacher_steps=20, train_size=32)
    assert judge.student_row("loaded", student).mse_teacher == pytest.approx(row["mse_teacher"])
    if "network_calls" not in settings:  # long enough to learn
        assert row["mse_teacher"] < judge.student_row("base", Student(student.mdp, zero)).mse_teacher
