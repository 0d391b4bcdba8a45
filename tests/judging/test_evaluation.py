"""The evaluator and the solvers that students are compared with."""

import numpy as np
import pytest
import torch

from redif_env import GaussianMixtureTeacher
from redif_env.judging.baselines import QUICK, Baseline, all_baselines, baselines_of
from redif_env.judging.evaluation import SHORTLIST, Evaluator
from redif_env.measures.metrics import frechet_distance
from redif_env.measures.rendering import to_pixels
from redif_env.storage.data import load_images
from redif_env.teachers.references import TEST_SEED, draw_starts
from redif_env.teachers.teacher import load_teacher


def test_baselines_spend_the_calls_they_claim():
    """Every rival, diffusers' own included, calls the network exactly as often as it says."""
    teacher, rows = GaussianMixtureTeacher.ring(), []
    teacher.network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    for baseline in all_baselines():
        rows.clear()
        samples = baseline(teacher, torch.randn(7, 2, generator=torch.Generator().manual_seed(0)), 5)
        assert rows == [7] * 5, baseline
        assert samples.isfinite().all(), baseline


@pytest.mark.parametrize("name", ["unipc2", "unipc3", "deis2", "deis3"])
def test_diffusers_rivals_approach_the_teacher(name):
    """With many steps every rival ends where the teacher ends: none is handicapped by how it is called."""
    teacher = GaussianMixtureTeacher.ring()
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    error = (Baseline(name, "time")(teacher, noise, 200) - teacher.endpoint(noise, 500)).square().mean()
    assert error < 1e-3


def test_the_judge_s_noise_is_nobody_else_s():
    """The evaluator's default noises are those of the test seed, and judging leaves global randomness alone."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    evaluator = Evaluator(GaussianMixtureTeacher.ring(), size=50)
    assert torch.equal(evaluator.noise, draw_starts(evaluator.teacher, 50, TEST_SEED)[0])
    row = evaluator.teacher_row()
    assert row.mse_teacher == 0
    assert row.fd_teacher == pytest.approx(0, abs=1e-4)
    assert torch.rand(1) == expected


def test_screening_loses_none_of_the_best_solvers():
    """The best three of those that were judged on all noises are the best three of all pairs."""
    evaluator = Evaluator(GaussianMixtureTeacher.ring(), size=400)
    judged = evaluator.baselines(5)
    assert len(judged) == SHORTLIST
    every = [
        evaluator.row(baseline.method, baseline.grid, 5, baseline(evaluator.teacher, evaluator.noise, 5))
        for baseline in all_baselines()
    ]
    assert judged[:3] == sorted(every, key=lambda row: row.fd_teacher)[:3]


def test_the_quick_baselines_are_some_of_all():
    assert set(QUICK) < set(all_baselines())
    assert len(set(QUICK)) == len(QUICK) == 12
    assert baselines_of("none") == []
    assert baselines_of("quick") == list(QUICK)
    assert baselines_of("all") == all_baselines()
    assert Baseline("ipndm3", "time@20") in QUICK, "the best solver of the README's table"


def test_what_is_compared_can_be_chosen():
    """No solver, or the given ones alone: few of them are not screened."""
    evaluator = Evaluator(GaussianMixtureTeacher.ring(), size=400)
    assert evaluator.baselines(5, []) == []
    found = evaluator.baselines(5, QUICK[:3])
    assert {(row.method, row.grid) for row in found} == {(baseline.method, baseline.grid) for baseline in QUICK[:3]}


def test_samples_are_compared_with_data_too(tmp_path):
    """The teacher's own samples as data are at no distance from them, other images are."""
    teacher = load_teacher("digits")
    given = {"size": 32, "teacher_steps": 4, "train_size": 32}
    own = Evaluator(teacher, **given)
    np.savez(tmp_path / "own.npz", x_train=to_pixels(own.endpoints)[..., 0])
    judge = Evaluator(teacher, **given, data=str(tmp_path / "own.npz"))
    assert judge.teacher_row().fd_data == pytest.approx(0, abs=1e-3)
    noise = own.noise.clamp(-1, 1)
    images = load_images(str(tmp_path / "own.npz")).images
    expected = frechet_distance(judge.embed(noise), judge.embed(images))
    assert judge.row("", "", 0, noise).fd_data == pytest.approx(expected, rel=1e-4)
    assert expected > 1
    np.savez(tmp_path / "large.npz", x_train=np.zeros((2, 9, 9), np.uint8))
    with pytest.raises(ValueError, match=r"large.npz' has images of shape \(1, 9, 9\).*choose the data"):
        Evaluator(teacher, **given, data=str(tmp_path / "large.npz"))
