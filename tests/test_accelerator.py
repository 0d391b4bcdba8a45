"""The machine's accelerator gives what its CPU gives, within rounding; skipped on machines without one."""

import numpy as np
import pytest
import torch

from redif_env import ReDiFVectorEnv
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.policies import Policy
from redif_env.mdp.settings import MDPSettings, build_mdp, parse_device
from redif_env.students.student import Student
from redif_env.teachers.references import reference_set
from redif_env.training.gauss_newton import GaussNewton, Rates

SMALL = {"num_steps": 3, "reference_size": 16, "teacher_steps": 6}
ACCELERATOR = parse_device("auto")
pytestmark = pytest.mark.skipif(ACCELERATOR.type == "cpu", reason="this machine has no accelerator")


def played(device, teacher, dtype):
    """Observations and rewards along the same actions."""
    env = ReDiFVectorEnv(8, teacher=teacher, device=str(device), dtype=dtype, reward={"feature": 1.0}, **SMALL)
    rng, found = np.random.default_rng(0), [env.reset(seed=3)[0]]
    for _ in range(SMALL["num_steps"]):
        observations, rewards, *_ = env.step(rng.uniform(-0.3, 0.3, env.action_space.shape).astype(np.float32))
        found += [observations, rewards]
    return found


@pytest.mark.parametrize("teacher", ["digits", "mnist", "cifar10"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-3), ("bfloat16", 5e-2)])
def test_episodes_are_those_of_the_cpu(teacher, dtype, tolerance):
    """The root mean square of the difference, of observations and rewards, whose own is about 1."""
    for found, expected in zip(played(ACCELERATOR, teacher, dtype), played("cpu", teacher, "float32"), strict=True):
        assert np.sqrt(np.mean((found - expected) ** 2)) < tolerance


def test_tables_and_students_carry_over(tmp_path):
    """A table fitted on the accelerator is that of the CPU, and its student makes the same samples on both."""
    tables = {}
    for device in ("cpu", str(ACCELERATOR)):
        mdp = build_mdp(MDPSettings(teacher="digits", num_steps=3, observation="steps", device=device))
        found = GaussNewton.at_base(mdp)
        for _ in found.until(2000, mdp, reference_set(mdp.teacher, 16, num_steps=6), Rates()):
            pass
        tables[device] = found.table
    torch.testing.assert_close(*tables.values(), rtol=0, atol=0.02)
    student = Student(mdp, Policy.from_table(tables["cpu"].float(), mdp.observation_size))
    student.save_pretrained(tmp_path / "student")
    noise = torch.randn(4, *mdp.teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    samples = [Student.from_pretrained(tmp_path / "student", device)(noise=noise.to(device)) for device in tables]
    torch.testing.assert_close(samples[0].cpu(), samples[1].cpu(), rtol=0, atol=5e-3)


def test_the_evaluation_is_that_of_the_cpu():
    rows = []
    for device in ("cpu", str(ACCELERATOR)):
        mdp = build_mdp(MDPSettings(teacher="digits", num_steps=3, device=device))
        evaluator = Evaluator(mdp.teacher, 64, teacher_steps=10, train_size=64)
        rows.append(evaluator.floor_row())
    assert rows[0].fd_teacher == pytest.approx(rows[1].fd_teacher, rel=0.01)
