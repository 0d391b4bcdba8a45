"""Every method of the comparison on an accelerator, pretended."""

import math
from functools import cache

import pytest
import torch

from agents import clone
from experiments.pretended_device import NAME, PretendedDevice
from experiments.rivals import amed, convolution, gits, ours, pas, training_free
from experiments.rivals.field import FIELD
from experiments.rivals.rival import Task
from redif_env.judging.bases import Base
from redif_env.judging.evaluation import Evaluator
from redif_env.sb3.training.networks import NoiseSettings
from redif_env.teachers.references import VALIDATION_SEED, reference_set
from redif_env.teachers.teacher import load_teacher

STEPS = 4
GIVEN = {"solver": "ipndm2", "grid": "time@20"}
WITHOUT_CHANCE = [name for name, entry in FIELD.items() if not entry.trained and name not in ("linear steps", "heun")]


@pytest.fixture(autouse=True)
def few_grids(monkeypatch):
    """One or two grids in the place of ten."""
    monkeypatch.setattr(gits, "TRIED_GRIDS", ("time",))
    monkeypatch.setattr(gits, "TRIED_SOLVERS", ("ipndm2",))
    monkeypatch.setattr(convolution, "TRIED_GRIDS", ("time@20",))
    for module in (amed, pas):
        monkeypatch.setattr(module, "SOLVER_GRIDS", ("time", "time@8"))
    monkeypatch.setattr(training_free._on_best_grid, "__defaults__", (("time", "time@8"),))


def task_on(device, warm=None):
    """Half a thousand calls, on the digits teacher."""
    teacher = load_teacher("digits").to(device)
    reference, chooser = reference_set(teacher, 32, num_steps=10), Evaluator(teacher, 8, VALIDATION_SEED, 10, 32)
    return Task(teacher, reference, chooser, STEPS, 0, math.inf, 500, warm, Base(**GIVEN))


@cache
def made_here(method):
    task = task_on("cpu")
    return FIELD[method].rival(task).sampler(task.chooser.noise, task.chooser.condition)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """The folder of a cloned network."""
    folder = tmp_path_factory.mktemp("warm")
    network = NoiseSettings(clone_updates=2)
    student, _ = clone.make(clone.Args(num_steps=STEPS, **GIVEN, network=network, out=folder / "run"))
    student.save_pretrained(folder / "student")
    return folder / "student"


@pytest.mark.slow
@pytest.mark.parametrize("method", WITHOUT_CHANCE)
def test_fits_without_chance_are_those_of_the_host(method):
    expected = made_here(method)
    with PretendedDevice():
        task = task_on(NAME)
        found = FIELD[method].rival(task).sampler(task.chooser.noise, task.chooser.condition)
        assert found.device.type == NAME
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:You are trying to run PPO on the GPU", "ignore::tqdm.TqdmExperimentalWarning", "ignore:rich is experimental"
)
@pytest.mark.parametrize("method", [name for name, entry in FIELD.items() if entry.trained])
def test_what_is_trained_is_trained_there(method, warm, monkeypatch):
    """To samples that are as near to the teacher's as those of the host's fit."""
    monkeypatch.setattr(ours, "affordable", lambda *_: 2000)
    monkeypatch.setattr(ours, "in_time", lambda *_: 500)
    monkeypatch.setattr(ours, "calls_per_second", lambda *_: 200.0)
    expected = task_on("cpu", warm)
    nearest = expected.chooser.distance(FIELD[method].rival(expected).sampler)
    with PretendedDevice():
        task = task_on(NAME, warm)
        fitted = FIELD[method].rival(task)
        assert fitted.sampler(task.chooser.noise, task.chooser.condition).device.type == NAME
        assert task.chooser.distance(fitted.sampler) == pytest.approx(nearest, rel=0.2)
