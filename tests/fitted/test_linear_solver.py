"""The least-squares solver: exact for Gaussian data, better than polynomial solvers, the same in every export."""

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
def few_trajectories(monkeypatch):
    """Fit to few trajectories, which is enough in two dimensions."""
    monkeypatch.setattr(linear_solver, "SIZE", 512)


def make_student(teacher="gaussian-ring", fixed=False, **settings):
    torch.manual_seed(0)
    mdp = ReDiFVectorEnv(1, **TINY | {"teacher": teacher} | settings).mdp
    if fixed:
        return Student(mdp, Policy.from_table(0.1 * torch.randn(3, mdp.action_size), mdp.observation_size))
    return Student(mdp, Policy(PolicyConfig((mdp.observation_size, 8, mdp.action_size))))


@pytest.mark.parametrize(
    ("schedule", "grid"),
    [(None, "time"), (None, "time^1.5@20"), (FlowSchedule(), "time"), (VarianceExplodingSchedule(), "time@20")],
)
def test_two_steps_match_a_hundred_for_a_gaussian(schedule, grid):
    """The trajectory of a single Gaussian is linear in the noise, so matrices reproduce it at every level."""
    teacher = GaussianMixtureTeacher(torch.tensor([[0.3, -0.2]], dtype=torch.float64), 0.15, schedule=schedule)
    solver = fit_solver(teacher, GRIDS[grid], 2)
    held_out = reference_set(teacher, 64, seed=5)
    fitted, control = (sample(teacher, kind, GRIDS[grid], held_out.noise, 2) for kind in (solver, SOLVERS["dpm++2m"]))
    assert (fitted - held_out.endpoints).abs().max() < 5e-3
    assert (control - held_out.endpoints).abs().max() > 5e-2 or grid != "time"


def test_error_on_a_mixture_is_below_that_of_polynomial_solvers():
    """On held-out noises."""
    teacher, grid = GaussianMixtureTeacher.ring(), GRIDS["time@4"]
    initial_map = fit_initial_map(teacher, grid)
    held_out = reference_set(teacher, 512, seed=5)
    initial = initial_map(held_out.noise, held_out.condition)

    def error(solver):
        return float((sample(teacher, solver, grid, initial, 4) - held_out.endpoints).square().mean())

    assert error(fit_solver(teacher, grid, 4, initial_map)) < 0.9 * min(error(solver) for solver in SOLVERS.values())


@pytest.mark.parametrize("clipped", [True, False])
def test_moments_of_training_samples_match_the_endpoints(clipped, monkeypatch):
    """Least squares alone would shrink the variance; with clipping, the moments after clipping match."""
    monkeypatch.setattr(linear_solver, "_clips", lambda teacher: clipped)
    teacher, grid = GaussianMixtureTeacher.ring(), GRIDS["time@4"]
    reference = reference_set(teacher, 512, num_steps=100)
    endpoints, samples = (
        rows.double().clamp(-1, 1) if clipped else rows.double()
        for rows in (reference.endpoints, sample(teacher, fit_solver(teacher, grid, 2), grid, reference.noise, 2))
    )
    torch.testing.assert_close(samples.mean(0), endpoints.mean(0), rtol=0, atol=0.005)
    torch.testing.assert_close(torch.cov(samples.T), torch.cov(endpoints.T), rtol=0.02, atol=0.005)


def test_rows_at_different_steps_use_their_own_matrices():
    """Rows of a batch are at different steps when environments were reset at different times."""
    teacher = GaussianMixtureTeacher.ring()
    mdp = build_mdp(MDPSettings(teacher=teacher, num_steps=3, solver="linear", grid="time@4"))
    noise = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(2, mdp.action_size)
    all_rows = torch.ones(2, dtype=torch.bool)
    first = mdp.predict(mdp.initial(noise), all_rows)
    second = mdp.predict(mdp.advance(first, mdp.decode(first, zero)), all_rows)
    mixed = first.merge(torch.tensor([False, True]), second)
    x0 = mdp.decode(mixed, zero).x0
    assert torch.equal(x0[0], mdp.decode(first, zero).x0[0])
    assert torch.equal(x0[1], mdp.decode(second, zero).x0[1])


def test_solver_is_fitted_once_and_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("REDIF_CACHE", str(tmp_path))
    teacher = CountedGaussian()
    first = fit_solver(teacher, GRIDS["time@8"], 2)
    # Endpoints and trajectories of a hundred calls each, and the two steps.
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


def test_shipped_solver_of_the_readme_is_accurate(monkeypatch):
    """On validation noises, its error is below half of a polynomial solver's."""
    monkeypatch.setattr(linear_solver, "SIZE", 4096)
    teacher, grid = load_teacher("digits"), GRIDS["time^1.25@2.5"]
    initial_map = fit_initial_map(teacher, grid)
    file = cached_file(solver_key(teacher, grid, 4, initial_map))
    assert file is not None
    assert file.parent == ASSETS / "cache"
    held_out = reference_set(teacher, 512, VALIDATION_SEED)
    initial = initial_map(held_out.noise[:256], held_out.condition[:256])

    def error(solver):
        samples = teacher.clip(sample(teacher, solver, grid, initial, 4))
        return float((samples - held_out.endpoints[:256]).square().mean())

    assert error(fit_solver(teacher, grid, 4, initial_map)) < min(0.006, 0.5 * error(SOLVERS["ipndm2"]))


def test_zero_actions_are_the_base_solver():
    mdp = build_mdp(
        MDPSettings(teacher="gaussian-ring", num_steps=4, solver="linear", grid="time@4", initial_map="linear")
    )
    reference = reference_set(mdp.teacher, 64, num_steps=20)
    expected = sample(mdp.teacher, mdp.solver, mdp.grid, mdp.initial_sample(reference.noise, reference.condition), 4)
    zero = lambda observation: torch.zeros(len(observation), mdp.action_size)  # noqa: E731
    *_, last = trajectory(mdp, zero, reference.noise)
    torch.testing.assert_close(last.x, expected)
    base = base_samples(mdp.teacher, reference, mdp.solver, mdp.grid, 4, mdp.initial_map)
    torch.testing.assert_close(base, expected)
    other = replace(mdp.solver, offset=mdp.solver.offset + 0.1)
    assert not torch.allclose(base_samples(mdp.teacher, reference, other, mdp.grid, 4, mdp.initial_map), expected)


def test_evaluation_has_a_row_of_the_solver_alone():
    student = make_student()
    evaluator = Evaluator(student.mdp.teacher, 64, teacher_steps=20, train_size=64)
    (row,) = fitted_rows(evaluator, student)
    mdp = student.mdp
    alone = sample(mdp.teacher, mdp.solver, mdp.grid, mdp.initial_sample(evaluator.noise, evaluator.condition), 3)
    assert (row.method, row.grid, row.nfe) == ("least squares", "time@4", 3)
    assert row.mse_teacher == pytest.approx(
        float((mdp.teacher.clip(alone) - evaluator.endpoints).square().mean()), rel=1e-4
    )
    assert row.mse_teacher < evaluator.student_row("redif", student).mse_teacher
    bare = Student(replace(mdp, solver=SOLVERS["ddim"]), student.policy)
    assert fitted_rows(evaluator, bare) == []


def test_single_and_vector_environments_are_equal():
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
def test_student_saves_and_loads_the_solver(fixed, tmp_path):
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


def test_a_traced_program_has_them_inside():
    student, noise = make_student(num_steps=2), torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(student.trace(8).module()(noise), student(noise=noise))


def test_scheduler_without_the_matrices_is_refused(tmp_path):
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


@pytest.mark.usefixtures("small_fits")
def test_each_label_has_its_own_offset(labelled, monkeypatch, tmp_path):
    """Offsets differ by label, also after saving and loading."""
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
    x0 = [kind.estimate(state, state.half_logsnr, level).matrix_part.flatten(1) for kind in (solver, bare)]
    torch.testing.assert_close(x0[0] - x0[1], solver.offset[0], rtol=0, atol=1e-4)
    student.save_pretrained(tmp_path / "student")
    noise = torch.randn(3, 3, 8, 8)
    output = ReDiFPipeline.from_pretrained(tmp_path / "student")(
        latents=noise, class_labels=[2, 0, 1], output_type="latent"
    )
    assert torch.equal(output.images, student(noise=noise, condition=[2, 0, 1]))


def test_unsupported_solvers_are_refused(monkeypatch):
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
    with pytest.raises(ValueError, match="at most 7 inputs, got 8: choose solver='ipndm' or fewer steps"):
        fit_solver(ring, grid, 3)
