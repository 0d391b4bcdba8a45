import itertools

import numpy as np
import pytest
import torch

from redif_env.diffusion.bands import band_moments, filter_bands
from redif_env.diffusion.grids import GRIDS, TimeGrid
from redif_env.diffusion.solvers import DDIM, SOLVERS, sample, trajectory
from redif_env.mdp.actions import ACTION_MAPS, BaseSolver, SolverMap, StepMap
from redif_env.mdp.observations import Features
from redif_env.mdp.process import DenoisingMDP
from redif_env.teachers.teacher import load_teacher

KINDS_OF_GRIDS = ["time^1.5", "time^1.5@20", "logsnr", "karras", "ays"]
COMPACT = [name for name, action_map in ACTION_MAPS.items() if not action_map.predicts]
"""Maps whose teacher predicts."""


def decision_after(teacher, calls, action_map, action, num_steps=4):
    """What an action means in the state after some network calls along DDIM."""
    mdp = DenoisingMDP(teacher, DDIM(), TimeGrid(), num_steps, action_map, Features())
    noise = torch.randn(3, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    state = mdp.predict(mdp.initial(noise), torch.ones(3, dtype=torch.bool))
    zero = torch.zeros(3, action_map.size(teacher.sample_shape))
    for _ in range(calls - 1):
        state = mdp.predict(mdp.advance(state, mdp.decode(state, zero)), torch.ones(3, dtype=torch.bool))
    return mdp, state, mdp.decode(state, zero), mdp.decode(state, zero + torch.tensor(action))


@pytest.mark.parametrize(("name", "solver", "grid"), list(itertools.product(COMPACT, SOLVERS, KINDS_OF_GRIDS)))
@pytest.mark.parametrize("num_steps", [1, 4, 7])
def test_zero_is_the_base_solver_exactly(ring, name, solver, grid, num_steps):
    """Bit for bit, for each action map, base solver and grid."""
    mdp = DenoisingMDP(ring, SOLVERS[solver], GRIDS[grid], num_steps, ACTION_MAPS[name], Features())
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    state, everyone = mdp.initial(noise), torch.ones(6, dtype=torch.bool)
    for _ in range(num_steps):
        state = mdp.predict(state, everyone)
        state = mdp.advance(state, mdp.decode(state, torch.zeros(6, mdp.action_map.size((2,)))))
    assert torch.equal(state.x, sample(ring, SOLVERS[solver], GRIDS[grid], noise, num_steps))


def test_zero_is_the_base_solver_exactly_on_images(pipeline_folder):
    """The same where frequency bands are part of the action."""
    teacher = load_teacher(pipeline_folder)
    mdp = DenoisingMDP(teacher, SOLVERS["dpm++2m"], TimeGrid(), 3, SolverMap(), Features())
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    state, everyone = mdp.initial(noise), torch.ones(2, dtype=torch.bool)
    for _ in range(3):
        state = mdp.predict(state, everyone)
        state = mdp.advance(state, mdp.decode(state, torch.zeros(2, mdp.action_map.size((3, 8, 8)))))
    assert torch.equal(state.x, sample(teacher, SOLVERS["dpm++2m"], TimeGrid(), noise, 3))


def test_step_number_by_hand(ring):
    """At 4 steps left, +1 shifts the logit of 1/4 by 2: the fraction is 1 / (1 + 3 exp(-2))."""
    _, _, _, shifted = decision_after(ring, 1, StepMap(max_shift=2.0), [1.0])
    assert shifted.position[0].item() == pytest.approx(1 / (1 + 3 * np.exp(-2)))


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_noise_numbers_by_hand(ring, calls):
    """Each correction moves the clean estimate as its unit says; differences without a past count as zero."""
    action_map = SolverMap(max_first=1.0, max_second=0.5, max_gain=0.1)
    for index, unit in ((1, 1.0), (2, 0.5), (3, 0.1)):
        action = [0.0] * 5
        action[index] = 0.5
        mdp, state, base, corrected = decision_after(ring, calls, action_map, action)
        newest, older, oldest = state.x0_history[:, :3].unbind(1)
        sigma = mdp.teacher.schedule.level(state.half_logsnr).sigma[:, None]
        part = {
            1: newest - older if calls >= 2 else torch.zeros_like(newest),
            2: newest - 2 * older + oldest if calls >= 3 else torch.zeros_like(newest),
            3: -sigma * state.eps_history[:, 0],  # DDIM combines nothing but the newest
        }[index]
        torch.testing.assert_close((corrected.x0 - base.x0).double(), 0.5 * unit * part.double(), rtol=1e-3, atol=1e-4)


def test_timestep_shift_by_hand(ring):
    """Number 4 moves the conditioning timestep alone, by max_timestep_shift * sigma in half_logsnr."""
    mdp, _, base, other = decision_after(ring, 1, SolverMap(max_timestep_shift=0.5), [0.0, 0.0, 0.0, 0.0, -1.0])
    assert torch.equal(base.position, other.position)
    assert torch.equal(base.x0, other.x0)
    schedule = mdp.teacher.schedule
    half_logsnr = schedule.half_logsnr(base.timestep)
    shifted = half_logsnr - 0.5 * schedule.level(half_logsnr).sigma
    torch.testing.assert_close(schedule.half_logsnr(other.timestep), shifted)


def test_band_numbers_by_hand(pipeline_folder):
    """Equal gains on all bands scale the clean estimate: by 1 + 0.5 * 0.2 * sigma."""
    teacher = load_teacher(pipeline_folder)
    action_map = SolverMap(max_band=0.5, bands=2)
    _, state, base, scaled = decision_after(teacher, 2, action_map, [0.0] * 5 + [0.2, 0.2])
    sigma = teacher.schedule.level(state.half_logsnr).sigma.float().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(scaled.x0, (1 + 0.1 * sigma) * base.x0, rtol=1e-4, atol=1e-4)


def test_bands_add_up_and_hold_their_frequencies():
    images = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    bands = split(images, 3)
    torch.testing.assert_close(bands.sum(0), images)
    flat = torch.ones(1, 1, 8, 8)
    checkers = flat.clone()
    checkers[..., ::2] *= -1
    assert split(flat, 2)[0].allclose(flat)
    assert split(checkers, 2)[1].allclose(checkers, atol=1e-6)


def split(images, count):
    """Each band by itself, ``(count, B, C, H, W)``."""
    gains = torch.eye(count, dtype=torch.float64)
    return torch.stack([filter_bands(images, gain.expand(len(images), -1)) for gain in gains])


@pytest.mark.parametrize("shape", [(3, 8, 6), (1, 7, 5), (2, 5, 8)])
def test_moments_of_bands_are_those_of_the_bands_themselves(shape):
    """By Parseval's theorem, at even and odd sizes; a control without the mirrored frequencies is off."""
    pair = torch.randn(4, 2, *shape, generator=torch.Generator().manual_seed(0))
    bands = split(pair.flatten(0, 1), 3).unflatten(1, (4, 2))
    expected = torch.einsum("kbi...,kbj...->bijk", bands.flatten(3), bands.flatten(3)) / bands[0, 0, 0].numel()
    found = band_moments(pair, 3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.sum(3).diagonal(dim1=1, dim2=2), pair.square().flatten(2).mean(2))
    assert not torch.allclose(found, 0.5 * expected, rtol=1e-2)


def test_action_sizes():
    assert SolverMap().size((1, 8, 8)) == 7
    assert SolverMap().size((2,)) == 5
    assert StepMap().size((1, 8, 8)) == 1


def test_rows_at_different_steps_decode_independently(ring):
    """Rows of a batch can be at different steps of their episodes."""
    noise = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    action = torch.full((1, 5), 0.3)
    mdp = DenoisingMDP(ring, SOLVERS["dpm++3m"], TimeGrid(), 5, SolverMap(), Features())
    everyone = torch.ones(1, dtype=torch.bool)
    young = mdp.predict(mdp.initial(noise[:1]), everyone)
    old = mdp.predict(mdp.initial(noise[1:]), everyone)
    for _ in range(3):
        old = mdp.predict(mdp.advance(old, mdp.decode(old, action)), everyone)
    initial = mdp.initial(noise)
    both = initial.merge(torch.tensor([True, False]), young.rows(torch.tensor([0, 0])))
    both = both.merge(torch.tensor([False, True]), old.rows(torch.tensor([0, 0])))
    base = BaseSolver(mdp.solver, mdp.grid, ring.parameterization)
    together = mdp.action_map.decode(action.expand(2, 5), both, base).x0
    apart = torch.cat([mdp.action_map.decode(action, one, base).x0 for one in (young, old)])
    assert torch.equal(together, apart)


def test_trajectory_and_decode_agree_on_the_timestep(ring):
    states = list(trajectory(ring, DDIM(), TimeGrid(), torch.randn(3, 2), 4))
    _, _, base, _ = decision_after(ring, 1, StepMap(), [0.0])
    assert base.timestep[0] == states[0].timestep[0]
