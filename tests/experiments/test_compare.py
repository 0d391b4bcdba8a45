"""The comparison: its rivals do what they say, on problems with known answers; its program stores and prints all."""

import copy
import hashlib
import itertools
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from experiments import compare
from experiments.rivals import descent, ours, pace
from experiments.rivals.amed import Intermediate, amed
from experiments.rivals.consistency import consistency, heun_step
from experiments.rivals.descent import Batch, loss_of
from experiments.rivals.field import FIELD, Entry, takes_part
from experiments.rivals.gits import FINE, cheapest_path, gits, step_costs
from experiments.rivals.gradient import Table, gradient_policy, gradient_table
from experiments.rivals.matching import FakeScore, matching, score_difference
from experiments.rivals.progressive import progressive
from experiments.rivals.regression import regression
from experiments.rivals.rival import Clock, StudentSampler, Task, nearest
from experiments.rivals.targets import Noised, clean_target, grid_levels, noised, target_loss
from experiments.rivals.training_free import TRAINING_FREE, ddim
from experiments.rivals.two_calls import heun, midpoint, two_call_sampler
from redif_env import Student
from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.noise_schedulers import action_parameterization
from redif_env.diffusion.schedules import FlowSchedule, VariancePreservingSchedule
from redif_env.diffusion.solvers import SOLVERS, ddim_step, sample
from redif_env.diffusion.types import PredictionType
from redif_env.judging.baselines import SOLVER_GRIDS
from redif_env.judging.bases import SCREEN_SIZE, SHORTLIST, Base, bases_of, linear_base
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.policies import Policy
from redif_env.mdp.sampling import trajectory
from redif_env.mdp.settings import MDPSettings, TeacherSettings, build_mdp, shared_teacher
from redif_env.measures.metrics import frechet_distance
from redif_env.sb3.training.recipes import settled
from redif_env.teachers.networks import call_by_name
from redif_env.teachers.references import TEST_SEED, TRAIN_SEED, VALIDATION_SEED, draw_starts, reference_set
from redif_env.teachers.teacher import GaussianMixtureTeacher, Teacher, own_teacher
from tests.models import unet


def task_of(num_steps=3, calls=20_000):
    teacher = GaussianMixtureTeacher.ring()
    chooser = Evaluator(teacher, 128, VALIDATION_SEED, 50, 256)
    return Task(teacher, reference_set(teacher, 256, num_steps=50), chooser, num_steps, 0, math.inf, calls)


def test_the_cheapest_path_is_the_cheapest():
    """Against all paths, one by one; a coefficient above 1 makes late steps dearer, and changes the path."""
    costs = torch.rand(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    costs = torch.where(torch.ones(7, 7).triu(1).bool(), costs, torch.inf)
    for steps in (1, 3, 6):
        inner = itertools.combinations(range(1, 6), steps - 1)
        found = min(((0, *path) for path in inner), key=lambda path: total(costs, path))
        assert cheapest_path(costs, steps) == found
    inner = [(0, *path) for path in itertools.combinations(range(1, 6), 2)]
    weighed = {at: min(inner, key=lambda path: total(costs, path, at)) for at in (0.1, 1.0, 10.0)}
    assert {at: cheapest_path(costs, 3, at) for at in weighed} == weighed
    assert len(set(weighed.values())) > 1


def total(costs, path, coefficient=1.0):
    steps = enumerate(itertools.pairwise((*path, 6)))
    return sum(coefficient**index * costs[pair].item() for index, pair in steps)


def test_gits_costs_are_nothing_for_the_next_level_and_grow():
    """A fine step ends nearly on the trajectory, a coarse one does not; nothing leads backwards."""
    task = task_of()
    for costs in step_costs(task, GRIDS["karras"], Clock(1.0)).values():
        assert bool(costs.tril().isinf()[torch.ones(FINE + 1, FINE + 1).tril().bool()].all())
        neighbours = costs.diagonal(1)
        assert neighbours.abs().max() < 1
        assert costs[0, -1] > 5 * neighbours.abs().max() or costs[0, FINE // 2] > 5 * neighbours.abs().max()


def test_gits_is_ahead_of_ddim():
    task = task_of()
    found = gits(task)
    assert task.chooser.distance(found.sampler) < task.chooser.distance(ddim(task).sampler)
    assert found.network_calls > 0
    assert "[0, " in found.described


@pytest.mark.parametrize("method", list(TRAINING_FREE))
def test_training_free_rivals_know_their_best_grid(method):
    """No grid would have brought the solver nearer on the chooser's noises."""
    steps = 3 if method == "heun" else 4
    task = task_of(steps)
    found = TRAINING_FREE[method](task)
    name, grid = found.described.split()
    assert name == method
    assert grid in SOLVER_GRIDS
    if method == "dpm++2m":
        others = [
            sample(task.teacher, SOLVERS[name], GRIDS[other], task.chooser.noise, steps) for other in SOLVER_GRIDS
        ]
        least = min(task.chooser.distance(lambda *_, made=made: made) for made in others)
        assert task.chooser.distance(found.sampler) == pytest.approx(least)


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning", "ignore:rich is experimental")
@pytest.mark.usefixtures("small_fits")
@pytest.mark.parametrize("method", ["gradient, table", "redif-ppo, no state", "cross-entropy"])
def test_a_linear_start_is_given_to_all_who_learn_from_it(method, monkeypatch):
    for name in ("affordable", "in_time"):
        monkeypatch.setattr(ours, name, lambda *_: 2000)
    task = replace(task_of(3, calls=4000), base=Base(grid="time@4", initial_map="linear"))
    student = FIELD[method].rival(task).sampler.student
    expected = build_mdp(
        MDPSettings(teacher="gaussian-ring", num_steps=3, solver=task.base.solver, grid="time@4", initial_map="linear")
    )
    assert student.mdp.initial_map.key == expected.initial_map.key


@pytest.mark.usefixtures("small_fits")
def test_the_base_is_the_one_that_validation_noises_prefer(tmp_path, ring, monkeypatch):
    args = small(tmp_path, nfe=(2,))
    found = compare.base_of(args, "gaussian-ring", 2)
    _, _, judge = compare.given(args, "gaussian-ring", args.choosing_size)
    apart = {base: judge.distance(base.sampler(ring, 2)) for base in bases_of(ring)}
    assert found == min(apart, key=apart.__getitem__)
    assert found.fixed
    with monkeypatch.context() as patch:
        patch.setattr(compare, "bases_of", None)  # chosen once
        assert compare.base_of(args, "gaussian-ring", 2) == found
        assert compare.base_of(replace(args, solver="ddim"), "gaussian-ring", 2) == Base("ddim")
    assert compare.base_of(replace(args, quick=True), "gaussian-ring", 4) == bases_of(ring)[0]
    task = replace(task_of(2), base=found)
    assert FIELD["linear steps"].rival(task).described == f"linear {found.grid}"


def test_linear_steps_are_no_base_of_large_samples():
    bases = bases_of(shared_teacher(TeacherSettings(teacher="mnist")))
    assert bases[0] == Base()
    assert {base.solver for base in bases[1:]} == {"ipndm2", "ipndm3"}
    assert {base.grid for base in bases} == set(SOLVER_GRIDS)


@pytest.mark.usefixtures("small_fits")
def test_a_base_makes_what_a_student_makes_that_decides_nothing(ring):
    task, base = task_of(), linear_base("time^1.5@4")
    mdp = build_mdp(
        MDPSettings(teacher=ring, num_steps=3, solver=base.solver, grid=base.grid, initial_map=base.initial_map)
    )
    *_, last = trajectory(mdp, lambda seen: torch.zeros(len(seen), mdp.action_size), task.chooser.noise)
    made = base.sampler(ring, 3)(task.chooser.noise, task.chooser.condition)
    torch.testing.assert_close(made, last.x)


def test_of_many_candidates_the_nearest_few_are_judged_on_all_noises():
    """Samplers at known distances: every one is screened, four are judged, and the calls of both are counted."""
    task = replace(task_of(), chooser=Evaluator(GaussianMixtureTeacher.ring(), 160, VALIDATION_SEED, 20, 160))
    ends, seen = task.chooser.endpoints, []

    def apart(shift):
        def sampler(noise, condition):
            seen.append((shift, len(noise)))
            # The nearest on the screened noises is the second on all.
            late = 0.1 * (torch.arange(len(noise))[:, None] >= SCREEN_SIZE) if shift == 1 else 0
            return ends[: len(noise)] + 0.01 * shift + late

        return sampler

    clock = Clock(math.inf)
    candidates = {f"{shift}": apart(shift) for shift in (5, 3, 1, 2, 4)}
    assert nearest(task, candidates, clock) == "2"
    assert seen == [(shift, SCREEN_SIZE) for shift in (5, 3, 1, 2, 4)] + [(shift, 160) for shift in (1, 2, 3, 4)]
    assert clock.network_calls == task.nfe * (5 * SCREEN_SIZE + SHORTLIST * 160)


@pytest.mark.parametrize(("choose", "odd"), [(midpoint, 0), (heun, 1)])
def test_solvers_of_two_calls_converge_with_the_second_power(choose, odd):
    """Against the closed form: one Gaussian is carried from noise to data by a linear map."""
    mean, std = torch.tensor([[0.3, -0.2]], dtype=torch.float64), 0.4
    teacher = GaussianMixtureTeacher(mean, std)
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = teacher.schedule.level(GRIDS["time"].half_logsnr(torch.zeros(1, dtype=torch.float64), teacher.schedule))
    exact = mean + std * (noise - first.alpha * mean) / (first.alpha**2 * std**2 + first.sigma**2).sqrt()
    rows = torch.zeros(64, dtype=torch.int64)
    errors = []
    for steps in (20, 40, 80):
        made = two_call_sampler(teacher, GRIDS["time"], 2 * steps - odd, choose)(noise, rows)
        errors.append((made - exact).square().mean().sqrt().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.35)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.35)


def test_amed_begins_as_dpm_solver_2_and_gets_nearer():
    task = task_of(4, calls=75_000)
    module = Intermediate((2,), 2, task.teacher.schedule)
    noise, rows = task.chooser.noise, task.chooser.condition
    untrained, known = (two_call_sampler(task.teacher, GRIDS["karras"], 4, choose) for choose in (module, midpoint))
    torch.testing.assert_close(untrained(noise, rows), known(noise, rows))
    base = TRAINING_FREE["dpm2"](task)
    found = amed(task)
    assert task.chooser.distance(found.sampler) < 0.8 * task.chooser.distance(base.sampler)
    with pytest.raises(ValueError, match="nfe=3 is no multiple"):
        amed(task_of(3))


@pytest.mark.parametrize(
    ("schedule", "num_steps"), [(VariancePreservingSchedule.from_diffusers(), 3), (FlowSchedule(), 6)]
)
def test_the_gradient_through_the_sampler_is_right(schedule, num_steps):
    """Against finite differences, in double precision, at actions away from the border.

    Six steps have the base solver's third order, and flow schedules begin infinitely far from all other levels.
    """
    means = GaussianMixtureTeacher.ring().network.means
    teacher = GaussianMixtureTeacher(means, 0.05, schedule=schedule).to("cpu", torch.float64)
    mdp = build_mdp(
        MDPSettings(teacher=teacher, num_steps=num_steps, solver="dpm++3m", grid="time^1.5", dtype="float64")
    )
    noise, _ = draw_starts(teacher, 16, 0)
    ends = torch.zeros(16, 2, dtype=torch.float64)
    table = Table(num_steps, mdp.action_size).double()
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


def test_a_descent_that_diverges_says_so():
    """Its candidates' samples are not finite: never chosen, and never reported as a row."""
    task = task_of(calls=10 * descent.BATCH * 9)
    lost = torch.nn.Linear(1, 1)

    def nowhere(noise, condition):
        return torch.full_like(noise, torch.nan)

    fall = descent.Descent(lambda batch: lost(torch.ones(1, 1)).sum(), 9, 1.0, 0.9)
    assert task.chooser.distance(nowhere) == math.inf
    with pytest.raises(FloatingPointError, match="lower the rate"):
        descent.descend(task, lost, fall, lambda averaged: nowhere)


@pytest.mark.parametrize("fit", [gradient_table, gradient_policy])
def test_gradient_rivals_learn(fit):
    """A hundred updates on the ring: nearer to the teacher than the best grid of the base solver, within the budget."""
    task = task_of(calls=100 * descent.BATCH * 9)
    base = task.chooser.distance(TRAINING_FREE["dpm++3m"](task).sampler)
    found = fit(task)
    assert task.chooser.distance(found.sampler) < 0.8 * base
    assert found.network_calls == task.calls
    again = loss_of(task)(task.chooser.endpoints, task.chooser.endpoints)
    assert again.item() < 1e-5


def test_the_loss_is_of_what_is_shown():
    """Judges clip, so a sample beyond the data's range costs nothing where its endpoint is at the border; it still has
    a gradient where it is not, and so does not get stuck."""
    task = task_of()
    task.teacher.bounds = (-1.0, 1.0)
    apart = loss_of(task)
    samples = torch.tensor([[3.0, -0.5]], requires_grad=True)
    assert apart(samples, torch.tensor([[1.0, -0.5]])).item() < 1e-5
    apart(samples, torch.tensor([[0.2, -0.5]])).backward()
    # The root mean square of (1 - 0.2, 0), by hand: 0.8 / sqrt(2), and its slope 1 / sqrt(2).
    assert samples.grad[0].tolist() == pytest.approx([0.5**0.5, 0], abs=1e-5)


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


def test_no_rival_is_given_what_is_reported(tmp_path):
    """What the program hands to a rival, by hashes: neither the test noises nor their endpoints are within reach."""
    given_to = []

    def spy(task):
        given_to.append(task)
        return ddim(task)

    args = small(tmp_path, methods=("spy",))
    (cell,) = compare.cells_of(args, {"spy": Entry(spy)})
    row = compare.finish((cell, Entry(spy)), args)
    (task,) = given_to
    judge = compare.test_evaluator(args, "gaussian-ring")

    def digests(*sets):
        return {hashlib.sha256(row.numpy().tobytes()).hexdigest() for rows in sets for row in rows}

    reported = digests(judge.noise, judge.endpoints)
    given = digests(task.reference.noise, task.reference.endpoints, task.chooser.noise, task.chooser.endpoints)
    assert len(reported) == 2 * args.test_size
    assert not reported & given
    assert row["fd_teacher"] == judge.row("", "", 3, ddim(task).sampler(judge.noise, judge.condition)).fd_teacher


def test_the_judge_finds_the_sampling_floor():
    """The teacher's own endpoints are at no distance; on other noises it is as far as two draws of the data are."""
    teacher = GaussianMixtureTeacher.ring()
    judge = Evaluator(teacher, 1000, TEST_SEED, train_size=1000)
    assert judge.teacher_row().fd_teacher < 1e-9
    assert judge.teacher_row().mse_teacher == 0
    generator = torch.Generator().manual_seed(0)
    floors = []
    for _ in range(8):
        one, other = (teacher.network.sample(1000, generator) for _ in range(2))
        floors.append(frechet_distance(one, other))
    assert 0.2 * min(floors) < judge.floor_row().fd_teacher < 3 * max(floors)


def tiny_task(num_steps=2, updates=8):
    """A small random UNet, and a student network of the same kind that begins as it."""
    torch.manual_seed(0)
    kind = PredictionType.FLOW_PREDICTION
    teacher = Teacher(unet(), FlowSchedule(), (3, 8, 8), kind, "tiny", call=call_by_name, bounds=(-1.0, 1.0))
    chooser = Evaluator(teacher, 16, VALIDATION_SEED, 20, 64)
    return Task(teacher, reference_set(teacher, 64, num_steps=20), chooser, num_steps, 0, math.inf, updates * 384)


@pytest.fixture
def warm(monkeypatch):
    """Tasks whose warm start is a copy of the teacher."""

    def warm(task):
        network = copy.deepcopy(task.teacher.network)
        own = own_teacher(task.teacher, network, action_parameterization(task.teacher.parameterization))
        mdp = build_mdp(MDPSettings(teacher=own, num_steps=task.nfe, action="step", solver="dpm++3m", grid="time^1.5"))
        return Student(mdp, Policy.from_table(torch.zeros(task.nfe, 1), mdp.observation_size))

    monkeypatch.setattr(Task, "warm_student", warm)


@pytest.mark.usefixtures("quick_distance")
def test_regression_moves_the_network_and_leaves_the_teacher(warm):
    """On a small UNet: nearer to the endpoints than what it starts from; the teacher's weights stay."""
    task = tiny_task(updates=20)
    before, chooser = task.teacher.fingerprint, task.chooser
    base = StudentSampler(task.warm_student())(chooser.noise, chooser.condition)
    made = regression(task).sampler(chooser.noise, chooser.condition)
    error, least = ((x.clamp(-1, 1) - chooser.endpoints).square().mean() for x in (made, base))
    assert error < 0.9 * least
    assert task.teacher.fingerprint == before
    assert not any(parameter.requires_grad for parameter in task.teacher.network.parameters())


@pytest.mark.usefixtures("quick_distance")
@pytest.mark.parametrize("fit", [progressive, consistency, matching])
def test_network_distillers_keep_to_their_budget_and_leave_the_teacher(warm, fit):
    task = tiny_task()
    before = task.teacher.fingerprint
    found = fit(task)
    assert task.teacher.fingerprint == before
    assert task.calls <= found.network_calls < task.calls + 4 * descent.BATCH * 16
    made = found.sampler(task.chooser.noise, task.chooser.condition)
    assert made.shape == task.chooser.noise.shape
    assert bool(made.isfinite().all())


def test_a_clean_target_is_where_the_step_lands():
    schedule = GaussianMixtureTeacher.ring().schedule
    generator = torch.Generator().manual_seed(0)
    x, x0 = torch.randn(2, 16, 2, generator=generator, dtype=torch.float64)
    here, there = (schedule.level(torch.full((16,), level, dtype=torch.float64)) for level in (-2.0, 1.5))
    clean = schedule.level(torch.full((16,), torch.inf, dtype=torch.float64))
    for end in (there, clean):
        landed = ddim_step(x, x0, here, end)
        torch.testing.assert_close(clean_target(x, landed, here, end), x0)


def test_the_target_of_the_network_itself_costs_nothing():
    task = tiny_task()
    student, schedule = task.teacher, task.teacher.schedule
    batch = Batch(task.reference.noise[:8], task.reference.condition[:8], task.reference.endpoints[:8], torch.arange(8))
    index = torch.tensor([0, 1, 2, 3] * 2)
    # Half way and further: where there is no signal, no noise can be added to an endpoint.
    start, end = (grid_levels(GRIDS["time"], schedule, index + part, 5) for part in (1, 2))
    here = noised(batch, start, schedule, torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = here.moved(here.predict(student), end, schedule)
        assert target_loss(student, here, target).item() < 1e-9
        moved = Noised(target.x + 0.1, end, target.condition)
        assert target_loss(student, here, moved).item() > 1e-4


def test_the_teacher_s_fine_step_is_heun_s():
    """Half the step, an eighth of the error, against the closed form; and on to clean data as DDIM."""
    mean, std = torch.tensor([[0.3, -0.2]], dtype=torch.float64), 0.4
    teacher = GaussianMixtureTeacher(mean, std)
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, ones = torch.zeros(32, dtype=torch.int64), torch.ones(32, dtype=torch.float64)
    start, errors = Noised(x, 0.5 * ones, rows), []
    for size in (0.1, 0.05):
        here, there = (teacher.schedule.level(level * ones[:1]) for level in (0.5, 0.5 + size))
        spread_here, spread_there = ((level.alpha**2 * std**2 + level.sigma**2).sqrt() for level in (here, there))
        exact = there.alpha * mean + spread_there / spread_here * (x - here.alpha * mean)
        errors.append((heun_step(teacher, start, (0.5 + size) * ones).x - exact).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.2)
    last = heun_step(teacher, start, torch.inf * ones).x
    torch.testing.assert_close(last, start.predict(teacher).x0)


def test_the_difference_of_scores_is_that_of_two_gaussians():
    """Closed form: of equal deviation s, clean estimates differ by ``sigma^2 / (alpha^2 s^2 + sigma^2)`` of the means'
    difference; there is none between the teacher and a fresh copy."""
    here, there = torch.tensor([[0.1, 0.2]], dtype=torch.float64), torch.tensor([[0.5, -0.3]], dtype=torch.float64)
    real, false = (GaussianMixtureTeacher(mean, 0.3) for mean in (here, there))
    samples = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    level = torch.full((8,), 0.4, dtype=torch.float64)
    seen = Noised(samples, level, torch.zeros(8, dtype=torch.int64))
    scales = real.schedule.level(level[:1])
    share = scales.sigma**2 / (scales.alpha**2 * 0.09 + scales.sigma**2)
    size = (samples - seen.predict(real).x0).abs().mean(dim=1, keepdim=True)
    torch.testing.assert_close(score_difference(real, false, seen, samples), share * (there - here) / size)
    task = tiny_task()
    fresh = Noised(task.reference.noise[:4], 0.3 * torch.ones(4, dtype=torch.float64), task.reference.condition[:4])
    fake = FakeScore(task.teacher)
    assert score_difference(task.teacher, fake.model, fresh, task.reference.endpoints[:4]).abs().max() < 1e-5
    fake.learn(fresh, task.reference.noise[:4])
    assert score_difference(task.teacher, fake.model, fresh, task.reference.endpoints[:4]).abs().max() > 1e-4


def test_the_pace_is_that_of_whole_episodes(monkeypatch):
    """By a clock that a step of three sub-environments takes to 0.06 s, and the first episode, not counted, to more."""
    now, steps = [0.0], [0]

    def slow(actions):
        assert actions.shape == (3, 7)
        steps[0] += 1
        now[0] += 0.06 if steps[0] > 4 else 5.0

    env = SimpleNamespace(num_envs=3, action_space=SimpleNamespace(shape=(7,)), reset=lambda: None, step=slow)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    assert pace.environment_seconds(env, 4) == pytest.approx(0.02)
    assert steps[0] % 4 == 0
    task = replace(task_of(3), seconds=10.0)
    assert pace.in_time(task, 0.02, 10) == 500
    assert pace.in_time(task, 1.0, 10) == 4 * 10 * 3


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning", "ignore:rich is experimental")
def test_what_ppo_can_afford_leaves_out_what_it_spends_beside_steps(monkeypatch):
    """A step of 1 ms, and nothing else but judging: 64 episodes of 3 steps at the beginning and at the end."""
    monkeypatch.setattr(ours, "environment_seconds", lambda *_: 1e-3)
    monkeypatch.setattr(ours, "ROLLOUT_SECONDS", 0.0)
    monkeypatch.setattr(ours, "MINIBATCH_SECONDS", 0.0)
    monkeypatch.setattr(ours.time, "monotonic", lambda: 0.0)
    task = replace(task_of(3), seconds=2.0)
    settings = settled(ours.ppo.Args(num_steps=3, held_out_size=64, held_out_every=10**9, num_envs=8, group_size=1))
    assert ours.affordable(task, settings) == pytest.approx(2000 - 2 * 64 * 3, abs=1)
    judged_often = ours.affordable(task, replace(settings, held_out_every=4))
    assert judged_often == pytest.approx((2000 - 2 * 64 * 3) / (1 + 64 / (4 * 8)), abs=1)
    # In groups of 4 an episode of 3 steps takes 2.25 calls, and noises that are judged take 3.
    assert ours.affordable(task, replace(settings, group_size=4)) == pytest.approx(2000 - 2 * 64 * 4, abs=1)


def small(out, **settings):
    given = {
        "teacher": ("gaussian-ring",),
        "nfe": (3,),
        "trained_nfe": (3,),
        "seeds": 1,
        "seconds": 0.5,
        "reference_size": 256,
        "test_size": 200,
        "choosing_size": 64,
        "held_out_size": 64,
        "out": out,
        "jobs": 1,
    }
    return compare.Args(**(given | settings))


def test_who_takes_part_where(tmp_path):
    """Trained rivals at the NFE asked for, seeds where chance plays a part."""
    args = small(tmp_path, teacher=("digits",), nfe=(4, 5), trained_nfe=(4,), seeds=2)
    cells = compare.cells_of(args, FIELD)
    found = {(cell.method, cell.nfe): 0 for cell in cells}
    for cell in cells:
        found[cell.method, cell.nfe] += 1
    assert found["ddim", 4] == found["ddim", 5] == found["dpm2", 4] == found["heun", 5] == 1
    assert ("dpm2", 5) not in found
    assert ("heun", 4) not in found
    assert found["redif-ppo", 4] == found["network, matching", 4] == 2
    assert ("redif-ppo", 5) not in found
    assert not takes_part("amed", 5)
    assert len({cell.name for cell in cells}) == len(cells)


@pytest.mark.usefixtures("small_fits")
@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning", "ignore:rich is experimental")
def test_the_program_stores_and_prints(tmp_path, capsys, monkeypatch):
    """Some of every kind, for a second each: rows, table and figure; what is stored is not computed again."""
    methods = ("ddim, uniform time", "ddim", "heun", "gits", "cross-entropy", "gradient, table", "redif-ppo, no state")
    args = small(tmp_path, methods=methods)
    compare.main(args)
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["method"] for row in rows} == {*methods, compare.FLOOR}
    for method in methods:
        assert method in said
    best = {row["method"]: row["fd_teacher"] for row in rows}
    assert best["ddim"] <= best["ddim, uniform time"]
    assert {"kd", "described"} <= set(rows[-1])
    assert (tmp_path / "quality-gaussian-ring.png").stat().st_size > 3000
    monkeypatch.setattr(compare, "FIELD", {name: replace(FIELD[name], rival=None) for name in FIELD})
    compare.main(args)
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    with pytest.raises(ValueError, match=r"made with other settings: seconds=1.0 \(was 0.5\): choose another folder"):
        compare.main(replace(args, seconds=1.0))
    with pytest.raises(ValueError, match="grid='time@8' and initial_map=None belong to a solver that is named"):
        compare.main(replace(args, grid="time@8"))
    with pytest.raises(ValueError, match="methods=\\['magic'\\] are unknown"):
        compare.main(compare.Args(methods=("magic",), out=tmp_path))
    with pytest.raises(
        ValueError, match=r"nfe=5 has none of --methods on teacher='gaussian-ring': add it to --trained"
    ):
        compare.main(small(tmp_path, methods=("gradient, table",), nfe=(3, 5)))
    with pytest.raises(ValueError, match="teacher='gaussian-ring' has no weights: leave network, regression"):
        compare.main(compare.Args(teacher=("gaussian-ring",), methods=("network, regression",), out=tmp_path))
