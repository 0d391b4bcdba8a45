import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, IPNDMScheduler

from redif_env.diffusion.grids import GRIDS, LogSNRGrid, TimeGrid
from redif_env.diffusion.schedules import Schedule
from redif_env.diffusion.solvers import (
    DDIM,
    IPNDM,
    SOLVERS,
    DPMSolverPP,
    apply_estimate,
    ddim_step,
    initial_state,
    predict,
    sample,
    trajectory,
)
from redif_env.diffusion.types import Level, Prediction

NOISE = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def run_diffusers(scheduler, teacher, grid, noise, num_steps):
    """Diffusers' scheduler on our grid: the two tables it steps through are replaced."""
    scheduler.set_timesteps(num_steps)
    position = torch.arange(num_steps, dtype=torch.float64) / num_steps
    half_logsnr = grid.half_logsnr(position, teacher.schedule)
    scheduler.timesteps = teacher.schedule.timestep(half_logsnr)
    scheduler.sigmas = torch.cat([torch.exp(-half_logsnr), torch.zeros(1, dtype=torch.float64)])
    x = noise
    for timestep in scheduler.timesteps:
        x = scheduler.step(teacher.network(x, timestep.expand(len(x))), timestep, x).prev_sample
    return x


@pytest.mark.parametrize("grid", ["time", "time^2", "time^1.5@20", "logsnr", "karras", "ays"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 10, 20])
@pytest.mark.parametrize(("solver", "order"), [(DDIM(), 1), (DPMSolverPP(2), 2), (DPMSolverPP(3), 3)])
def test_dpm_solvers_are_diffusers(ring, solver, order, num_steps, grid):
    """Same samples as diffusers' DPMSolverMultistepScheduler, near both ends of the run and beyond 15 steps."""
    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=1e-4, solver_order=order)
    expected = run_diffusers(scheduler, ring, GRIDS[grid], NOISE, num_steps)
    torch.testing.assert_close(sample(ring, solver, GRIDS[grid], NOISE, num_steps), expected, rtol=0, atol=1e-4)


def test_ddim_is_diffusers(ring):
    """Same samples as diffusers' DDIMScheduler, up to the step to clean data.

    37 steps of 27 make 999, so that our grid falls on integer timesteps.
    """
    scheduler = DDIMScheduler(clip_sample=False, beta_schedule="linear")
    scheduler.set_timesteps(37)
    states = list(trajectory(ring, DDIM(), TimeGrid(), NOISE, 37))
    x = NOISE
    for timestep, state in zip(range(999, 27, -27), states, strict=False):
        x = scheduler.step(ring.network(x, torch.tensor([timestep]).expand(16)), timestep, x).prev_sample
        torch.testing.assert_close(state.x, x, rtol=0, atol=1e-4)
    assert state is states[35]


class CosineSchedule(Schedule):
    """alpha = cos, sigma = sin of (pi / 2) t: the schedule that is built into diffusers' IPNDMScheduler."""

    init_noise_sigma = 1.0

    def half_logsnr_at(self, time):
        return self.half_logsnr(time)

    def time(self, half_logsnr):
        return self.timestep(half_logsnr)

    def ends(self, device):
        raise NotImplementedError

    def half_logsnr(self, timestep):
        return -torch.tan(timestep.double() * math.pi / 2).log()

    def timestep(self, half_logsnr):
        return torch.atan(torch.exp(-half_logsnr)) / (math.pi / 2)

    def level(self, half_logsnr):
        angle = torch.atan(torch.exp(-half_logsnr))
        return Level(alpha=angle.cos(), sigma=angle.sin())

    def to(self, device):
        return self


class WavyModel:
    """Any smooth noise prediction will do to compare two solvers."""

    schedule = CosineSchedule()

    calls = 1

    def predict(self, x, half_logsnr, timestep, condition=None, guidance=None):
        level = self.schedule.level(half_logsnr)
        eps = torch.sin(3 * x) + timestep[:, None]
        return Prediction(x0=(x - level.sigma[:, None] * eps) / level.alpha[:, None], eps=eps)

    def predict_at(self, state):
        return self.predict(state.x, state.half_logsnr, state.timestep)


def test_ipndm_is_diffusers():
    """Nine steps of order 4 on diffusers' own grid; its model speaks v, from which it takes eps back.

    At the first of diffusers' timesteps alpha is 0 and no clean estimate exists: both start from the second.
    """
    scheduler, model = IPNDMScheduler(), WavyModel()
    scheduler.set_timesteps(10)
    scheduler._step_index = 1
    times = [time.double().expand(16) for time in scheduler.timesteps[1:]] + [torch.zeros(16, dtype=torch.float64)]
    state, expected = initial_state(NOISE, model.schedule, TimeGrid(), 9, history=4), NOISE
    for time, next_time in pairwise(times):
        half_logsnr, next_half_logsnr = model.schedule.half_logsnr(time), model.schedule.half_logsnr(next_time)
        level = model.schedule.level(half_logsnr)
        eps = model.predict(expected, half_logsnr, time).eps
        v = (eps - level.sigma[:, None] * expected) / level.alpha[:, None]
        expected = scheduler.step(v, time[0], expected).prev_sample

        state = predict(model, replace(state, half_logsnr=half_logsnr, timestep=time))
        estimate = IPNDM(4).estimate(state, next_half_logsnr, level)
        x0, x = apply_estimate(state, estimate, level, model.schedule.level(next_half_logsnr))
        torch.testing.assert_close(x, ddim_step(state.x, x0, level, model.schedule.level(next_half_logsnr)))
        state = replace(state, x=x)
        torch.testing.assert_close(state.x, expected, rtol=0, atol=1e-4)


def flow(teacher, x, start, end):
    """Closed form of one Gaussian's probability flow: distance to the mean scales with the marginal's deviation."""
    levels = [teacher.schedule.level(value) for value in (start, end)]
    mean, std = teacher.network.means[0], teacher.network.stds[0]
    spreads = [((level.alpha[:, None] * std) ** 2 + level.sigma[:, None] ** 2).sqrt() for level in levels]
    return levels[1].alpha[:, None] * mean + spreads[1] / spreads[0] * (x - levels[0].alpha[:, None] * mean)


def integration_error(teacher, solver, nodes):
    """Largest error after stepping through ``nodes`` from the exact solution, with an exact history at first."""
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = nodes[0].expand(4)
    state = replace(initial_state(x, teacher.schedule, TimeGrid(), 100, history=4), half_logsnr=start)
    for node, following in pairwise(nodes):
        half_logsnr = node.expand(4)
        exact_past = bool(state.predictions[0] < 4)
        here = flow(teacher, x, start, half_logsnr) if exact_past else state.x
        timestep = teacher.schedule.timestep(half_logsnr)
        state = predict(teacher, replace(state, x=here, half_logsnr=half_logsnr, timestep=timestep))
        level, next_level = teacher.schedule.level(half_logsnr), teacher.schedule.level(following.expand(4))
        estimate = solver.estimate(state, following.expand(4), level)
        state = replace(state, x=apply_estimate(state, estimate, level, next_level)[1])
    return (state.x - flow(teacher, x, start, nodes[-1].expand(4))).abs().max().item()


@pytest.mark.parametrize(
    ("solver", "order", "log_spaced"),
    [
        (DDIM(), 1, True),
        (DPMSolverPP(2), 2, True),
        (DPMSolverPP(3), 2, True),  # see its docstring
        (IPNDM(1), 1, False),
        (IPNDM(2), 2, False),
        (IPNDM(3), 3, False),
        (IPNDM(4), 4, False),
    ],
)
def test_order_of_convergence(gaussian, solver, order, log_spaced):
    """Halving the step divides the error by 2 ** order, on steps equal in the variable each solver is built for."""
    errors = []
    for count in (200, 400):
        if log_spaced:
            nodes = torch.linspace(-1, 1, count + 1, dtype=torch.float64)
        else:
            nodes = -torch.linspace(math.e, 1 / math.e, count + 1, dtype=torch.float64).log()
        errors.append(integration_error(gaussian, solver, nodes))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


def test_many_steps_reach_the_closed_form(gaussian):
    """The endpoint of a Gaussian teacher is the noise, scaled and shifted."""
    noise = torch.randn(8, 3, generator=torch.Generator().manual_seed(2))
    start = gaussian.schedule.knots[-1].expand(8)
    expected = flow(gaussian, noise, start, torch.full((8,), torch.inf, dtype=torch.float64)).float()
    torch.testing.assert_close(gaussian.endpoint(noise, num_steps=1000), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_weights_sum_to_one_and_skip_what_is_missing(ring, name):
    """A constant prediction is stepped with as it is, at every stage of a run."""
    solver = SOLVERS[name]
    for seen, state in enumerate(trajectory(ring, solver, LogSNRGrid(), NOISE, 6)):
        if seen == 5:
            break
        answered = predict(ring, state)
        weights = solver.weights(answered, answered.half_logsnr + 0.7)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(16, dtype=torch.float64))
        assert not bool(weights[:, seen + 2 :].any())


def test_iPNDM_first_order_is_DDIM(ring):  # noqa: N802
    torch.testing.assert_close(
        sample(ring, IPNDM(1), TimeGrid(), NOISE, 6), sample(ring, DDIM(), TimeGrid(), NOISE, 6), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("num_steps", "order"), [(3, 2), (4, 2), (5, 3), (8, 3)])
def test_a_cautious_iPNDM_keeps_to_order_2_in_short_runs(ring, num_steps, order):  # noqa: N802
    cautious, plain, other = (
        sample(ring, solver, TimeGrid(), NOISE, num_steps)
        for solver in (SOLVERS["ipndm"], IPNDM(order), IPNDM(5 - order))
    )
    assert torch.equal(cautious, plain)
    assert not torch.equal(cautious, other)


def test_one_network_call_a_step(ring):
    calls = []
    ring.network.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    states = list(trajectory(ring, DPMSolverPP(2), TimeGrid(), NOISE, 5))
    assert calls == [16] * 5
    assert states[-1].nfe.tolist() == [5] * 16
    assert states[-1].half_logsnr.isinf().all()


def test_bad_orders_and_counts_are_refused(ring):
    with pytest.raises(ValueError, match="order of IPNDM must be 1, 2, 3 or 4, got 5"):
        IPNDM(5)
    with pytest.raises(ValueError, match="order of DPMSolverPP must be 2 or 3, got 1"):
        DPMSolverPP(1)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        sample(ring, DDIM(), TimeGrid(), NOISE, 0)
