"""Pipelines that drive themselves: against what the stock pipelines make, without any hook of ours."""

import threading

import gymnasium as gym
import numpy as np
import pytest
import torch

from redif_env.teachers.driven.refused import REFUSED_PIPELINES
from tests.teachers.classes import UNTRIED_BY_NAME, looping_classes
from tests.teachers.driving import row_errors, teacher_of, zero_action_error
from tests.teachers.table import DOCUMENT, by_reason, row
from tests.teachers.zoo import ZOO

CORE = (
    "stable_diffusion",
    "image_to_image",
    "control_until_half",
    "sdxl_base",
    "sd3_base",
    "flux_base",
    "qwen_image",
    "ltx_image_to_video",
    "wan_two_experts",
    "ddpm",
    "dit",
)
"""Entries of each family that are run by default."""
EVERY = [pytest.param(name, marks=[] if name in CORE else [pytest.mark.slow], id=name) for name in ZOO]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REDIF_CACHE", str(tmp_path))


@pytest.mark.usefixtures("quiet")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", EVERY)
def test_a_pipeline_drives_itself(name):
    teacher = teacher_of(ZOO[name]())
    scheduler = teacher.source.scheduler
    assert row(name, teacher) in DOCUMENT.read_text(), "run python -m tests.teachers.table"
    assert zero_action_error(teacher) < 1e-5
    error, control = row_errors(teacher)
    assert error < 1e-5
    # Without what gives each row its own timestep the same test fails; where levels are common, nothing does.
    assert control == error if teacher.common_levels else control > 10 * max(error, 1e-6)
    an_episode_and_an_abandoned_one(teacher)
    an_error_inside(teacher)
    assert teacher.source.scheduler is scheduler
    assert not teacher.network._forward_pre_hooks
    teacher.close()
    assert not driven_threads()


def an_episode_and_an_abandoned_one(teacher):
    envs = gym.make_vec(
        "ReDiF-v0",
        num_envs=2,
        teacher=teacher,
        num_steps=2,
        solver="ddim",
        grid="own",
        reference_size=2,
        teacher_steps=3,
    )
    envs.reset(seed=0)
    zero = np.zeros(envs.action_space.shape, np.float32)
    envs.step(zero)
    envs.reset(seed=0)
    envs.step(zero)
    _, rewards, terminated, _, _ = envs.step(zero)
    assert terminated.all()
    assert np.isfinite(rewards).all()
    envs.close()


class BrokenError(Exception):
    pass


def an_error_inside(teacher):
    """It comes out as it is, and the next prediction is made."""
    x = torch.zeros(2, *teacher.sample_shape)
    level = teacher.schedule.half_logsnr_at(torch.full((2,), 0.5).double())
    timestep = teacher.schedule.timestep(level)
    before = teacher.predict(x, level, timestep).eps

    def fail(*_):
        raise BrokenError

    handles = [part.register_forward_pre_hook(fail) for part in teacher.drive.networks.values()]
    with pytest.raises(BrokenError):
        teacher.predict(x, level, timestep)
    for handle in handles:
        handle.remove()
    assert torch.equal(teacher.predict(x, level, timestep).eps, before)


def driven_threads():
    return [thread for thread in threading.enumerate() if thread.name == "driven pipeline"]


def test_every_class_that_loops_over_steps_is_driven_or_named():
    """So that the next release of diffusers is noticed."""
    text = DOCUMENT.read_text()
    driven = {line.split("|")[2].strip() for line in text.split("## Refused")[0].splitlines() if line.startswith("| ")}
    refused, untried, looping = set(REFUSED_PIPELINES), set(UNTRIED_BY_NAME), looping_classes()
    assert len(driven - {"class"}) >= 60
    assert looping - driven - refused - untried == set()
    assert len(driven | refused | untried) == len(driven) + len(refused) + len(untried)
    assert {*by_reason(REFUSED_PIPELINES), *by_reason(UNTRIED_BY_NAME)} <= set(text.splitlines())
    assert (refused | untried) - looping == set()
