"""A student of a pipeline goes home: as a scheduler, as a file without this library, with its policy, as a block."""

import copy
import dataclasses
import functools
import json
import shutil
import subprocess
import sys

import diffusers
import pytest
import torch

from redif_env import ReDiFPipeline, ReDiFScheduler, Student
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.settings import MDPSettings, build_mdp
from tests.teachers.driving import teacher_of
from tests.teachers.zoo import ZOO

CORE = ("stable_diffusion", "sd3_base", "flux_base", "image_to_image", "wan_two_experts")
EVERY = [pytest.param(name, marks=[] if name in CORE else [pytest.mark.slow], id=name) for name in ZOO]
quiet = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*:UserWarning:diffusers")

pytestmark = [pytest.mark.usefixtures("quiet"), quiet]


def student_of(teacher, **settings):
    """One whose steps are fixed, and drawn at random."""
    mdp = build_mdp(MDPSettings(**{"teacher": teacher, "num_steps": 3, "observation": "steps"} | settings))
    actions = torch.rand(3, mdp.action_size, generator=torch.Generator().manual_seed(3)) - 0.5
    return Student(mdp, Policy.from_table(actions, mdp.observation_size))


def looking_student_of(teacher, **settings):
    """One whose policy looks at the state: of random weights."""
    mdp = build_mdp(MDPSettings(teacher=teacher, num_steps=3, **settings))
    torch.manual_seed(5)
    policy = Policy(PolicyConfig((mdp.observation_size, 16, mdp.action_size)))
    for layer in policy.linears:
        torch.nn.init.normal_(layer.weight, std=0.3)
    return Student(mdp, policy)


def call(pipe, teacher, row=0, **arguments):
    """The pipeline called with one condition of the zoo, to tensors."""
    drive = teacher.drive
    pipe.set_progress_bar_config(disable=True)
    given = {**drive.shared, **drive.conditions[row], **arguments}
    if "generator" in drive.takes and not ("latents" in arguments and not drive.injection.generator):
        given["generator"] = torch.Generator().manual_seed(0)
    if "batch_size" in drive.takes and "prompt" not in given:
        given["batch_size"] = 1
    with torch.no_grad():
        return pipe(**given, output_type="pt")


def shown(output):
    """What a pipeline returned, as one tensor."""
    found = next(iter(output.values()))
    return torch.stack(list(found)) if isinstance(found, list) else torch.as_tensor(found)


def stock(teacher, scheduler):
    pipe = copy.copy(teacher.source)
    pipe.scheduler = scheduler
    return pipe


@pytest.mark.parametrize("name", EVERY)
def test_the_stock_pipeline_makes_the_student_s_samples(name, tmp_path):
    teacher = teacher_of(ZOO[name]())
    student = student_of(teacher)
    student.save_pretrained(tmp_path / "student")
    scheduler = ReDiFScheduler.from_pretrained(tmp_path / "student")
    pipe = stock(teacher, scheduler)
    seen = []
    step = scheduler.step

    @functools.wraps(step)
    def watched(output, timestep, sample, *args, **rest):
        moved = step(output, timestep, sample, *args, **rest)
        seen.append((sample, moved[0] if isinstance(moved, tuple) else moved.prev_sample))
        return moved

    scheduler.step = watched
    call(pipe, teacher, num_inference_steps=scheduler.num_inference_steps)
    assert len(seen) == 3
    first, last = seen[0][0][:1].float(), seen[-1][1][:1].float()
    size = teacher.schedule.size(student.mdp.grid.half_logsnr(torch.zeros(1).double(), teacher.schedule))
    if teacher.probe.from_image:
        level = teacher.schedule.level(teacher.schedule.half_logsnr_at(torch.ones(1).double()))
        first = first * float(size) - float(level.alpha) * teacher.drive.images([0])
        noise = first / float(level.sigma)
    else:
        noise = first if teacher.begins_with_noise else first / float(size)
    expected = student.trajectory(noise)[-1].x
    error = float((last - expected).abs().max() / expected.abs().max())
    assert error < 1e-4
    teacher.close()
