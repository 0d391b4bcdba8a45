"""Linear initial maps: exact for Gaussian data, saved with the student, the same in every export."""

import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from redif_env import GaussianMixtureTeacher, ReDiFVectorEnv, Student
from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.solvers import SOLVERS, sample
from redif_env.envs.spaces import action_space, observation_space
from redif_env.fitted import initial_maps
from redif_env.fitted.initial_maps import LinearInitialMap, fit_initial_map
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.sampling import trajectory
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.sb3 import StudentPolicy, student_kwargs
from redif_env.sb3.export import student_of
from redif_env.students.export import ReDiFPipeline, ReDiFScheduler
from redif_env.teachers.references import base_samples, reference_paths, reference_set
from tests.models import CountedGaussian

LINEAR = {"grid": "time@4", "initial_map": "linear"}
TINY = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20, "num_steps": 3} | LINEAR


def make_student(teacher="gaussian-ring", **options):
    torch.manual_seed(0)
    mdp = ReDiFVectorEnv(1, **TINY | {"teacher": teacher} | options).mdp
    return Student(mdp, Policy(PolicyConfig((mdp.observation_size, 8, mdp.action_size))))


@pytest.fixture(autouse=True)
def few_trajectories(monkeypatch):
    """Fit large samples to few trajectories; the mixtures have two dimensions and keep the default size."""
    monkeypatch.setattr(initial_maps, "RATIO", 0)


def test_map_of_a_gaussian_matches_the_closed_form():
    """The trajectory of a single Gaussian is linear in the noise."""
    mean, std = torch.tensor([[0.3, -0.2]], dtype=torch.float64), 0.4
    teacher = GaussianMixtureTeacher(mean, std)
    schedule = teacher.schedule
    initial_map = fit_initial_map(teacher, GRIDS["time@4"])
    assert initial_map.half_logsnr == pytest.approx(-math.log(4))
    first = schedule.level(GRIDS["time"].half_logsnr(torch.zeros(1, dtype=torch.float64), schedule))
    level = schedule.level(torch.tensor([initial_map.half_logsnr], dtype=torch.float64))

    def marginal_std(at):
        return (at.alpha**2 * std**2 + at.sigma**2).sqrt()

    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    exact = level.alpha * mean + marginal_std(level) / marginal_std(first) * (noise - first.alpha * mean)
    condition = torch.zeros(64, dtype=torch.int64)
    assert (initial_map(noise, condition) - exact).abs().max() < 2e-3
    # Control: the noise itself is far off.
    assert (noise - exact).abs().max() > 0.05


def test_map_of_a_mixture_is_more_accurate_than_the_noise():
    """On held-out noises, against the teacher's trajectories."""
    teacher = GaussianMixtureTeacher.ring()
    initial_map = fit_initial_map(teacher, GRIDS["time@4"])
    reference = reference_set(teacher, 256, seed=1, num_steps=100)
    levels = torch.full((256,), initial_map.half_logsnr, dtype=torch.float64)
    exact = reference_paths(teacher, reference).at(torch.arange(256), levels)
    mapped = initial_map(reference.noise, reference.condition)
    assert (mapped - exact).square().mean() < 0.2 * (reference.noise - exact).square().mean()


def test_map_is_fitted_once_and_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("REDIF_CACHE", str(tmp_path))
    teacher = CountedGaussian()
    first, again = (fit_initial_map(teacher, GRIDS["time@8"]) for _ in range(2))
    assert teacher.asked == initial_maps.SIZE * initial_maps.STEPS
    assert first.key == again.key
    assert first.key != fit_initial_map(teacher, GRIDS["time@4"]).key


def test_zero_actions_are_the_base_solver_after_the_map():
    mdp = build_mdp(
        MDPSettings(teacher="gaussian-ring", num_steps=4, solver="ipndm2", grid="time@4", initial_map="linear")
    )
    reference = reference_set(mdp.teacher, 64, num_steps=20)
    initial = mdp.initial_sample(reference.noise, reference.condition)
    assert not torch.equal(initial, reference.noise)
    expected = sample(mdp.teacher, SOLVERS["ipndm2"], GRIDS["time@4"], initial, 4)
    zero = lambda observation: torch.zeros(len(observation), mdp.action_size)  # noqa: E731
    *_, last = trajectory(mdp, zero, reference.noise)
    torch.testing.assert_close(last.x, expected)
    base = base_samples(mdp.teacher, reference, mdp.solver, mdp.grid, 4, mdp.initial_map)
    torch.testing.assert_close(base, expected)
    assert not torch.allclose(base_samples(mdp.teacher, reference, mdp.solver, mdp.grid, 4), expected)


def test_single_and_vector_environments_apply_the_map():
    single = gym.make("ReDiF-v0", **TINY)
    check_env(single.unwrapped, skip_render_check=True)
    sb3_check_env(single.unwrapped)
    ours = gym.make_vec("ReDiF-v0", num_envs=4, **TINY, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP)
    theirs = SyncVectorEnv([lambda: gym.make("ReDiF-v0", **TINY)] * 4)
    (observation, info), (expected, _) = ours.reset(seed=5), theirs.reset(seed=5)
    np.testing.assert_array_equal(observation, expected)
    core = ours.unwrapped
    initial = core.mdp.initial_sample(core.reference.noise[info["pair"]])
    assert torch.equal(core.state.x, initial)
    theirs.action_space.seed(0)
    for _ in range(5):
        actions = theirs.action_space.sample()
        for mine, other in zip(ours.step(actions)[:4], theirs.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(mine, other)


def test_student_saves_and_loads_the_map(tmp_path):
    student = make_student()
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    expected = student(noise=noise)
    student.save_pretrained(tmp_path / "student")
    loaded = Student.from_pretrained(tmp_path / "student")
    assert loaded.mdp.initial_map.key == student.mdp.initial_map.key
    assert torch.equal(loaded(noise=noise), expected)
    pipeline = ReDiFPipeline.from_pretrained(tmp_path / "student")
    assert torch.equal(pipeline(latents=noise, output_type="latent").images, expected)
    # Control: without the map the samples differ.
    bare = Student(replace(student.mdp, initial_map=None), student.policy)
    assert not torch.allclose(bare(noise=noise), expected, atol=1e-3)
    assert "linear map" in (tmp_path / "student" / "README.md").read_text()
    assert not (tmp_path / "student" / "start" / "diffusion_pytorch_model.bin").exists()
    bare.save_pretrained(tmp_path / "student")
    assert not (tmp_path / "student" / "start").exists()


def test_traced_program_contains_the_map():
    student = make_student(num_steps=1)
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(student.trace(4).module()(noise), student(noise=noise))


@pytest.mark.usefixtures("small_fits")
def test_each_label_has_its_own_offset(labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(initial_maps, "SIZE", 48)
    student = make_student(labelled)
    assert student.mdp.initial_map.offset.shape == (3, 192)
    noise = torch.randn(1, 3, 8, 8).expand(3, -1, -1, -1)
    initial = student.mdp.initial_sample(noise, torch.arange(3))
    difference = (initial - initial[:1]).flatten(1)
    torch.testing.assert_close(
        difference, student.mdp.initial_map.offset - student.mdp.initial_map.offset[:1], rtol=0, atol=1e-5
    )
    student.save_pretrained(tmp_path / "student")
    pipeline = ReDiFPipeline.from_pretrained(tmp_path / "student")
    images = pipeline(latents=noise, class_labels=[2, 0, 1], output_type="latent").images
    assert torch.equal(images, student(noise=noise, condition=[2, 0, 1]))


def test_student_with_its_own_network_saves_the_map(labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(initial_maps, "SIZE", 48)
    mdp = build_mdp(
        MDPSettings(
            teacher=labelled,
            num_steps=3,
            action="noise",
            observation="sample",
            solver="ipndm2",
            grid="time@4",
            initial_map="linear",
        )
    )
    policy = StudentPolicy(observation_space(mdp), action_space(mdp), lambda _: 0.0, **student_kwargs(mdp))
    student = student_of(policy, mdp)
    assert student.mdp.initial_map is mdp.initial_map
    noise, labels = torch.randn(2, 3, 8, 8), [1, 2]
    student.save_pretrained(tmp_path / "student")
    loaded = Student.from_pretrained(tmp_path / "student")
    assert loaded.mdp.initial_map.key == mdp.initial_map.key
    assert torch.equal(loaded(noise=noise, condition=labels), student(noise=noise, condition=labels))


def test_scheduler_without_the_map_is_refused(tmp_path):
    student = make_student()
    student.save_pretrained(tmp_path / "student")
    scheduler = ReDiFScheduler.from_pretrained(tmp_path / "student", subfolder="scheduler")
    with pytest.raises(ValueError, match="maps its noise first"):
        scheduler.set_timesteps(3)
    pipeline = student.pipeline()
    pipeline.register_modules(initial_map=None)
    with pytest.raises(ValueError, match="linear_initial_map=True"):
        pipeline(batch_size=1, output_type="latent")


def test_unsupported_maps_are_refused(monkeypatch):
    ring = GaussianMixtureTeacher.ring()
    with pytest.raises(ValueError, match="starts below pure noise: choose grid='time@4'"):
        ReDiFVectorEnv(1, teacher=ring, initial_map="linear", grid="time")
    with pytest.raises(ValueError, match="initial_map='bent' is unknown"):
        ReDiFVectorEnv(1, teacher=ring, initial_map="bent")
    fitted = fit_initial_map(ring, GRIDS["time@4"])
    with pytest.raises(ValueError, match="fit one to this grid"):
        ReDiFVectorEnv(1, teacher=ring, initial_map=fitted, grid="time@8")
    with pytest.raises(ValueError, match="knows 2 conditions, but teacher 'gaussian-ring' has 1"):
        ReDiFVectorEnv(
            1,
            teacher=ring,
            initial_map=LinearInitialMap(fitted.half_logsnr, fitted.matrix, torch.zeros(2, 2)),
            grid="time@4",
        )
    monkeypatch.setattr(initial_maps, "LARGEST", 1)
    with pytest.raises(ValueError, match="at most 1 inputs, got 2: choose initial_map=None"):
        fit_initial_map(ring, GRIDS["time@4"])
