"""Whatever decides a teacher's predictions decides its fingerprint; what does not, does not."""

import json
import os

import diffusers
import pytest
import torch
from torch import nn

from redif_env.diffusion.schedules import VariancePreservingSchedule
from redif_env.mdp.settings import TeacherSettings, shared_teacher
from redif_env.storage.cache import cached_files
from redif_env.storage.files import ASSETS
from redif_env.teachers.fingerprint import probe_of
from redif_env.teachers.references import reference_set
from redif_env.teachers.teacher import GaussianMixtureTeacher, Teacher, load_teacher
from tests.models import unet

SCHEDULE = VariancePreservingSchedule.from_diffusers()
CPU = (torch.device("cpu"), torch.float32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REDIF_CACHE", str(tmp_path / "cache"))


class Scaled(nn.Module):
    """A user's own module: no weights, and a number that no state dict holds."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, timestep):
        return self.factor * x


class Halved(nn.Module):
    def forward(self, x, timestep):
        return 0.5 * x


def plain(network, **options):
    return Teacher(network, SCHEDULE, (2,), **options)


def seen_through(factor):
    def call(network, x, timestep, inputs):
        return factor * network(x, timestep)

    return call


def test_modules_without_weights_are_distinguished(cache):
    """By their classes, by what they hold, by how they are called: each has its own endpoints."""
    teachers = [
        plain(Scaled(1.0)),
        plain(Scaled(0.5)),
        plain(Halved()),
        plain(Scaled(1.0), call=seen_through(0.9)),
        plain(Scaled(1.0), call=seen_through(0.8)),
    ]
    assert len({teacher.fingerprint for teacher in teachers}) == len(teachers)
    again = [plain(Scaled(1.0)), plain(Scaled(1.0), call=seen_through(0.8))]
    assert [teacher.fingerprint for teacher in again] == [teachers[0].fingerprint, teachers[-1].fingerprint]
    for teacher in teachers:
        reference = reference_set(teacher, 4, num_steps=3)
        torch.testing.assert_close(reference.endpoints, teacher.endpoint(reference.noise, 3))


@pytest.mark.parametrize(
    "change", [{"flip_sin_to_cos": False}, {"freq_shift": 1}, {"norm_eps": 0.1}, {"act_fn": "relu"}]
)
def test_a_network_s_config_counts(cache, change):
    """The same weights in another config predict otherwise."""
    torch.manual_seed(0)
    network = unet()
    settings = {key: value for key, value in network.config.items() if not key.startswith("_")}
    other = diffusers.UNet2DModel(**{**settings, **change})
    other.load_state_dict(network.state_dict())
    teachers = [Teacher(found, SCHEDULE, (3, 8, 8)) for found in (network, other)]
    assert teachers[0].fingerprint != teachers[1].fingerprint


def test_machines_that_differ_in_the_last_digits_agree(cache, monkeypatch):
    """A stored probe equals predictions that differ by a thousandth, and not those that differ by a tenth."""
    torch.manual_seed(0)
    teacher = Teacher(unet(), SCHEDULE, (3, 8, 8))
    first, probe = teacher.fingerprint, probe_of(teacher, teacher.predict)
    noise = probe.square().mean(dim=(2, 3, 4), keepdim=True).sqrt() * (2 * torch.rand(probe.shape) - 1)
    for share, same in ((1e-3, True), (1e-1, False)):
        monkeypatch.setattr("redif_env.teachers.fingerprint.probe_of", lambda *_, s=share: probe + s * noise)
        assert (teacher.fingerprint == first) == same


def test_shipped_probes_belong_to_shipped_teachers(cache):
    """Endpoints that are shipped are found whatever this machine's last digits: its probe is shipped too."""
    teacher = load_teacher("digits")
    reference_set(teacher, 4096)
    assert not [path for path in cached_files("*") if path.parent != ASSETS / "cache"]


class Louder(diffusers.DDPMPipeline):
    """A user's own pipeline."""


def test_what_a_driven_pipeline_predicts_counts(cache):
    """Its network's config, a number that no file holds, a user's own class; not that it is made again."""
    torch.manual_seed(0)
    network = unet()

    def driven(network, kind=diffusers.DDPMPipeline):
        return Teacher.from_pipeline(kind(network, diffusers.DDPMScheduler())).fingerprint

    first = driven(network)
    assert driven(network) == first
    settings = {key: value for key, value in network.config.items() if not key.startswith("_")}
    other = diffusers.UNet2DModel(**{**settings, "flip_sin_to_cos": False})
    other.load_state_dict(network.state_dict())
    teacher = Teacher.from_pipeline(diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()))
    network.time_proj.scale = 2.0
    found = {driven(other), driven(network), teacher.fingerprint}
    assert first not in found
    assert len(found) == 2
    assert driven(network, Louder) not in found


def test_probes_take_no_call_from_a_subclass_s_count(cache):
    class Counted(GaussianMixtureTeacher):
        asked = 0

        def predict(self, *arguments):
            self.asked += 1
            return super().predict(*arguments)

    teacher = Counted(torch.zeros(1, 2), 1.0)
    assert teacher.fingerprint == teacher.fingerprint
    assert teacher.asked == 0


def test_a_folder_saved_anew_is_loaded_anew(tmp_path, monkeypatch):
    """Under the same path, and under the same relative path from elsewhere."""
    for folder, seed in (("one/model", 0), ("two/model", 1)):
        torch.manual_seed(seed)
        diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).save_pretrained(tmp_path / folder)
    monkeypatch.chdir(tmp_path / "one")
    first = shared_teacher(TeacherSettings(teacher="model"))
    assert shared_teacher(TeacherSettings(teacher="model")) is first
    assert shared_teacher(TeacherSettings(teacher=str(tmp_path / "one" / "model"))) is first
    monkeypatch.chdir(tmp_path / "two")
    second = shared_teacher(TeacherSettings(teacher="model"))
    assert second.fingerprint != first.fingerprint
    torch.manual_seed(2)
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "two" / "model")
    third = shared_teacher(TeacherSettings(teacher="model"))
    assert third.fingerprint not in (first.fingerprint, second.fingerprint)
    config = tmp_path / "two" / "model" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "beta_end": 0.01}))
    os.utime(config, ns=(1, 1))
    assert not torch.equal(shared_teacher(TeacherSettings(teacher="model")).schedule.betas, third.schedule.betas)
