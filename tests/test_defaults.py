"""What a caller has set for PyTorch changes nothing here: default type, default device, autocast."""

from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch

from experiments.pretended_device import NAME, PretendedDevice
from redif_env import ReDiFVectorEnv, Student
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.policies import Policy
from redif_env.teachers.teacher import load_teacher


@contextmanager
def default_type(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(name):
    with PretendedDevice():
        torch.set_default_device(name)
        try:
            yield
        finally:
            torch.set_default_device(None)


SETTINGS = {
    "float64": lambda: default_type(torch.float64),
    "bfloat16": lambda: default_type(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "another device": lambda: default_device(NAME),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def everything(source, tmp_path, reward):
    """Observations, rewards, samples and judgements, all from seeds."""
    env = ReDiFVectorEnv(
        3,
        teacher=load_teacher(source),
        num_steps=3,
        reference_size=16,
        teacher_steps=10,
        reward=reward,
        solver="dpm++3m",
    )
    observations, info = env.reset(seed=1)
    found = [observations, info["pair"]]
    rng = np.random.default_rng(0)
    for _ in range(4):
        found += env.step(rng.uniform(-0.5, 0.5, env.action_space.shape).astype(np.float32))[:2]
    table = torch.linspace(-0.3, 0.3, 3 * env.mdp.action_size, dtype=torch.float32, device="cpu").reshape(3, -1)
    student = Student(env.mdp, Policy.from_table(table, env.mdp.observation_size))
    student.save_pretrained(tmp_path)
    loaded = Student.from_pretrained(tmp_path)
    samples = loaded(4, generator=torch.Generator().manual_seed(0))
    row = Evaluator(env.mdp.teacher, 8, teacher_steps=5, train_size=8).student_row("redif", student)
    return [*found, samples.numpy(), np.array([row.fd_teacher, row.mse_teacher])]


@cache
def plainly(source, folder):
    """Everything as it is without a setting, once for all of them."""
    with default_type(torch.float32):
        return everything_alone(source, folder)


def everything_alone(source, folder):
    """Everything, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDIF_CACHE", str(folder / "cache"))
        return everything(source, folder / "student", {"endpoint": 1.0, "energy": 0.5, "trajectory": 0.5})


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plain")


@pytest.mark.parametrize("setting", list(SETTINGS))
@pytest.mark.parametrize("source", ["gaussian-ring", "network"])
def test_a_seed_means_the_same(setting, source, pipeline_folder, plain_folder, tmp_path):
    named = pipeline_folder if source == "network" else source
    plain = plainly(named, plain_folder / source)
    with SETTINGS[setting]():
        found = everything_alone(named, tmp_path)
    for value, expected in zip(found, plain, strict=True):
        assert value.dtype == expected.dtype
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
