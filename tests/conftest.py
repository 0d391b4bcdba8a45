"""Shared fixtures: an exact teacher, a tiny diffusers pipeline on disk, and a cache of the session's own."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from redif_env.teachers.references import SHIPPED_SIZES, SetSizes
from redif_env.teachers.teacher import GaussianMixtureTeacher, Teacher
from tests.models import unet, with_matrix
from tests.pictures import LABELS, PIXELS

# Workers beside each other, with as many threads as cores each, would be ten times slower than with one each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


OUTCOMES = pytest.StashKey[dict[str, str]]()
CELL = "test_matrix.py::test_cell["


def pytest_addoption(parser):
    parser.addoption("--write-matrix", type=Path, help="document whose matrix is to be written from the outcome")


def pytest_configure(config):
    config.stash[OUTCOMES] = {}
    config.pluginmanager.register(Outcomes(config.stash[OUTCOMES]))


class Outcomes:
    """What became of each cell of the matrix; with xdist the reports come in here too."""

    def __init__(self, found):
        self.found = found

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and CELL in report.nodeid:
            self.found[report.nodeid.split(CELL)[1].removesuffix("]")] = report.outcome


def pytest_sessionfinish(session):
    path = session.config.getoption("--write-matrix")
    if path is not None and "PYTEST_XDIST_WORKER" not in os.environ:
        path.write_text(with_matrix(path.read_text(), session.config.stash[OUTCOMES]))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Reference sets of the tests never meet the user's; workers beside each other share them."""
    base = tmp_path_factory.getbasetemp()
    workers = "PYTEST_XDIST_WORKER" in os.environ
    os.environ["REDIF_CACHE"] = str((base.parent if workers else base) / "redif-cache")


@pytest.fixture(autouse=True, scope="session")
def few_noises():
    """Over few noises is the mean of a student's actions taken, and the scale of the digits' rewards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("redif_env.students.student.MEAN_OVER", 8)
        patch.setitem(SHIPPED_SIZES, "digits", SetSizes(base_size=64))
        yield


@pytest.fixture
def patient_ray(monkeypatch):
    """Ray gives its processes 30 seconds to start; beside other work on the machine it is started again."""
    import ray

    start = ray.init

    def init(*arguments, **options):
        for left in reversed(range(5)):
            try:
                return start(*arguments, **options)
            except Exception as error:
                if not left or "timed out during startup" not in str(error):
                    raise
                ray.shutdown()

    monkeypatch.setattr(ray, "init", init)


@pytest.fixture
def ring():
    """Eight Gaussians on a circle."""
    return GaussianMixtureTeacher.ring()


@pytest.fixture
def gaussian():
    """One Gaussian in three dimensions, in double precision: its probability flow has a closed form."""
    means, stds = torch.tensor([[0.3, -0.2, 0.1]]), torch.tensor([[0.5, 0.2, 1.0]])
    return GaussianMixtureTeacher(means.double(), stds.double())


@pytest.fixture
def small_fits(monkeypatch):
    """Linear maps and steps are fitted to short trajectories of few noises; for where it does not matter how well."""
    for module, steps in (("linear_solver", 10), ("initial_maps", 5)):
        monkeypatch.setattr(f"redif_env.fitted.{module}.SIZE", 256)
        monkeypatch.setattr(f"redif_env.fitted.{module}.STEPS", steps)


@pytest.fixture
def quick_distance(monkeypatch):
    """Between means alone, for programs on random networks: no eigenvalues of 192 x 192 matrices for every row."""
    monkeypatch.setattr(
        "redif_env.judging.evaluation.frechet_distance",
        lambda samples, reference: float((samples.mean(dim=0) - reference.mean(dim=0)).square().sum()),
    )


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """A tiny unconditional DDPM pipeline with random weights, saved as a user's would be."""
    from diffusers import DDPMPipeline, DDPMScheduler

    torch.manual_seed(0)
    network = unet()
    folder = tmp_path_factory.mktemp("pipeline")
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction"
    )
    DDPMPipeline(network, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def labelled(pipeline_folder):
    """Another random network of 3x8x8 samples, with three labels, on the same schedule."""
    from diffusers import DDPMScheduler

    torch.manual_seed(1)
    schedule = Teacher.from_pretrained(str(pipeline_folder)).schedule
    folder = pipeline_folder.parent / "labelled"
    unet(classes=3).eval().requires_grad_(False).save_pretrained(folder / "unet")
    DDPMScheduler(trained_betas=schedule.betas.tolist()).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(
        '{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], '
        '"scheduler": ["diffusers", "DDPMScheduler"]}'
    )
    return str(folder)


@pytest.fixture
def quiet():
    """diffusers and transformers speak of what tiny components lack."""
    import diffusers
    import transformers

    before = diffusers.logging.get_verbosity(), transformers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    yield
    diffusers.logging.set_verbosity(before[0])
    transformers.logging.set_verbosity(before[1])


@pytest.fixture(scope="session", autouse=True)
def modules_of_folders(tmp_path_factory):
    """Where diffusers copies the code of folders that are trusted: one place a session, since Python finds it once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", folder)
        yield


@pytest.fixture
def npz(tmp_path):
    """A file of labelled pictures, as Keras has them."""
    path = tmp_path / "grey.npz"
    np.savez(path, x_train=PIXELS, y_train=LABELS, x_test=PIXELS[:2], y_test=LABELS[:2])
    return path
