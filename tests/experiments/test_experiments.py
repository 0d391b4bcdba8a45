"""The experiments besides the comparison, run on the smallest settings."""

import json
from dataclasses import replace
from importlib import import_module

import pytest
import torch
import tyro
from PIL import Image

from experiments import ablate, accelerator, adaptive_curve, network_students, nfe_curve, png_size, ship_references
from experiments.parallel import in_parallel
from experiments.tables import spread
from redif_env import Student
from redif_env.judging.baselines import Baseline
from redif_env.mdp.actions import SolverMap, StepMap
from redif_env.measures.rendering import GAP, to_pixels
from redif_env.sb3.training import recipes
from redif_env.sb3.training.networks import NoiseSettings
from redif_env.storage.cache import cached_file
from redif_env.teachers.references import (
    SHIPPED_SIZES,
    TEST_SEED,
    TRAIN_SEED,
    VALIDATION_SEED,
    SetSizes,
    draw_starts,
    reference_key,
    reference_set,
)
from redif_env.teachers.teacher import load_teacher

# Stable-Baselines3's progress bar is tqdm's, drawn by rich.
pytestmark = pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning", "ignore:rich is experimental")
RING = {"teacher": "gaussian-ring", "seeds": 1, "jobs": 1, "network_calls": 512}


@pytest.fixture(autouse=True)
def small_sets(monkeypatch):
    """Few noises of the ring and the digits to train on, to choose by and to report."""
    monkeypatch.setitem(SHIPPED_SIZES, "gaussian-ring", SetSizes(256, 64, 128, 20, 64))
    monkeypatch.setitem(SHIPPED_SIZES, "digits", SetSizes(64, 64, 64, 8, 32))


def test_the_ablation_of_rewards(tmp_path, capsys):
    """Every reward gets its row of every metric; a second run repeats no training."""
    args = ablate.Args("rewards", **RING, num_steps=2, changes=("endpoint", "feature + energy"), out=tmp_path)
    ablate.main(args)
    rows = json.loads((tmp_path / "rewards.json").read_text())
    assert [row["method"] for row in rows] == ["endpoint", "feature + energy"]
    assert {"fd_teacher", "kd", "fd_pixels", "mse_teacher", "precision", "recall", "coverage", "seed"} <= set(rows[0])
    assert rows[0]["nfe"] == 2
    assert "feature + energy" in capsys.readouterr().out
    stored = tmp_path / "rewards-endpoint-0" / "rows.json"
    before = stored.stat().st_mtime_ns
    ablate.main(args)
    assert stored.stat().st_mtime_ns == before


@pytest.mark.parametrize("what", ["parts", "rewards"])
def test_the_ablation_changes_one_thing_at_a_time(what, tmp_path):
    args = ablate.Args(what, seeds=1, out=tmp_path)
    recipe, *others = ablate.tasks_of(args)
    for task in others:
        same = replace(task.settings, out=recipe.settings.out)
        differ = [name for name in vars(same) if getattr(same, name) != getattr(recipe.settings, name)]
        assert len(differ) + (task.action is not None) == 1, task.method
    with pytest.raises(ValueError, match=r"changes=\['nothing'\] are unknown"):
        ablate.tasks_of(replace(args, changes=("nothing",)))


@pytest.mark.parametrize(("change", "expected"), [
    ("step size alone", StepMap()), ("no conditioning timestep", SolverMap(max_timestep_shift=0.0)),
])  # fmt: skip
def test_the_student_has_the_action_that_is_named(change, expected, tmp_path, monkeypatch):
    made = []
    student = ablate.ppo.train
    monkeypatch.setattr("agents.ppo.train", lambda *given: made.append(student(*given)) or made[-1])
    (task,) = ablate.tasks_of(ablate.Args("parts", **RING, num_steps=2, changes=(change,), out=tmp_path))
    ablate.finish_all([task], 1)
    assert made[0][0].mdp.action_map == expected


def test_the_curve_of_quality(tmp_path, capsys, monkeypatch):
    """A row for the student, beside the best solver at as many calls, at two more and at twice as many."""
    few = [Baseline("dpm++2m", "time"), Baseline("ddim", "time")]
    monkeypatch.setattr("redif_env.judging.baselines.all_baselines", lambda: few)
    args = nfe_curve.Args(**RING, nfe=(2,), solvers_only=(4,), out=tmp_path)
    nfe_curve.main(args)
    printed = capsys.readouterr().out
    assert printed.count("dpm++2m time:") == 3
    frozen = Student.from_pretrained(tmp_path / "redif-ppo-2-0" / "student").frozen()
    expected = nfe_curve.evaluator_of(args).student_row("", frozen).fd_teacher
    assert json.loads((tmp_path / "redif-ppo-2-0" / "mean_steps.json").read_text()) == pytest.approx(expected)
    assert f"{expected:.3f}" in printed
    with Image.open(tmp_path / "samples-2.png") as picture:
        assert picture.height == 3 * (32 + GAP) + GAP  # a line each for solver, student and teacher


def test_the_adaptive_curve(tmp_path):
    """One student, one row a price, beside students of fixed calls."""
    adaptive_curve.main(adaptive_curve.Args(**RING, min_steps=2, max_steps=4, nfe=(2, 4), out=tmp_path))
    result = json.loads((tmp_path / "adaptive.json").read_text())
    assert len({row["price"] for row in result["adaptive"]}) == 5
    assert all(2 <= row["nfe"] <= 4 for row in result["adaptive"])
    assert [row["nfe"] for row in result["fixed"]] == [2, 4]
    student = Student.from_pretrained(tmp_path / "adaptive-0" / "student")
    assert (student.mdp.min_steps, student.mdp.prices) == (2, (0.03, 0.6))


def test_fixed_students_are_compared_at_equal_calls():
    """Half way between 4 and 6 calls: the geometric mean."""
    fixed = {4.0: {"fd_teacher": 0.4}, 6.0: {"fd_teacher": 0.1}}
    assert adaptive_curve.at_equal_calls(fixed, 5.0, "fd_teacher") == pytest.approx(0.2)


def test_png_size(tmp_path, capsys):
    """The bytes that the program counts are those of the file that a user would save."""
    samples = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for size, pixels in zip(png_size.png_bytes(samples).tolist(), to_pixels(samples), strict=True):
        Image.fromarray(pixels).convert("L").save(tmp_path / "one.png", optimize=True)
        assert size == (tmp_path / "one.png").stat().st_size
    assert png_size.png_bytes(torch.zeros(1, 1, 8, 8)) < png_size.png_bytes(samples).min()
    png_size.main(png_size.Args(seeds=1, network_calls=512, held_out_size=64, out=tmp_path / "run"))
    assert "endpoint reward and 0.2 a byte" in capsys.readouterr().out
    assert (tmp_path / "run" / "samples.png").exists()


@pytest.mark.usefixtures("quick_distance")
def test_network_students(pipeline_folder, tmp_path, capsys, monkeypatch):
    """The same clone by PPO and by the gradient; a second run computes nothing."""
    networks = {"narrow": NoiseSettings(width=0.5, clone_updates=2, clone_batch_size=16)}
    monkeypatch.setattr(network_students, "NETWORKS", networks)
    monkeypatch.setattr(recipes, "NOISE", replace(recipes.NOISE, num_envs=32))
    args = network_students.Args(
        teacher=str(pipeline_folder), num_steps=2, networks=("narrow",), seeds=1, network_calls=64,
        reference_size=16, teacher_steps=8, test_size=16, held_out_size=16, out=tmp_path, jobs=1,
    )  # fmt: skip
    network_students.main(args)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["method"] for row in rows] == ["warm start", "PPO", "gradient, equal seconds"]
    assert rows[2]["seconds"] >= rows[1]["seconds"]
    assert "gradient, equal seconds" in capsys.readouterr().out
    monkeypatch.setattr("agents.ppo.train", None)
    network_students.main(args)
    assert json.loads((tmp_path / "rows.json").read_text()) == rows


def test_a_spread_is_the_median_and_the_range():
    assert spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"
    assert spread([0.5]) == "0.500"


def test_work_in_processes_keeps_its_order(monkeypatch):
    assert in_parallel(abs, [-3], 2) == [3]
    monkeypatch.setattr("torch.set_num_threads", abs)  # with which each process would import PyTorch, for seconds
    assert in_parallel(abs, [-3, 2, -1], 2) == in_parallel(abs, [-3, 2, -1], 1) == [3, 2, 1]


def test_shipped_pictures_are_the_endpoints_in_8_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(ship_references, "ASSETS", tmp_path)
    monkeypatch.setenv("REDIF_CACHE", "restored after the test")
    monkeypatch.setitem(SHIPPED_SIZES, "cifar10", SetSizes(1, 1, 1, 2))
    ship_references.main(ship_references.Args("cifar10"))
    teacher = load_teacher("cifar10")
    shipped = reference_set(teacher, 1, TEST_SEED, 2)
    assert cached_file(shipped.key).parent == tmp_path / "cache"
    assert cached_file(shipped.key).stat().st_size < 4096
    for seed in (TRAIN_SEED, VALIDATION_SEED, TEST_SEED):  # of equal sizes
        assert cached_file(reference_key(teacher, *draw_starts(teacher, 1, seed), 2)) is not None
    expected = teacher.endpoint(shipped.noise, 2, shipped.condition).clamp(-1, 1)
    assert 0 < (shipped.endpoints - expected).abs().max() <= 1 / 255 + 1e-6


def test_the_parts_for_an_accelerator(tmp_path, capsys, monkeypatch):
    """Each is a process of its own: one that fails or takes too long stops no other, and all is stored."""
    parts = [
        accelerator.Part("good", "timeit", ("-n", "1", "-r", "1", "pass")),
        accelerator.Part("bad", "no_such_program", ()),
        accelerator.Part("slow", "timeit", ("-n", "1", "import time; time.sleep(600)")),
        accelerator.Part("late", "timeit", ()),
    ]
    monkeypatch.setattr(accelerator, "parts_of", lambda args: parts)
    accelerator.main(accelerator.Args(device="cpu", minutes=0.1, out=tmp_path))
    printed = capsys.readouterr().out
    for outcome in ("good: done", "bad: failed", "slow: stopped: the time", "late: not run"):
        assert outcome in printed
    assert "No module named no_such_program" in (tmp_path / "bad.log").read_text()


@pytest.mark.parametrize("small", [True, False])
def test_the_parts_for_an_accelerator_can_be_read_by_their_programs(small, tmp_path):
    for part in accelerator.parts_of(accelerator.Args(device="cpu", small=small, data="digits", out=tmp_path)):
        if part.module != "pytest":
            args = tyro.cli(import_module(part.module).Args, args=part.arguments)
            assert (args.device, args.dtype) == ("cpu", "bfloat16")


@pytest.mark.slow
def test_the_rehearsal_for_an_accelerator(tmp_path, capsys):
    accelerator.main(accelerator.Args(device="cpu", dtype="float32", small=True, minutes=20, out=tmp_path))
    assert capsys.readouterr().out.count(": done") == 5
