"""The Gauss-Newton method: its derivatives, its steps on a problem with a known optimum, what it refuses."""

import pytest
import torch

from redif_env import GaussianMixtureTeacher, Student
from redif_env.diffusion.grids import TimeGrid
from redif_env.diffusion.solvers import DDIM
from redif_env.mdp.actions import SolverMap, StepMap
from redif_env.mdp.policies import Policy
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.teachers.references import VALIDATION_SEED, reference_set
from redif_env.training.gauss_newton import GaussNewton, Rates, fitted_table, least_mean_error, noises_of
from tests.teachers.driving import teacher_of
from tests.teachers.zoo import ZOO


def process(**given):
    return build_mdp(MDPSettings(**{"teacher": "digits", "num_steps": 3, "solver": "ipndm2", "grid": "time", **given}))


def pairs_of(mdp, count=4):
    return reference_set(mdp.teacher, count, num_steps=6)


def run(mdp, table, pairs):
    """The last samples of a table, by the decision process alone."""
    state = mdp.initial(pairs.noise, condition=pairs.condition)
    everyone = torch.ones(len(pairs), dtype=torch.bool)
    for action in table.float():
        state = mdp.predict(state, everyone)
        state = mdp.advance(state, mdp.decode(state, action.expand(len(pairs), -1)))
    return state.x


def somewhere(mdp):
    """A search that has left the base solver."""
    found = GaussNewton.at_base(mdp)
    found.table = torch.rand(found.table.shape, generator=torch.Generator().manual_seed(0)).double() - 0.5
    return found


@pytest.mark.parametrize("name", ["network", "levels common to a call"])
@pytest.mark.usefixtures("quiet")
def test_a_changed_number_gives_the_samples_of_the_changed_table(name):
    """Also where a pipeline's call has one level for all: each changed run has calls of its own."""
    teacher = "digits" if name == "network" else teacher_of(ZOO["wan_two_experts"]())
    mdp = process(teacher=teacher, num_steps=3 if name == "network" else 2)
    assert mdp.teacher.common_levels == (name != "network")
    found, pairs = somewhere(mdp), pairs_of(mdp, 2)
    samples, changed = found._run(mdp, pairs, 0.05)
    torch.testing.assert_close(samples, run(mdp, found.table, pairs), rtol=0, atol=1e-5)
    for index, (change, x) in changed.items():
        table = found.table.clone()
        table.view(-1)[index] += change
        torch.testing.assert_close(x, run(mdp, table, pairs), rtol=1e-5, atol=1e-5)
        assert (x - samples).abs().max() > 1e-4
        assert change * found.table.view(-1)[index] <= 0
        assert abs(change) == pytest.approx(0.05)


def test_numbers_without_effect_cost_nothing():
    """The first step has no differences, and the last leads to clean data whatever its size."""
    mdp = process()
    found = somewhere(mdp)
    _, changed = found._run(mdp, pairs_of(mdp), 0.05)
    size = mdp.action_size
    left_out = {1, 2, size + 2, 2 * size, 2 * size + 4}
    assert set(changed) == set(range(3 * size)) - left_out
    first, second = size - 2, size - 1
    assert found.network_calls == 4 * (1 + (1 + first) + (1 + first + second))


def test_it_finds_the_optimal_step():
    """For a Gaussian and two DDIM steps, the only choice is the level between them."""
    teacher = GaussianMixtureTeacher(torch.zeros(1, 1), 0.2)
    settings = {"num_steps": 2, "action": StepMap(max_shift=3.0), "solver": DDIM(), "grid": TimeGrid()}
    mdp = process(teacher=teacher, **settings)
    pairs = reference_set(teacher, 256)

    def error(choice):
        return float((run(mdp, torch.tensor([[choice], [0.0]]), pairs) - pairs.endpoints).abs().mean())

    choices = torch.linspace(-1, 1, 401).tolist()
    best = min(choices, key=error)
    assert error(best) < 0.7 * error(0.0)
    table = fitted_table(mdp, pairs, 256 * 3 * 40, Rates(noises=256, damping=0.1, memory=0.0, difference=0.005))
    assert abs(float(table[0, 0]) - best) < 0.02
    assert table[1, 0] == 0


def test_a_step_without_damping_solves_a_linear_problem():
    """The last step's numbers enter linearly: one step finds where the gradient of the error is zero, or a bound."""
    mdp = process(num_steps=1, grid="time")
    found, pairs = GaussNewton.at_base(mdp), pairs_of(mdp, 32)
    found.step(mdp, lambda x: x.flatten(1), pairs, Rates(damping=0.0, largest=0.5, memory=0.0))
    base, changed = GaussNewton.at_base(mdp)._run(mdp, pairs, 0.05)
    slopes = torch.stack([(x - base).flatten(1) / change for change, x in changed.values()], dim=2).double()
    missing = (pairs.endpoints - base).flatten(1).double()

    def error(numbers):
        return (missing - slopes @ numbers).square().mean(dim=1).sqrt().mean()

    def slope(numbers):
        return torch.autograd.grad(error(numbers), numbers)[0]

    numbers = found.table[0, list(changed)].requires_grad_()
    at_bound = numbers.abs() >= 0.5
    left, before = slope(numbers), slope(torch.zeros_like(numbers, requires_grad=True))
    assert left[~at_bound].abs().max() < 1e-3 * before.abs().max()
    assert (left * numbers)[at_bound].le(0).all(), "the error would be smaller within"
    assert 0 < at_bound.sum() < len(numbers)


def quadratics(points):
    """The squared distances from points ``(N, P)``, each over P."""
    size = points.shape[1]
    gram = torch.eye(size, dtype=points.dtype).expand(len(points), -1, -1)
    return gram / size, points / size, points.square().mean(dim=1)


def test_the_mean_distance_is_smallest_at_the_geometric_median():
    """Of a convex quadrilateral that is where the diagonals cross; of points on a line, the one in the middle."""
    far = torch.full((2,), 10.0, dtype=torch.float64)
    for points, median in (
        ([[0.0, 0.0], [4.0, 0.0], [5.0, 5.0], [0.0, 3.0]], [12 / 7, 12 / 7]),
        ([[-1.0, 0.0], [0.5, 0.0], [7.0, 0.0]], [0.5, 0.0]),
    ):
        given = torch.tensor(points, dtype=torch.float64)
        found = least_mean_error(*quadratics(given), torch.ones(2, dtype=torch.float64), (-far, far), 0.0)
        torch.testing.assert_close(found, torch.tensor(median, dtype=torch.float64), rtol=0, atol=1e-2)
        # The sum of squares is smallest elsewhere.
        assert (given.mean(dim=0) - found).norm() > 0.1


def test_numbers_at_a_bound_let_the_others_find_their_best():
    """With one number held at its bound, the other is the solution for that, not the rest of a solution for both."""
    gram = torch.tensor([[[1.0, 0.8], [0.8, 1.0]]], dtype=torch.float64)
    best = torch.tensor([2.0, 0.0], dtype=torch.float64)
    moments = (gram @ best)[0][None]
    squares = best @ gram[0] @ best + torch.tensor([1.0], dtype=torch.float64)
    zero, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    found = least_mean_error(gram, moments, squares, zero, (-one, one), 0.0)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.8], dtype=torch.float64), rtol=0, atol=1e-3)
    # A number without effect stays, and so do all between bounds that meet.
    gram, moments = gram * torch.tensor([[1.0, 0.0], [0.0, 0.0]]), moments * torch.tensor([1.0, 0.0])
    found = least_mean_error(gram, moments, squares, 0.5 * one, (-one, one), 0.0)
    assert found.tolist() == [1.0, 0.5]
    assert least_mean_error(gram, moments, squares, zero, (zero, zero), 0.0).tolist() == [0.0, 0.0]


def test_the_oldest_episodes_are_left_out():
    mdp = process()
    found, pairs = GaussNewton.at_base(mdp), pairs_of(mdp, 2)
    kept = []
    for _ in range(8):
        before = found.squares
        found.step(mdp, lambda x: x.flatten(1), pairs, Rates(memory=0.5))
        kept.append(len(found.squares))
        old = found.squares[:-2]
        assert torch.equal(old, before[len(before) - len(old) :]), "the newest are kept, in their order"
    assert found.squares.unique().numel() == 8
    assert kept == [2, 2, 4, 4, 4, 6, 8, 8]
    assert len(found.gram) == len(found.moments) == 8


@pytest.mark.parametrize(("num_steps", "noises"), [(1, 8), (4, 7), (6, 3), (8, 2), (20, 2)])
def test_the_episodes_of_a_step_are_fewer_where_they_are_dearer(num_steps, noises):
    assert noises_of(build_mdp(MDPSettings(teacher="digits", num_steps=num_steps))) == noises


def test_it_is_nearer_to_the_teacher_on_other_noises():
    mdp = process(grid="time@20")
    reference = reference_set(mdp.teacher, 48, num_steps=10)
    held_out = reference_set(mdp.teacher, 16, VALIDATION_SEED, num_steps=10)
    table = fitted_table(mdp, reference, 1200, Rates(noises=4))
    base, ours = (run(mdp, each, held_out) - held_out.endpoints for each in (torch.zeros_like(table), table))
    assert ours.square().mean() < 0.6 * base.square().mean()
    assert torch.equal(fitted_table(mdp, reference, 1200, Rates(noises=4)), table)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_steps": 2}, "min_steps=2 makes episodes of several lengths"),
        ({"action": "noise", "observation": "sample"}, "action='noise' depends on the sample"),
    ],
)
def test_what_has_no_table_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        GaussNewton.at_base(process(**given))


def test_the_zero_action_is_the_center(tmp_path):
    """A policy around a table; the student is saved with the table."""
    plain, pairs = process(), pairs_of(process())
    table = 0.5 * torch.randn(3, plain.action_size, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    center = tuple(map(tuple, table.tolist()))
    around = process(action=SolverMap(center=center))
    expected = run(plain, table, pairs)
    torch.testing.assert_close(run(around, torch.zeros_like(table), pairs), expected, rtol=0, atol=1e-6)
    # 1 is the largest sum, wherever the center is.
    torch.testing.assert_close(
        run(around, torch.full_like(table, 2.0), pairs), run(plain, torch.ones_like(table), pairs), rtol=0, atol=1e-6
    )
    student = Student(around, Policy.from_table(torch.zeros_like(table), around.observation_size))
    student.save_pretrained(tmp_path / "student")
    again = Student.from_pretrained(tmp_path / "student")
    assert again.mdp.action_map.center == around.action_map.center
    torch.testing.assert_close(again(noise=pairs.noise), expected.clamp(-1, 1), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="center has actions of sizes"):
        process(action=SolverMap(center=center[:2]))
