"""Rivals that step in sigma space: what they are before training, and what they find where the answer is known."""

import itertools
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from experiments import compare
from experiments.rivals import amed, amed_plugin, convolution, optimal_steps, pace, pas
from experiments.rivals.amed_plugin import Plugin, plugin_sampler, plugin_states
from experiments.rivals.descent import BATCH
from experiments.rivals.dyweight import Weights, dyweight
from experiments.rivals.field import FIELD, takes_part
from experiments.rivals.rival import Clock, in_batches, remaining
from experiments.rivals.sigma_space import pool_of, sigma_space
from experiments.rivals.training_free import TRAINING_FREE
from experiments.rivals.two_calls import midpoint, nodes, two_call_states
from redif_env.diffusion.grids import GRIDS, Grid
from redif_env.diffusion.solvers import SOLVERS, sample
from redif_env.teachers.references import reference_set
from redif_env.teachers.teacher import GaussianMixtureTeacher
from tests.experiments.test_compare import small, task_of


@pytest.fixture
def gaussian():
    """One Gaussian, whose trajectories are linear in the noise."""
    return GaussianMixtureTeacher(torch.tensor([[0.3, -0.2]]), 0.4)


@dataclass(frozen=True)
class Levels(Grid):
    """Given levels, one a step."""

    levels: tuple[float, ...]

    def interior(self, position, schedule):
        nodes = torch.tensor([*self.levels, math.inf], dtype=torch.float64)
        return nodes[(position * len(self.levels)).round().long()]


@pytest.mark.parametrize(("order", "solver"), [(1, "ddim"), (2, "ipndm2"), (3, "ipndm3")])
def test_untrained_samplers_in_sigma_space_are_the_solvers(ring, order, solver):
    """PAS without corrections and untrained DyWeight; another order is another sampler."""
    task, space = task_of(4), sigma_space(ring, GRIDS["time^1.5@20"], 4)
    noise, condition = task.chooser.noise, task.chooser.condition
    expected = sample(ring, SOLVERS[solver], GRIDS["time^1.5@20"], noise, 4)
    torch.testing.assert_close(pas.PAS(space, order, (None,) * 4)(noise, condition), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(in_batches(Weights(space, order))(noise, condition), expected, atol=1e-4, rtol=1e-4)
    assert (in_batches(Weights(space, order % 3 + 1))(noise, condition) - expected).abs().max() > 1e-2


def test_the_untrained_plugin_is_ipndm_through_the_middle_levels(ring):
    """Of levels half way in half_logsnr; a gain, or a conditioning time, of its own changes it."""
    noise, condition = task_of(4).chooser.noise, task_of(4).chooser.condition
    module = Plugin((2,), 2, ring.schedule)
    first, middle, last = nodes(GRIDS["time@20"], ring.schedule, 2).tolist()
    grid = Levels((first, (first + middle) / 2, middle, (middle + last) / 2))
    made = plugin_sampler(ring, GRIDS["time@20"], 2, module)(noise, condition)
    torch.testing.assert_close(made, sample(ring, SOLVERS["ipndm3"], grid, noise, 4), atol=1e-4, rtol=1e-4)
    for output in (1, 2):
        changed = Plugin((2,), 2, ring.schedule)
        changed.layers[-1].bias.data[output] = 1.0
        other = plugin_sampler(ring, GRIDS["time@20"], 2, changed)(noise, condition)
        assert (other - made).abs().max() > 1e-2


@pytest.mark.parametrize("cut", [True, False])
def test_amed_trains_an_interval_at_a_time(ring, cut):
    """No gradient reaches the noise from the second interval, unless it is asked to."""
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rows, grid = torch.zeros(4, dtype=torch.int64), GRIDS["time@20"]
    *_, by_plugin = plugin_states(ring, grid, noise, rows, 2, Plugin((2,), 2, ring.schedule), cut=cut)
    *_, by_solver = two_call_states(ring, grid, noise, rows, 4, midpoint, cut=cut)
    for last in (by_plugin, by_solver):
        found = torch.autograd.grad(last.x.sum(), noise, allow_unused=True)[0] if last.x.requires_grad else None
        assert (found is None) == cut


@pytest.mark.parametrize("module", [amed.fit, amed_plugin.fit])
def test_training_by_intervals_gets_nearer_and_keeps_to_its_budget(module):
    task = task_of(4, calls=60 * BATCH * 8)
    pool = pool_of(task.teacher, task.reference, task.trajectories)
    before, after = (module(replace(task, calls=calls), GRIDS["time^1.5@8"]) for calls in (1, task.calls))
    errors = [(found.sampler(pool.noise, pool.condition) - pool.endpoints).square().mean() for found in (before, after)]
    assert errors[1] < 0.9 * errors[0]
    assert after.network_calls == task.calls


def test_amed_is_trained_on_several_grids(monkeypatch):
    seen = []

    def fit(task, grid):
        seen.append((grid, task.calls))
        return original(task, grid)

    original = amed.fit
    monkeypatch.setattr(amed, "fit", fit)
    task = task_of(4, calls=40_000)
    found = amed.amed(task)
    assert len({grid for grid, _ in seen}) == amed.TRIED
    assert found.network_calls < 1.1 * task.calls
    with pytest.raises(ValueError, match="nfe=3 is no multiple"):
        amed_plugin.amed_plugin(task_of(3))
    assert not takes_part("amed-plugin", 5)


def test_the_basis_is_orthonormal_and_spans_the_past():
    generator = torch.Generator().manual_seed(0)
    past = [torch.randn(5, 6, generator=generator) for _ in range(3)]
    direction, x = (torch.randn(5, 6, generator=generator) for _ in range(2))
    vectors = pas.basis(direction, past, x)
    torch.testing.assert_close(vectors @ vectors.transpose(1, 2), torch.eye(4).double().expand(5, 4, 4))
    torch.testing.assert_close(vectors[:, 0], F.normalize(direction.double(), dim=1))
    for row in (direction, *past):
        shares = vectors @ row.double()[:, :, None]
        torch.testing.assert_close((vectors.transpose(1, 2) @ shares)[:, :, 0], row.double())
    assert (vectors[:, 1:] @ (x - past[0]).double()[:, :, None] >= 0).all()


def test_pas_finds_the_best_coordinates(gaussian):
    """No other coordinates of the last step bring the samples nearer; a useless correction is not made."""
    reference = reference_set(gaussian, 256, num_steps=50)
    pool, space = pool_of(gaussian, reference, len(reference)), sigma_space(gaussian, GRIDS["time^2"], 3)
    found = pas.fit(space, 1, pool)

    def error(coordinates):
        made = pas.PAS(space, 1, coordinates)(pool.noise, pool.condition)
        return (made - pool.endpoints).square().mean().item()

    assert error(found) < 0.5 * error((None,) * 3)
    for index, step in itertools.product(range(len(found[-1])), (-0.05, 0.05)):
        moved = found[-1].clone()
        moved[index] += step
        # A plane has two directions: further coordinates are of vectors of no size.
        assert error((*found[:-1], moved)) > error(found) or index > 1
    plain, past = [space.place(pool.noise, 0)], [space.place(pool.noise, 0)]
    for index in range(3):
        past.append(space.direction(plain[-1], space.half_logsnr[index], pool.condition))
        plain.append(pas.step(space, 1, index, plain[-1], past))
    nothing_to_gain = SimpleNamespace(noise=pool.noise, condition=pool.condition, targets=lambda _: plain)
    assert pas.fit(space, 1, nothing_to_gain) == (None,) * 3


def test_dyweight_learns():
    task = task_of(2, calls=40_000)
    base = TRAINING_FREE["ipndm2"](task)
    found = dyweight(task)
    assert task.chooser.distance(found.sampler) < 0.8 * task.chooser.distance(base.sampler)
    assert found.network_calls <= task.calls + BATCH * 6


def test_optimal_steps_are_the_best_of_all(ring):
    """Of two steps, against all levels between them; of as many steps as levels, all levels."""
    task, space = task_of(), sigma_space(ring, GRIDS["karras"], 12)
    noise, condition = task.reference.noise[:16], task.reference.condition[:16]
    pool = pool_of(ring, replace(task.reference, noise=noise, condition=condition), 16)
    teacher = torch.stack(pool.targets(space))
    teacher[0] = space.place(noise, 0)
    errors = {}
    for middle in range(1, 12):
        x = teacher[0]
        for here, there in ((0, middle), (middle, 12)):
            eps = space.direction(x, space.half_logsnr[here], condition)
            x = x + (space.sigma[there] - space.sigma[here]).float() * eps
        errors[0, middle] = (x - teacher[-1]).square().mean().item()
    found, calls = optimal_steps.searched_path(space, teacher, condition, 2)
    assert found == min(errors, key=errors.__getitem__)
    assert found != max(errors, key=errors.__getitem__)
    assert calls == 16 * 12
    assert optimal_steps.searched_path(space, teacher, condition, 12)[0] == tuple(range(12))


def test_a_kernel_is_found():
    """Targets made by a kernel give it back; inputs that say nothing leave the DDIM step."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(64, 3, 8, 8, generator=generator)
    kernel, offset = torch.randn(1, 3, 7, 7, generator=generator), torch.tensor([0.5])
    kernel = F.pad(kernel, (1, 1, 1, 1))
    found = convolution.fitted_kernel(seen, F.conv2d(seen, kernel, offset, padding=4))
    torch.testing.assert_close(found[0].float(), kernel, atol=2e-3, rtol=0)
    assert found[1].item() == pytest.approx(0.5, abs=1e-3)
    plain, _ = convolution.fitted_kernel(seen, seen[:, 1:2])
    assert plain[0, 1, 4, 4].item() == pytest.approx(1)
    assert (kernel - plain).abs().max() > 0.1


def test_convolution_steps_are_exact_for_one_gaussian(gaussian):
    """Whose map from noise to data is affine, and so are all steps; DDIM's are not exact."""
    pool, grid = pool_of(gaussian, reference_set(gaussian, 256, num_steps=100), 256), GRIDS["time@20"]
    made = sample(gaussian, convolution.fit(gaussian, grid, 2, pool), grid, pool.noise, 2)
    plain = sample(gaussian, SOLVERS["ddim"], grid, pool.noise, 2)
    assert (made - pool.endpoints).abs().max() < 1e-2
    assert (plain - pool.endpoints).abs().max() > 0.1


@pytest.mark.parametrize("method", ["convolution steps", "pas", "optimal steps"])
def test_rivals_that_are_fitted_once_are_ahead_of_ddim(method):
    task = task_of(4)
    found = FIELD[method].rival(task)
    assert task.chooser.distance(found.sampler) < task.chooser.distance(TRAINING_FREE["ddim"](task).sampler)
    assert found.network_calls > 0


def test_the_gauss_newton_method_is_ahead_of_its_base_within_the_budget():
    task = task_of(3, calls=3000)
    found = FIELD["gauss-newton"].rival(task)
    base = task.chooser.distance(task.base.sampler(task.teacher, 3))
    assert task.chooser.distance(found.sampler) < 0.5 * base
    # The last step may exceed it.
    assert task.calls <= found.network_calls < task.calls + 16 * 19


def test_a_budget_in_network_calls_stands_alone_or_beside_seconds(tmp_path):
    args = small(tmp_path, seconds=None)
    assert compare.seconds_of(args) == compare.SECONDS
    assert compare.seconds_of(replace(args, network_calls=1000)) == math.inf
    assert compare.seconds_of(replace(args, network_calls=1000, seconds=5.0)) == 5.0
    with pytest.raises(ValueError, match="network_calls=0 must be above 0"):
        compare.check(replace(args, network_calls=0), FIELD)
    task = replace(task_of(3, calls=600), seconds=math.inf)
    assert pace.in_time(task, 1e-3, 10) == 600
    assert pace.in_time(replace(task, seconds=0.2), 1e-3, 10) == 200
    clock = Clock(math.inf, 600)
    clock.network_calls = 450
    assert clock.share == 0.75
    assert remaining(task, clock).calls == 150


def test_a_comparison_ends_its_fits_by_calls(tmp_path):
    args = small(tmp_path, seconds=None, network_calls=BATCH * 9 * 5, methods=("gradient, table",), solver="ipndm")
    (cell,) = compare.cells_of(args, FIELD)
    assert compare.finish((cell, FIELD[cell.method]), args)["network_calls"] == args.network_calls
