import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from redif_env.diffusion.noise_schedulers import read_scheduler
from redif_env.diffusion.schedules import VariancePreservingSchedule

KINDS = ["linear", "scaled_linear", "squaredcos_cap_v2"]


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_those_of_diffusers(kind):
    """At whole timesteps alpha squared is diffusers' alphas_cumprod (float32), and the scales are a unit vector."""
    schedule = VariancePreservingSchedule.from_diffusers(kind)
    level = schedule.level(schedule.half_logsnr(torch.arange(1000)))
    expected = DDPMScheduler(beta_schedule=kind).alphas_cumprod.double()
    torch.testing.assert_close(level.alpha**2, expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones(1000, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_time_and_level_are_inverse(kind):
    schedule = VariancePreservingSchedule.from_diffusers(kind)
    timesteps = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 999
    timesteps = torch.cat([timesteps, torch.tensor([0.0, 1.0, 998.0, 999.0], dtype=torch.float64)])
    torch.testing.assert_close(schedule.timestep(schedule.half_logsnr(timesteps)), timesteps, rtol=0, atol=1e-8)


def test_level_to_time_is_diffusers_own_interpolation():
    """Between timesteps, the inverse is what diffusers' Karras grids use to find a timestep."""
    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=1e-4)
    log_sigmas = (((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5).log().numpy()
    sigmas = torch.tensor([0.02, 0.5, 3.0, 70.0], dtype=torch.float64)
    expected = torch.tensor([float(scheduler._sigma_to_t(sigma, log_sigmas)) for sigma in sigmas.numpy()])
    found = VariancePreservingSchedule.from_diffusers().timestep(-sigmas.log())
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_betas_are_kept(kind):
    """A schedule made again of its betas is the same bit for bit; they are diffusers' own (float32)."""
    schedule = VariancePreservingSchedule.from_diffusers(kind)
    assert torch.equal(VariancePreservingSchedule(schedule.betas).knots, schedule.knots)
    torch.testing.assert_close(schedule.betas.float(), DDPMScheduler(beta_schedule=kind).betas, rtol=1e-4, atol=1e-7)


def test_ends_are_kept():
    """Beyond its ends a schedule gives its ends; clean data is alpha 1, sigma 0 exactly."""
    schedule = VariancePreservingSchedule.from_diffusers()
    assert schedule.timestep(torch.tensor([torch.inf, 100.0, -100.0])).tolist() == [0.0, 0.0, 999.0]
    assert schedule.half_logsnr(torch.tensor([-5.0, 2000.0])).tolist() == [schedule.knots[0], schedule.knots[-1]]
    clean = schedule.level(torch.tensor([torch.inf]))
    assert clean.alpha.item() == 1.0
    assert clean.sigma.item() == 0.0


def test_hand_computed_level():
    """beta = 1/2 twice: alpha squared is 1/4, so half_logsnr is log(1/3) / 2."""
    schedule = VariancePreservingSchedule(torch.tensor([0.5, 0.5], dtype=torch.float64))
    torch.testing.assert_close(
        schedule.half_logsnr(torch.tensor([1.0])), torch.tensor([1 / 3], dtype=torch.float64).log() / 2
    )


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="beta_schedule must be one of 'linear'"):
        VariancePreservingSchedule.from_diffusers("wavy")
    with pytest.raises(ValueError, match=r"betas must lie in \(0, 1\)"):
        VariancePreservingSchedule(torch.tensor([0.1, 1.0]))
    with pytest.raises(ValueError, match="one-dimensional and at least 2"):
        VariancePreservingSchedule(torch.tensor([0.1]))


def test_a_scheduler_in_the_place_of_a_name_is_refused_with_the_remedy():
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear")
    with pytest.raises(TypeError, match=r"read_scheduler\(scheduler.config, 'its name'\)"):
        VariancePreservingSchedule.from_diffusers(scheduler)
    found = read_scheduler(scheduler.config, "its name").schedule
    torch.testing.assert_close(found.betas, VariancePreservingSchedule.from_diffusers("scaled_linear").betas)
