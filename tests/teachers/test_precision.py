"""Whatever type a network has: its timesteps, its samples and its levels keep theirs."""

import pytest
import torch
from torch import nn

from redif_env import Teacher
from redif_env.diffusion.schedules import VariancePreservingSchedule
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.students.student import Student
from tests.models import unet

SCHEDULE = VariancePreservingSchedule.from_diffusers()
HALVES = [torch.bfloat16, torch.float16]


class Noted(nn.Module):
    """Notes what it is given."""

    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=dtype))
        self.given = []

    def forward(self, x, timestep):
        self.given.append((x.dtype, timestep))
        return x * self.weight


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_timesteps_are_never_rounded_to_the_network_s_type(dtype):
    """bfloat16 would make 1000 of 999, and 748 of 749.25."""
    network = Noted(dtype)
    teacher = Teacher(network, SCHEDULE, (2,))
    timesteps = torch.tensor([999.0, 749.25], dtype=torch.float64)
    teacher.predict(torch.zeros(2, 2), SCHEDULE.half_logsnr(timesteps), timesteps)
    ((given, timestep),) = network.given
    assert (given, timestep.dtype) == (dtype, torch.float32)
    assert timestep.tolist() == [999.0, 749.25]


def test_a_double_network_is_given_doubles():
    network = Noted(torch.float64)
    timesteps = torch.tensor([749.123456789], dtype=torch.float64)
    Teacher(network, SCHEDULE, (2,)).predict(torch.zeros(1, 2).double(), SCHEDULE.half_logsnr(timesteps), timesteps)
    assert network.given[0][1].item() == timesteps.item()


@pytest.mark.parametrize("dtype", HALVES)
def test_half_noise_is_sampled_in_float32(dtype):
    """Endpoints, students and pipelines: the type of the noise is not that of the samples."""
    torch.manual_seed(0)
    teacher = Teacher(unet(), SCHEDULE, (3, 8, 8))
    noise = torch.randn(2, 3, 8, 8).to(dtype)
    expected = teacher.endpoint(noise.float(), 4)
    assert teacher.endpoint(noise, 4).dtype == torch.float32
    assert torch.equal(teacher.endpoint(noise, 4), expected)
    mdp = build_mdp(MDPSettings(teacher=teacher, num_steps=2))
    student = Student(mdp, Policy(PolicyConfig((mdp.observation_size, 4, mdp.action_size))))
    assert torch.equal(student(noise=noise), student(noise=noise.float()))
    pipeline = student.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    half, whole = (pipeline(latents=latents, output_type="latent").images for latents in (noise, noise.float()))
    assert half.dtype == torch.float32
    assert torch.equal(half, whole)
