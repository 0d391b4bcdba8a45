"""Linear steps: exact where the data are Gaussian, nearer than polynomials, the same in every form they leave in."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from redif_env import GaussianMixtureTeacher, ReDiFVectorEnv, Student
from redif_env.cli import facts_table, schedule_lines
from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.schedules import FlowSchedule, VarianceExplodingSchedule
from redif_env.diffusion.solvers import SOLVERS, sample
from redif_env.fitted import initial_maps, linear_solver
from redif_env.fitted.initial_maps import fit_initial_map
from redif_env.fitted.linear_solver import fit_solver, solver_key
from redif_env.judging.evaluation import Evaluator, fitted_rows
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.sampling import trajectory
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.storage.cache import cached_file
from redif_env.storage.files import ASSETS
from redif_env.students.export import ReDiFPipeline, ReDiFScheduler
from redif_env.teachers.references import VALIDATION_SEED, base_samples, reference_set
from redif_env.teachers.teacher import load_teacher
from tests.models import CountedGaussian

LINEAR = {"grid": "time@4", "initial_map": "linear", "solver": "linear"}
TINY = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20, "num_steps": 3} | LINEAR


@pytest.fixture(autouse=True)
def few_ways(monkeypatch):
    """Enough for two dimensions."""
    monkeypatch.setattr(linear_solver, "SIZE", 512)


def make_student(teacher="gaussian-ring", fixed=False):
    torch.manual_seed(0)
    mdp = ReDiFVectorEnv(1, **TINY | {"teacher": teacher}).mdp
    if fixed:
        return Student(mdp, Policy.from_table(0.1 * torch.randn(3, mdp.action_size), mdp.observation_size))
    return Student(mdp, Policy(PolicyConfig((mdp.observation_size, 8, mdp.action_size))))


@pytest.mark.parametrize(
    ("schedule", "grid"),
    [(None, "time"), (None, "time^1.5@20"), (FlowSchedule(), "time"), (VarianceExplodingSchedule(), "time@20")],
)
def test_two_steps_carry_a_gaussian_where_a_hundred_do(schedule, grid):
    """The way of one Gaussian is linear in its noise, so whatever the level, matrices can land on it."""
    teacher = GaussianMixtureTeacher(torch.tensor([[0.3, -0.2]], dtype=torch.float64), 0.15, schedule=schedule)
    solver = fit_solver(teacher, GRIDS[grid], 2)
    other = reference_set(teacher, 64, seed=5)
    made, usual = (sample(teacher, kind, GRIDS[grid], other.noise, 2) for kind in (solver, SOLVERS["dpm++2m"]))
    assert (made - other.endpoints).abs().max() < 5e-3
    assert (usual - other.endpoints).abs().max() > 5e-2 or grid != "time"


def test_a_mixture_s_endpoints_are_met_better_than_by_any_polynomial():
    """On noises that were not fitted to."""
    teacher, grid = GaussianMixtureTeacher.ring(), GRIDS["time@4"]
    start = fit_initial_map(teacher, grid)
    other = reference_set(teacher, 512, seed=5)
    begun = start(other.noise, other.condition)

    def error(solver):
        return float((sample(teacher, solver, grid, begun, 4) - other.endpoints).square().mean())

    assert error(fit_solver(teacher, grid, 4, start)) < 0.9 * min(error(solver) for solver in SOLVERS.values())


@pytest.mark.parametrize("clipped", [True, False])
def test_samples_of_the_noises_that_were_fitted_to_vary_as_the_endpoints(clipped, monkeypatch):
    """What least squares foretell varies less; clipped samples are matched as judges see them."""
    monkeypatch.setattr(linear_solver, "_clips", lambda teacher: clipped)
    teacher, grid = GaussianMixtureTeacher.ring(), GRIDS["time@4"]
    reference = reference_set(teacher, 512, num_steps=100)
    shown = [
        rows.double().clamp(-1, 1) if clipped else rows.double()
        for rows in (reference.endpoints, sample(teacher, fit_solver(teacher, grid, 2), grid, reference.noise, 2))
    ]
    torch.testing.assert_close(shown[1].mean(0), shown[0].mean(0), rtol=0, atol=0.005)
    torch.testing.assert_close(torch.cov(shown[1].T), torch.cov(shown[0].T), rtol=0.02, atol=0.005)


def test_rows_at_different_steps_are_stepped_each_by_its_own():
    """A batch whose rows are at different steps, as environments that were reset apart are."""
    teacher = GaussianMixtureTeacher.ring()
    mdp = build_mdp(MDPSettings(teacher=teacher, num_steps=3, solver="linear", grid="time@4"))
    noise = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(2, mdp.action_size)
    everyone = torch.ones(2, dtype=torch.bool)
    first = mdp.predict(mdp.initial(noise), everyone)
    second = mdp.predict(mdp.advance(first, mdp.decode(first, zero)), everyone)
    mixed = first.merge(torch.tensor([False, True]), second)
    apart = mdp.decode(mixed, zero).x0
    assert torch.equal(apart[0], mdp.decode(first, zero).x0[0])
    assert torch.equal(apart[1], mdp.decode(second, zero).x0[1])


def test_it_is_fitted_once(monkeypatch, tmp_path):
    monkeypatch.setenv("REDIF_CACHE", str(tmp_path))
    teacher = CountedGaussian()
    first = fit_solver(teacher, GRIDS["time@8"], 2)
    # Endpoints and ways of a hundred calls, and the two steps themselves.
    assert teacher.asked == 512 * (100 + 100 + 2)
    again = fit_solver(teacher, GRIDS["time@8"], 2)
    assert teacher.asked == 512 * 202
    assert first.key == again.key
    others = (
        (GRIDS["time@4"], 2, None),
        (GRIDS["time@8"], 3, None),
        (GRIDS["time@8"], 2, fit_initial_map(teacher, GRIDS["time@8"])),
    )
    assert len({first.key, *(fit_solver(teacher, *other).key for other in others)}) == 4


def test_those_of_the_readme_are_shipped_and_land_near(monkeypatch):
    """On validation noises, at less than half of a polynomial's error from there."""
    monkeypatch.setattr(linear_solver, "SIZE", 4096)
    teacher, grid = load_teacher("digits"), GRIDS["time^1.25@2.5"]
    start = fit_initial_map(teacher, grid)
    kept = cached_file(solver_key(teacher, grid, 4, start))
    assert kept is not None
    assert kept.parent == ASSETS / "cache"
    held_out = reference_set(teacher, 512, VALIDATION_SEED)
    begun = start(held_out.noise, held_out.condition)

    def error(solver):
        made = teacher.clip(sample(teacher, solver, grid, begun, 4))
        return float((made - held_out.endpoints).square().mean())

    assert error(fit_solver(teacher, grid, 4, start)) < min(0.006, 0.5 * error(SOLVERS["ipndm2"]))


def test_zero_actions_are_the_base_solver():
    mdp = build_mdp(
        MDPSettings(teacher="gaussian-ring", num_steps=4, solver="linear", grid="time@4", initial_map="linear")
    )
    reference = reference_set(mdp.teacher, 64, num_steps=20)
    expected = sample(mdp.teacher, mdp.solver, mdp.grid, mdp.initial_sample(reference.noise, reference.condition), 4)
    zero = lambda observation: torch.zeros(len(observation), mdp.action_size)  # noqa: E731
    *_, last = trajectory(mdp, zero, reference.noise)
    torch.testing.assert_close(last.x, expected)
    kept = base_samples(mdp.teacher, reference, mdp.solver, mdp.grid, 4, mdp.initial_map)
    torch.testing.assert_close(kept, expected)
    other = replace(mdp.solver, offset=mdp.solver.offset + 0.1)
    assert not torch.allclose(base_samples(mdp.teacher, reference, other, mdp.grid, 4, mdp.initial_map), expected)


def test_the_judge_shows_what_they_reach_alone():
    student = make_student()
    evaluator = Evaluator(student.mdp.teacher, 64, teacher_steps=20, train_size=64)
    (row,) = fitted_rows(evaluator, student)
    mdp = student.mdp
    alone = sample(mdp.teacher, mdp.solver, mdp.grid, mdp.initial_sample(evaluator.noise, evaluator.condition), 3)
    assert (row.method, row.grid, row.nfe) == ("linear steps", "time@4", 3)
    assert row.mse_teacher == pytest.approx(
        float((mdp.teacher.clip(alone) - evaluator.endpoints).square().mean()), rel=1e-4
    )
    assert row.mse_teacher < evaluator.student_row("redif", student).mse_teacher
    bare = Student(replace(mdp, solver=SOLVERS["ddim"]), student.policy)
    assert fitted_rows(evaluator, bare) == []


def test_environments_step_so_and_are_equal():
    single = gym.make("ReDiF-v0", **TINY)
    check_env(single.unwrapped, skip_render_check=True)
    sb3_check_env(single.unwrapped)
    ours = gym.make_vec("ReDiF-v0", num_envs=4, **TINY, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP)
    theirs = SyncVectorEnv([lambda: gym.make("ReDiF-v0", **TINY)] * 4)
    np.testing.assert_array_equal(ours.reset(seed=5)[0], theirs.reset(seed=5)[0])
    theirs.action_space.seed(0)
    for _ in range(5):
        actions = theirs.action_space.sample()
        for mine, other in zip(ours.step(actions)[:4], theirs.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("fixed", [False, True])
def test_the_student_takes_them_along(fixed, tmp_path):
    student = make_student(fixed=fixed)
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    expected = student(noise=noise)
    student.save_pretrained(tmp_path / "student")
    loaded = Student.from_pretrained(tmp_path / "student")
    assert loaded.mdp.solver.key == student.mdp.solver.key
    assert torch.equal(loaded(noise=noise), expected)
    pipeline = ReDiFPipeline.from_pretrained(tmp_path / "student")
    assert torch.equal(pipeline(latents=noise, output_type="latent").images, expected)
    assert "`linear`" in (tmp_path / "student" / "README.md").read_text()
    assert not (tmp_path / "student" / "steps.json").exists()
    assert facts_table(loaded).row_count
    assert "sigma / alpha" in "\n".join(schedule_lines(loaded))
    torch.testing.assert_close(student.trace(8).module()(noise), expected)


def test_a_scheduler_alone_cannot_and_says_so(tmp_path):
    student = make_student()
    student.save_pretrained(tmp_path / "student")
    scheduler = ReDiFScheduler.from_pretrained(tmp_path / "student", subfolder="scheduler")
    with pytest.raises(ValueError, match="steps with matrices"):
        scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="steps with matrices"):
        student.steps()
    pipeline = student.pipeline()
    pipeline.register_modules(linear=None)
    with pytest.raises(ValueError, match="linear is None, but the scheduler has solver='linear'"):
        pipeline(batch_size=1, output_type="latent")


def test_labels_have_offsets_of_their_own(labelled, monkeypatch, tmp_path):
    """Few ways are fitted to here; what the labels do must survive the files."""
    for module in (initial_maps, linear_solver):
        monkeypatch.setattr(module, "SIZE", 48)
        monkeypatch.setattr(module, "RATIO", 0)
    student = make_student(labelled)
    solver = student.mdp.solver
    assert solver.offset.shape == (3, 3, 192)
    condition = torch.tensor([0, 1, 2])
    state = student.mdp.initial(torch.randn(1, 3, 8, 8).expand(3, -1, -1, -1), condition=condition)
    state = student.mdp.predict(state, torch.ones(3, dtype=torch.bool))
    level = student.mdp.teacher.schedule.level(state.half_logsnr)
    bare = replace(solver, offset=torch.zeros_like(solver.offset))
    moved = [kind.estimate(state, state.half_logsnr, level).flatten(1) for kind in (solver, bare)]
    torch.testing.assert_close(moved[0] - moved[1], solver.offset[0], rtol=0, atol=1e-4)
    student.save_pretrained(tmp_path / "student")
    noise = torch.randn(3, 3, 8, 8)
    made = ReDiFPipeline.from_pretrained(tmp_path / "student")(
        latents=noise, class_labels=[2, 0, 1], output_type="latent"
    )
    assert torch.equal(made.images, student(noise=noise, condition=[2, 0, 1]))


def test_what_cannot_be_stepped_so_is_refused(monkeypatch):
    ring, grid = GaussianMixtureTeacher.ring(), GRIDS["time@4"]
    solver = fit_solver(ring, grid, 3)
    common = {"teacher": ring, "grid": "time@4", "solver": solver}
    for changed in ({"num_steps": 4}, {"num_steps": 3, "grid": "time@8"}):
        with pytest.raises(ValueError, match=r"solver has 3 linear steps from .*: fit them to this grid"):
            ReDiFVectorEnv(1, **common | changed)
    with pytest.raises(ValueError, match="min_steps=2 cannot go with solver='linear'"):
        ReDiFVectorEnv(1, **common, num_steps=3, min_steps=2)
    wrong = replace(solver, offset=torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="knows 2 conditions, but teacher 'gaussian-ring' has 1"):
        ReDiFVectorEnv(1, **common | {"solver": wrong}, num_steps=3)
    with pytest.raises(ValueError, match=r"solver='bent' is unknown: choose one of .* 'linear'"):
        ReDiFVectorEnv(1, teacher=ring, solver="bent")
    monkeypatch.setattr("redif_env.fitted.initial_maps.LARGEST", 7)
    with pytest.raises(
        ValueError, match="at most 7 numbers, and here there are 8: choose solver='ipndm' or fewer steps"
    ):
        fit_solver(ring, grid, 3)
