"""Where a teacher comes from: folders of any layout, hub ids, variants, and the bounds of its data."""

import json
import math
import shutil

import diffusers
import pytest
import torch
from torch import nn

from redif_env import GaussianMixtureTeacher, Student, Teacher
from redif_env.diffusion.schedules import VariancePreservingSchedule
from redif_env.mdp.policies import Policy
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.rewards.feature import FeatureDistance, frozen_features
from tests.models import unet


@pytest.fixture
def flat(tmp_path):
    """As the first repositories of diffusers are: an index, and all else in the root."""
    torch.manual_seed(0)
    pipeline = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler(clip_sample=False))
    pipeline.save_pretrained(tmp_path / "whole")
    folder = tmp_path / "flat"
    shutil.copytree(tmp_path / "whole" / "unet", folder)
    shutil.copy(tmp_path / "whole" / "scheduler" / "scheduler_config.json", folder)
    shutil.copy(tmp_path / "whole" / "model_index.json", folder)
    return folder


def test_a_folder_without_folders(flat):
    teacher = Teacher.from_pretrained(flat)
    assert teacher.fingerprint == Teacher.from_pretrained(flat.parent / "whole").fingerprint
    assert teacher.bounds == (-1.0, 1.0)


@pytest.mark.parametrize("layout", ["flat", "whole", "bare"])
def test_a_hub_id_is_the_folder_that_it_is_downloaded_to(flat, layout, tmp_path, monkeypatch):
    """From the hub's own cache, offline: the same rule as for folders."""
    if layout == "bare":
        shutil.copytree(flat, flat.parent / "bare")
        (flat.parent / "bare" / "model_index.json").unlink()
    stored = tmp_path / "hub" / f"models--someone--{layout}"
    shutil.copytree(flat.parent / layout, stored / "snapshots" / "abc")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("abc")
    for module in ("huggingface_hub.constants", "diffusers.pipelines.pipeline_utils"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    teacher = Teacher.from_pretrained(f"someone/{layout}")
    assert teacher.fingerprint == Teacher.from_pretrained(flat).fingerprint
    with pytest.raises(ValueError, match="someone/nothing' cannot be loaded"):
        Teacher.from_pretrained("someone/nothing")


def test_variants_are_named(tmp_path):
    """A repository of half precision alone: the message names the argument, and the argument loads it."""
    torch.manual_seed(0)
    folder = tmp_path / "half"
    pipeline = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")
    with pytest.raises(ValueError, match=r"stored as variants: give variant='fp16'"):
        Teacher.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"give variant='fp16'"):
        build_mdp(MDPSettings(teacher=str(folder)))
    assert build_mdp(MDPSettings(teacher=str(folder), variant="fp16")).teacher.dtype == torch.float32


def test_home_is_expanded(flat, monkeypatch):
    monkeypatch.setenv("HOME", str(flat.parent))
    assert Teacher.from_pretrained("~/flat").sample_shape == (3, 8, 8)


class Zero(nn.Module):
    def forward(self, x, timestep):
        return torch.zeros_like(x)


def of_vectors(**options):
    schedule = VariancePreservingSchedule.from_diffusers()
    return Teacher(Zero(), schedule, (2,), **options)


def test_data_without_bounds_are_not_clipped(tmp_path):
    """A teacher whose samples reach 5.6: so do its student's, saved and loaded."""
    teacher = GaussianMixtureTeacher(torch.tensor([[5.0, -5.0]]), 0.2)
    assert teacher.bounds is None
    mdp = build_mdp(MDPSettings(teacher=teacher, num_steps=6))
    student = Student(mdp, Policy.from_table(torch.zeros(6, mdp.action_size), mdp.observation_size))
    samples = student(64, generator=torch.Generator().manual_seed(0))
    assert samples.abs().max() > 5.3
    student.save_pretrained(tmp_path / "student")
    again = Student.from_pretrained(tmp_path / "student")(64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again, samples)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_rewards_and_tables_clip_what_is_bounded(bounds):
    """And nothing else: samples that are 2 beyond the endpoints are 2 away, or not at all."""
    means = torch.tensor([[5.0, -5.0]])
    teacher = GaussianMixtureTeacher(means, 0.2)
    teacher.bounds = bounds
    endpoints = means.repeat(4, 1)
    found = FeatureDistance(frozen_features(None, teacher))(endpoints + 2 * means.sign(), endpoints)
    torch.testing.assert_close(found, torch.full((4,), 0.0 if bounds else 2.0))


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0), (0.0, 2.5)])
@pytest.mark.parametrize("kind", ["mixture", "mixture of images", "network"])
def test_bounds_are_saved(kind, bounds, pipeline_folder, tmp_path):
    """Whatever else the folder's classes say of them; and diffusers reads it as before."""
    shape = (1, 4, 4) if kind == "mixture of images" else (2,)
    mixture = GaussianMixtureTeacher(torch.zeros(1, *shape), 0.2, bounds=bounds)
    network = Teacher.from_pretrained(pipeline_folder, bounds=bounds or (-math.inf, math.inf))
    teacher = mixture if kind.startswith("mixture") else network
    teacher.save_pretrained(tmp_path / "saved")
    assert Teacher.from_pretrained(tmp_path / "saved").bounds == teacher.bounds == bounds
    assert diffusers.DDPMPipeline.from_pretrained(tmp_path / "saved").scheduler.config.num_train_timesteps > 0


def test_bounds_are_said_or_read(flat, tmp_path):
    samples = torch.tensor([[-7.0, 7.0]])
    assert of_vectors().clip(samples).tolist() == [[-7.0, 7.0]]
    assert of_vectors(bounds=(-2, 3)).clip(samples).tolist() == [[-2.0, 3.0]]
    assert Teacher.from_pretrained(flat, bounds=(-float("inf"), float("inf"))).bounds is None
    config = flat / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "clip_sample": True, "clip_sample_range": 2.5}))
    assert Teacher.from_pretrained(flat).bounds == (-2.5, 2.5)
    for wrong in ((1, -1), (0,), "ab", 3, (0.0, float("nan"))):
        with pytest.raises(ValueError, match="bounds must be two numbers"):
            of_vectors(bounds=wrong)


def test_bounds_of_a_pipeline_that_drives_itself_are_said_or_its_pictures():
    pipe = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler(clip_sample=False))
    for given, bounds in ((None, (-1.0, 1.0)), ((-3, 3), (-3.0, 3.0)), ((-math.inf, math.inf), None)):
        assert Teacher.from_pipeline(pipe, bounds=given).bounds == bounds
