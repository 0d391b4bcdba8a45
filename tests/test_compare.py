"""The comparison: its rivals do what they say, on problems with known answers; its program keeps and prints all."""

import itertools
import json

import pytest
import torch

from experiments import compare
from experiments.rivals.descent import loss_of
from experiments.rivals.gits import FINE, cheapest_path, gits, step_costs
from experiments.rivals.gradient import Table, gradient_policy, gradient_table
from experiments.rivals.regression import regression
from experiments.rivals.rival import Clock, Task, distance
from experiments.rivals.training_free import ddim, solver
from redif_env.evaluation import Evaluator
from redif_env.grids import GRIDS
from redif_env.networks import call_by_name
from redif_env.references import TEST_SEED, TRAIN_SEED, VALIDATION_SEED, draw_starts, reference_set
from redif_env.sampling import trajectory
from redif_env.schedules import FlowSchedule
from redif_env.settings import DEFAULT_GRID, DEFAULT_SOLVER, build_mdp
from redif_env.solvers import SOLVERS, sample
from redif_env.teachers import GaussianMixtureTeacher, Teacher
from redif_env.types import PredictionType
from tests.models import unet


def task_of(num_steps=3, seconds=2.0):
    teacher = GaussianMixtureTeacher.ring()
    chooser = Evaluator(teacher, 128, VALIDATION_SEED, 50, 256)
    return Task(teacher, reference_set(teacher, 256, num_steps=50), chooser, num_steps, 0, seconds)


def test_the_cheapest_path_is_the_cheapest():
    """Against all paths, one by one."""
    costs = torch.rand(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    costs = torch.where(torch.ones(7, 7).triu(1).bool(), costs, torch.inf)
    for steps in (1, 3, 6):
        inner = itertools.combinations(range(1, 6), steps - 1)
        found = min(((0, *path) for path in inner), key=lambda path: total(costs, path))
        assert cheapest_path(costs, steps) == found


def total(costs, path):
    return sum(costs[a, b].item() for a, b in itertools.pairwise((*path, 6)))


def test_gits_costs_are_nothing_for_the_next_level_and_grow():
    """A fine step lands nearly on the trajectory, a coarse one does not; nothing leads backwards."""
    task = task_of()
    costs = step_costs(task, GRIDS["karras"], Clock(1.0))
    assert bool(costs.tril().isinf()[torch.ones(FINE + 1, FINE + 1).tril().bool()].all())
    neighbours = costs.diagonal(1)
    assert neighbours.max() < 0.1
    assert costs[0, -1] > 5 * neighbours.max()


def test_gits_is_ahead_of_ddim():
    task = task_of()
    found = gits(task)
    assert distance(task.chooser, found.sampler) < distance(task.chooser, ddim(task).sampler)
    assert found.network_calls > 0
    assert "[0, " in found.described


def test_the_gradient_through_the_sampler_is_right():
    """Against finite differences, in double precision, at actions away from the border."""
    teacher = GaussianMixtureTeacher.ring().to("cpu", torch.float64)
    mdp = build_mdp(teacher, 3, "solver", "features", "dpm++3m", "time^1.5", "cpu", "float64")
    noise, _ = draw_starts(teacher, 16, 0)
    ends = torch.zeros(16, 2, dtype=torch.float64)
    table = Table(3, mdp.action_size).double()
    with torch.no_grad():
        table.values.copy_(0.2 * torch.randn(table.values.shape, generator=torch.Generator().manual_seed(0)))

    def loss():
        *_, last = trajectory(mdp, lambda seen: table(seen.double()), noise.double())
        return (last.x - ends).square().mean()

    loss().backward()
    step = 1e-4
    for place in ((0, 0), (1, 1), (2, 3), (0, 4)):
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                table.values[place] += sign * step
                sides.append(loss().item())
                table.values[place] -= sign * step
        assert table.values.grad[place].item() == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=2e-2, abs=1e-6)


@pytest.mark.parametrize("fit", [gradient_table, gradient_policy])
def test_gradient_rivals_learn(fit):
    """A few seconds on the ring: nearer to the teacher than the base solver, within the time given."""
    task = task_of(seconds=5.0)
    base = distance(task.chooser, solver(task).sampler)
    found = fit(task)
    assert distance(task.chooser, found.sampler) < 0.8 * base
    assert found.seconds < 2 * task.seconds
    again = loss_of(task)(task.chooser.endpoints, task.chooser.endpoints)
    assert again.item() < 1e-5


def test_nobody_fits_on_what_is_reported():
    """Noises of training, choosing and reporting have none in common; the reference set is the training one."""
    task = task_of()
    training, choosing, reporting = (
        {tuple(row) for row in noise.tolist()}
        for noise in (task.reference.noise, task.chooser.noise, draw_starts(task.teacher, 500, TEST_SEED)[0])
    )
    assert not training & choosing
    assert not (training | choosing) & reporting
    assert torch.equal(task.reference.noise, draw_starts(task.teacher, 256, TRAIN_SEED)[0])


def test_regression_moves_the_network_and_leaves_the_teacher():
    """On a small UNet: nearer to the endpoints than the base solver it starts from; the teacher's weights stay."""
    torch.manual_seed(0)
    kind = PredictionType.FLOW_PREDICTION
    teacher = Teacher(unet(), FlowSchedule(), (3, 8, 8), kind, "tiny", call=call_by_name)
    before = teacher.fingerprint
    chooser = Evaluator(teacher, 16, VALIDATION_SEED, 20, 64)
    task = Task(teacher, reference_set(teacher, 64, num_steps=20), chooser, 2, 0, 6.0)
    base = sample(teacher, SOLVERS[DEFAULT_SOLVER], GRIDS[DEFAULT_GRID], chooser.noise, 2)
    made = regression(task).sampler(chooser.noise, chooser.condition)
    error, least = ((x.clamp(-1, 1) - chooser.endpoints).square().mean() for x in (made, base))
    assert error < 0.9 * least
    assert teacher.fingerprint == before
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning", "ignore:rich is experimental")
def test_the_program_keeps_and_prints(tmp_path, capsys, monkeypatch):
    """Every rival but the network's, for a second each: rows, table and pictures; what is kept is not repeated."""
    monkeypatch.setattr(compare.os, "cpu_count", lambda: 1)  # other tests run beside
    methods = tuple(name for name in compare.RIVALS if name != "network, regression")
    args = compare.Args(
        teacher=("gaussian-ring",),
        nfe=(3,),
        seeds=1,
        seconds=1.0,
        methods=methods,
        reference_size=256,
        test_size=200,
        held_out_size=64,
        out=tmp_path,
        jobs=1,
    )
    compare.main(args)
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["method"] for row in rows} == set(methods)
    for method in methods:
        assert method in said
    assert {row["nfe"] for row in rows} == {3}
    best = {row["method"]: row["fd_teacher"] for row in rows}
    assert best["best solver"] <= best["ddim"]
    assert (tmp_path / "quality-gaussian-ring.png").stat().st_size > 5000
    assert (tmp_path / "samples-gaussian-ring-3.png").is_file()
    monkeypatch.setattr(compare, "RIVALS", {name: (None, chance) for name, (_, chance) in compare.RIVALS.items()})
    compare.main(args)
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    with pytest.raises(ValueError, match="methods=\\['magic'\\] are unknown"):
        compare.main(compare.Args(methods=("magic",), out=tmp_path))
