import math

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.schedulers import AysSchedules

from redif_env.diffusion.grids import GRIDS, AYSGrid, KarrasGrid, LogSNRGrid, TimeGrid, next_position
from redif_env.diffusion.schedules import FlowSchedule, VarianceExplodingSchedule, VariancePreservingSchedule

SCHEDULE = VariancePreservingSchedule.from_diffusers()


def positions(count):
    return torch.arange(count, dtype=torch.float64) / count


@pytest.mark.parametrize("name", list(GRIDS))
def test_grids_decrease_from_their_first_level_to_clean_data(name):
    """The first level is the schedule's noisiest, or that with the sigma / alpha after the @."""
    position = torch.linspace(0, 1, 101, dtype=torch.float64)
    half_logsnr = GRIDS[name].half_logsnr(position, SCHEDULE)
    start = -math.log(float(name.split("@")[1])) if "@" in name else SCHEDULE.knots[-1].item()
    assert half_logsnr[0].item() == pytest.approx(start)
    assert bool((half_logsnr.diff() > 0).all())
    assert half_logsnr[-1] == torch.inf


def test_uniform_time_is_diffusers_linspace():
    timesteps = SCHEDULE.timestep(TimeGrid().half_logsnr(positions(9), SCHEDULE))
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(9)
    assert timesteps.round().tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize(
    ("grid", "options"), [(KarrasGrid(), {"use_karras_sigmas": True}), (LogSNRGrid(), {"use_exponential_sigmas": True})]
)
def test_sigma_grids_are_diffusers(grid, options):
    """Our N positions are the first N of diffusers' N + 1 sigmas, which end on sigma_min."""
    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=1e-4, **options)
    scheduler.set_timesteps(7)
    sigmas = torch.exp(-grid.half_logsnr(positions(6), SCHEDULE))
    np.testing.assert_allclose(sigmas.numpy(), scheduler.sigmas[:6].numpy(), rtol=1e-3)


def test_ten_steps_of_ays_are_the_published_ones():
    """And half way between two of them, the logarithm of sigma / alpha is half way."""
    timesteps = SCHEDULE.timestep(AYSGrid().half_logsnr(positions(10), SCHEDULE))
    np.testing.assert_allclose(timesteps.numpy(), AysSchedules["StableDiffusionTimesteps"], atol=1e-9)
    around = AYSGrid().half_logsnr(torch.tensor([0.3, 0.35, 0.4], dtype=torch.float64), SCHEDULE)
    assert around[1].item() == pytest.approx((around[0] + around[2]).item() / 2)


def test_power_grid_by_hand():
    """Half way at power 2 is a quarter of the time."""
    timestep = SCHEDULE.timestep(TimeGrid(2.0).half_logsnr(torch.tensor([0.5], dtype=torch.float64), SCHEDULE))
    assert timestep.item() == pytest.approx(999 / 4)


@pytest.mark.parametrize("count", [1, 4, 7, 50])
def test_zero_shift_follows_the_grid(count):
    position, visited = torch.zeros(1, dtype=torch.float64), []
    for steps_left in range(count, 0, -1):
        visited.append(position.item())
        position = next_position(position, torch.tensor([steps_left]), torch.zeros(1, dtype=torch.float64))
    np.testing.assert_allclose(visited, np.arange(count) / count, atol=1e-12)
    assert position.item() == 1.0


def test_shift_adds_to_the_logit_of_the_remaining_fraction():
    """With 3 steps left the base fraction is 1/3, odds 1:2; a shift of log 4 makes the odds 2:1."""
    position = next_position(
        torch.tensor([0.4], dtype=torch.float64), torch.tensor([3]), torch.tensor([4.0], dtype=torch.float64).log()
    )
    assert position.item() == pytest.approx(0.4 + 0.6 * 2 / 3)


@pytest.mark.parametrize("schedule", [SCHEDULE, FlowSchedule(3.0), VarianceExplodingSchedule()], ids=str)
def test_reduced_sigma_max_scales_the_times_of_the_grid(schedule):
    """Times are those of the full grid times that of the first level; levels beyond the noisiest change nothing."""
    late, early, whole = TimeGrid(2.0, 8.0), TimeGrid(2.0, 1e9), TimeGrid(2.0)
    position = positions(5)
    level = torch.tensor(-math.log(8.0), dtype=torch.float64)
    expected = schedule.half_logsnr_at(schedule.time(level) * (1 - position) ** 2)
    torch.testing.assert_close(late.half_logsnr(position, schedule), expected)
    assert late.half_logsnr(position, schedule)[0].item() == pytest.approx(level.item())
    starts = (grid.half_logsnr(position[1:], schedule) for grid in (early, whole))
    torch.testing.assert_close(*starts, rtol=1e-6, atol=1e-6)


def test_bad_grids_are_refused():
    with pytest.raises(ValueError, match="power must be above 0"):
        TimeGrid(0.0)
    with pytest.raises(ValueError, match=r"sigma_max must be above 0, got 0"):
        TimeGrid(sigma_max=0.0)
    with pytest.raises(ValueError, match="rho must be above 0"):
        KarrasGrid(-1.0)
