"""The programs a user starts, run as a user would, on the smallest settings."""

import errno
import json
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import cem, ppo
from experiments import ablate_rewards, adaptive_curve, late_start, png_size, tasks
from redif_env import GaussianMixtureTeacher, Student
from redif_env.judging.baselines import QUICK, Baseline, all_baselines
from redif_env.judging.evaluation import JUDGED, Evaluator
from redif_env.measures.rendering import to_pixels
from redif_env.sb3.training.recipes import settled
from redif_env.storage.checkpoints import checkpoints, remove_checkpoint
from redif_env.teachers.references import TEST_SEED, draw_starts
from redif_env.training import command
from redif_env.training.runs import check, read_settings

TRAIN = [
    "--teacher", "gaussian-ring", "--num-steps", "3", "--network-calls", "384", "--num-envs", "16", "--group-size", "4",
    "--held-out-size", "32", "--held-out-every", "2",
]  # fmt: skip


QUIET = pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning", "ignore:rich is experimental")
"""Stable-Baselines3's progress bar is tqdm's, drawn by rich."""


def run(module, *arguments):
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["agents.ppo", "agents.cem"])
def test_train_export_judge(module, tmp_path):
    """One command leaves a student that loads, a table of every solver, a picture and a TensorBoard log."""
    budget = (
        TRAIN
        if module == "agents.ppo"
        else ["--teacher", "gaussian-ring", "--num-steps", "3", "--network-calls", "768"]
    )
    process = run(module, *budget, "--seed", "1", "--out", str(tmp_path / "run"))
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["settings"]["seed"] == 1
    assert result["versions"]["torch"] == torch.__version__
    assert result["environment_steps"] >= 128 * 3
    assert set(result["rows"][0]) == {"method", "grid", "nfe", "fd_teacher", "fd_data", "mse_teacher"}
    rows = {(row["method"], row["grid"]): row for row in result["rows"]}
    assert len(rows) == len(QUICK) + 3
    assert process.stdout.index("student saved in") < process.stdout.index("FD to teacher")
    assert rows["teacher", "time"]["mse_teacher"] == 0
    assert all(row["nfe"] == 3 for row in result["rows"] if not row["method"].startswith("teacher"))

    student = Student.from_pretrained(tmp_path / "run" / "student")
    evaluator = Evaluator(GaussianMixtureTeacher.ring())
    ours = evaluator.row("", "", 3, student(noise=evaluator.noise))
    (name,) = [method for method, _ in rows if method.startswith("redif") or method == "cem"]
    assert ours.mse_teacher == pytest.approx(rows[name, "learned"]["mse_teacher"])
    with Image.open(tmp_path / "run" / "samples.png") as picture:
        assert picture.size[0] > 100
    assert "FD to teacher" in process.stdout
    if module == "agents.ppo":
        assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-steps", "0"], "num_steps must be at least 1, got 0"),
        (["--solver", "euler"], "solver='euler' is unknown"),
        (["--out", "{file}/run"], "out='{file}/run' cannot be written"),
    ],
)
def test_bad_arguments_are_said_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    """A sentence, not a traceback, before any work is done."""
    (tmp_path / "file").write_text("")
    place = {"file": str(tmp_path / "file")}
    given = [argument.format(**place) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["ppo", *TRAIN, "--out", str(tmp_path / "run"), *given])
    with pytest.raises(SystemExit) as left:
        command.run(ppo.main, ppo.Args, settled)
    assert left.value.code != 0
    assert message.format(**place) in capsys.readouterr().err


SLOWER = ["--network-calls", "2400", "--checkpoint-every", "96"]
"""Long enough to be stopped on the way."""


def outcome(out):
    """What a run ends with: every byte of the student, and the table."""
    files = {path.relative_to(out): path.read_bytes() for path in (out / "student").rglob("*") if path.is_file()}
    return files, json.loads((out / "result.json").read_text())["rows"]


def test_a_stopped_run_goes_on_to_the_same_end(tmp_path):
    """SIGTERM leaves a checkpoint and says how to go on; going on needs no settings, and ends as an unbroken run."""
    unbroken = run("agents.ppo", *TRAIN, *SLOWER, "--out", str(tmp_path / "unbroken"))
    assert unbroken.returncode == 0, unbroken.stderr
    out = tmp_path / "stopped"
    command = [sys.executable, "-m", "agents.ppo", *TRAIN, *SLOWER, "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not checkpoints(out / "checkpoints") and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert "SIGTERM: stopping with a checkpoint after this rollout" in stdout
    assert f"go on with --resume --out {out}" in stderr
    assert not (out / "result.json").exists()

    for arguments, message in (
        ([], "holds a run already: add --resume"),
        (["--resume", "--learning-rate", "0.1"], "other settings: learning_rate=0.1 (was 0.001)"),
    ):
        refused = run("agents.ppo", *arguments, "--out", str(out))
        assert refused.returncode == 2
        assert message in refused.stderr

    resumed = run("agents.ppo", "--resume", "--out", str(out))
    assert resumed.returncode == 0, resumed.stderr
    assert outcome(out) == outcome(tmp_path / "unbroken")
    again = run("agents.ppo", "--resume", "--out", str(out))
    assert again.returncode == 0
    assert "is finished" in again.stdout

    log = EventAccumulator(str(out / "tensorboard")).Reload()
    steps = [event.step for event in log.Scalars("held_out/fd_teacher")]
    assert steps == sorted(set(steps)), "nothing is logged twice"
    assert {"schedule/timestep_1", "rewards/feature", "held_out/best_fd_teacher"} <= set(log.Tags()["scalars"])


def test_what_a_run_writes_down(tmp_path):
    """One config with every setting, versions and the git state; a resumed run is held against it."""
    out = tmp_path / "run"
    assert run("agents.ppo", *TRAIN, "--out", str(out)).returncode == 0
    config = json.loads((out / "config.json").read_text())
    assert set(config) == {"program", "settings", "versions", "git"}
    assert config["program"] == "ppo"
    assert set(config["settings"]) == {item.name for item in fields(ppo.Args)} - {"resume", "dry_run"}
    assert config["settings"]["num_envs"] == 16
    assert config["git"] is None or len(config["git"]["commit"]) == 40
    assert read_settings(out, ppo.Args()).reward == settled(ppo.Args()).reward
    student = Student.from_pretrained(out / "student")
    assert student.record.training["network_calls"] == 384
    assert student.record.license == "mit"
    assert [row["method"] for row in student.record.quality].count("redif-ppo") == 1

    config["versions"]["torch"] = "1.0"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="versions have changed since the run was started"):
        check(replace(read_settings(out, ppo.Args()), out=out, resume=True), "ppo")
    with pytest.raises(ValueError, match=r"holds a run of ppo with other settings"):
        check(replace(read_settings(out, ppo.Args()), out=out, resume=True), "cem")
    config["settings"]["colour"] = "blue"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has unknown settings \['colour'\]"):
        read_settings(out, ppo.Args())
    for text in ("{", "[1]"):
        (out / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json"):
            read_settings(out, ppo.Args())


def test_a_refused_run_takes_no_folder(tmp_path):
    """Settings that are refused leave no config behind that would stand in the way of the right ones."""
    assert run("agents.ppo", *TRAIN, "--solver", "euler", "--out", str(tmp_path / "run")).returncode == 2
    assert list((tmp_path / "run").iterdir()) == []


def test_a_search_goes_on_to_the_same_end(tmp_path):
    """The cross-entropy search too: from a checkpoint of half its generations, the same student."""
    settings = cem.Args(teacher="gaussian-ring", num_steps=3, network_calls=6 * 3072, checkpoint_every=3)
    whole, _ = cem.train(replace(settings, out=tmp_path / "whole"))
    cem.train(replace(settings, out=tmp_path / "half"))
    remove_checkpoint(checkpoints(tmp_path / "half" / "checkpoints")[-1])
    resumed, facts = cem.train(replace(settings, out=tmp_path / "half", resume=True))
    assert torch.equal(resumed.mean_actions, whole.mean_actions)
    assert facts["environment_steps"] == 6 * 3072


def test_a_dry_run_says_what_a_run_costs(tmp_path):
    """Calls, seconds and memory of every part; nothing is trained, nothing written."""
    process = run("agents.ppo", *TRAIN, "--dry-run", "--out", str(tmp_path / "run"))
    assert process.returncode == 0, process.stderr
    for said in (
        "network calls a second",
        "training",
        "384",
        "evaluations of the student",
        "12 solvers",
        "Memory: network",
    ):
        assert said in process.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    """The student cannot be written: one sentence with a remedy, and a finished checkpoint to go on from."""
    monkeypatch.setattr(sys, "argv", ["ppo", *TRAIN, "--out", str(tmp_path / "run")])

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("redif_env.students.export.pipeline.write_sealed", full)
    with pytest.raises(SystemExit) as stopped:
        command.run(ppo.main, ppo.Args, settled)
    assert stopped.value.code == 1
    assert "error: the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "run" / "student").exists()
    monkeypatch.undo()
    resumed = run("agents.ppo", "--resume", "--out", str(tmp_path / "run"))
    assert resumed.returncode == 0, resumed.stderr
    assert Student.from_pretrained(tmp_path / "run" / "student").num_steps == 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_runs_go_on_to_the_same_end(tmp_path):
    process = run("experiments.kill_and_resume", "--kills", "20", "--out", str(tmp_path))
    assert process.returncode == 0, process.stdout + process.stderr
    assert "20 of 20 killed runs ended as the unbroken one" in process.stdout


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
    wanted = torch.rand(1)
    torch.manual_seed(0)
    evaluator = Evaluator(GaussianMixtureTeacher.ring(), size=50)
    assert torch.equal(evaluator.noise, draw_starts(evaluator.teacher, 50, TEST_SEED)[0])
    row = evaluator.teacher_row()
    assert row.mse_teacher == 0
    assert row.fd_teacher == pytest.approx(0, abs=1e-4)
    assert torch.rand(1) == wanted


def test_screening_loses_none_of_the_best_solvers():
    """The best three of those that were judged on all noises are the best three of all pairs."""
    evaluator = Evaluator(GaussianMixtureTeacher.ring(), size=400)
    judged = evaluator.baselines(5)
    assert len(judged) == JUDGED
    every = [
        evaluator.row(baseline.method, baseline.grid, 5, baseline(evaluator.teacher, evaluator.noise, 5))
        for baseline in all_baselines()
    ]
    assert judged[:3] == sorted(every, key=lambda row: row.fd_teacher)[:3]


RING = {"teacher": "gaussian-ring", "seeds": 1, "jobs": 1, "network_calls": 512}


@pytest.fixture
def one_core(monkeypatch):
    """Other tests run beside."""
    monkeypatch.setattr(tasks.os, "cpu_count", lambda: 1)


@QUIET
def test_reward_ablation(tmp_path, capsys, one_core):
    """Every reward gets its row of every metric; a second run repeats no training."""
    args = ablate_rewards.Args(**RING, num_steps=2, rewards=("endpoint", "feature + energy"), out=tmp_path)
    ablate_rewards.main(args)
    result = json.loads((tmp_path / "rewards.json").read_text())
    assert set(result["results"]) == {"endpoint", "feature + energy"}
    (row,) = result["results"]["endpoint"]
    assert {"fd_teacher", "kd", "fd_pixels", "mse_teacher", "precision", "recall", "coverage", "seed"} <= set(row)
    assert row["nfe"] == 2
    with Image.open(tmp_path / "rewards.png") as picture:
        assert picture.size[0] > 500
    assert "feature + energy" in capsys.readouterr().out
    kept = tmp_path / "endpoint-2-0" / "rows.json"
    before = kept.stat().st_mtime_ns
    ablate_rewards.main(args)
    assert kept.stat().st_mtime_ns == before


@QUIET
def test_adaptive_curve(tmp_path, one_core):
    """One student, one row a price, beside students of fixed calls."""
    places = {"out": tmp_path / "adaptive", "fixed_out": tmp_path / "fixed"}
    adaptive_curve.main(adaptive_curve.Args(**RING, **places, min_steps=2, num_steps=4, fixed=(2, 4)))
    result = json.loads((tmp_path / "adaptive" / "adaptive.json").read_text())
    assert len({row["price"] for row in result["adaptive"]}) == 5
    assert all(2 <= row["nfe"] <= 4 for row in result["adaptive"])
    assert [row["nfe"] for row in result["fixed"]] == [2, 4]
    student = Student.from_pretrained(tmp_path / "adaptive" / "adaptive-0" / "student")
    assert (student.mdp.min_steps, student.mdp.prices) == (2, (0.03, 0.6))
    assert (tmp_path / "adaptive" / "adaptive.png").exists()


@QUIET
def test_png_size(tmp_path):
    """The bytes that the program counts are those of the file that a user would save."""
    samples = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for size, pixels in zip(png_size.png_bytes(samples).tolist(), to_pixels(samples), strict=True):
        Image.fromarray(pixels).convert("L").save(tmp_path / "one.png", optimize=True)
        assert size == (tmp_path / "one.png").stat().st_size
    assert png_size.png_bytes(torch.zeros(1, 1, 8, 8)) < png_size.png_bytes(samples).min()
    png_size.main(png_size.Args(seeds=1, network_calls=512, held_out_size=64, out=tmp_path / "run"))
    curves = json.loads((tmp_path / "run" / "png-size.json").read_text())["curves"]
    assert len(curves) == 2
    assert all(point["bytes"] > 50 for seeds in curves.values() for points in seeds for point in points)
    assert (tmp_path / "run" / "samples.png").exists()


def test_an_adaptive_student_is_trained_exported_and_judged(tmp_path):
    """With prices, a row for each of five; the solvers beside it have as many calls as its dearest samples."""
    extra = ["--min-steps", "2", "--prices", "0.01", "0.5", "--reward", "endpoint", "1", "price", "1"]
    process = run("agents.ppo", *TRAIN, *extra, "--out", str(tmp_path))
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    ours = [row for row in result["rows"] if row["method"] == "redif-ppo"]
    assert len(ours) == 5
    assert all(2 <= row["nfe"] <= 3 for row in ours)
    assert result["settings"]["reward"] == [["endpoint", 1.0], ["price", 1.0]]
    log = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"rewards/endpoint", "rewards/price", "held_out/nfe"} <= set(log.Tags()["scalars"])
    assert all(2 <= event.value <= 3 for event in log.Scalars("held_out/nfe"))


def test_a_late_start_is_judged_at_every_length(capsys):
    """The exact teacher's four calls gain from it, forty lose nothing worth mentioning; a linear start gains more."""
    settings = late_start.Args(teacher="gaussian-ring", solvers=("dpm++3m",), sigma_max=(8.0,), nfe=(4, 40))
    late_start.main(replace(settings, initial_maps=("noise", "linear")))
    rows = (line.split("│")[4:6] for line in capsys.readouterr().out.splitlines() if "dpm++3m" in line)
    own, late, linear = ([float(cell.split("/")[1]) for cell in cells] for cells in rows)
    (few, many), (few_late, many_late), (few_linear, _) = own, late, linear
    assert few_late < few / 2
    assert few_linear <= few_late
    assert max(many, many_late) < 3e-4
