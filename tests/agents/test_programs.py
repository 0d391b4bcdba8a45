"""The programs a user starts, run as a user would, on the smallest settings."""

import errno
import io
import json
import os
import runpy
import signal
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import cem, gauss_newton, ppo
from redif_env import GaussianMixtureTeacher, Student
from redif_env.judging.baselines import QUICK
from redif_env.judging.bases import Base, bases_of
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.settings import MDPSettings, TeacherSettings, build_mdp, shared_teacher
from redif_env.sb3.checkpoints import Checkpointer
from redif_env.sb3.training import ppo as ppo_program
from redif_env.sb3.training.recipes import settled
from redif_env.storage.checkpoints import checkpoints, remove_checkpoint
from redif_env.teachers.references import VALIDATION_SEED, reference_set
from redif_env.training import command
from redif_env.training.command import with_sizes
from redif_env.training.gauss_newton import Rates, fitted_table
from redif_env.training.runs import check, read_settings

TRAIN = [
    "--teacher", "gaussian-ring", "--num-steps", "3", "--network-calls", "384", "--num-envs", "16", "--group-size", "4",
    "--held-out-size", "32", "--held-out-every", "2",
]  # fmt: skip


QUIET = pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning", "ignore:rich is experimental")
"""Stable-Baselines3's progress bar is tqdm's, drawn by rich."""


SMALL = ["--test-size", "64", "--reference-size", "64"]
"""For tests that do not look at the table: few noises for the judge."""


def run(module, *arguments):
    """``python -m module arguments`` in this process, where the libraries are imported already."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", [module, *arguments]),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "rich is experimental")
        warnings.filterwarnings("ignore", "'agents.* found in sys.modules", RuntimeWarning)
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as left:
            code = left.code
    return SimpleNamespace(returncode=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())


@pytest.mark.parametrize("module", ["agents.ppo", "agents.cem", "agents.gauss_newton"])
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
    assert set(result["rows"][0]) == {"method", "grid", "nfe", "fd_teacher", "fd_data", "mse_teacher", "diversity"}
    rows = {(row["method"], row["grid"]): row for row in result["rows"]}
    assert len(rows) == len(QUICK) + 3
    assert process.stdout.index("student saved in") < process.stdout.index("FD to teacher")
    assert rows["teacher", "time"]["mse_teacher"] == 0
    assert all(row["nfe"] == 3 for row in result["rows"] if not row["method"].startswith("teacher"))

    student = Student.from_pretrained(tmp_path / "run" / "student")
    evaluator = Evaluator(GaussianMixtureTeacher.ring())
    ours = evaluator.row("", "", 3, student(noise=evaluator.noise))
    (name,) = [method for method, _ in rows if method.startswith("redif") or method in ("cem", "gauss-newton")]
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


SLOWER = ["--network-calls", "480", "--checkpoint-every", "96", *SMALL]
"""Of several rollouts, to be stopped on the way."""


def outcome(out):
    """What a run ends with: every byte of the student, and the table."""
    files = {path.relative_to(out): path.read_bytes() for path in (out / "student").rglob("*") if path.is_file()}
    return files, json.loads((out / "result.json").read_text())["rows"]


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be sent SIGTERM on Windows")
def test_a_stopped_run_goes_on_to_the_same_end(tmp_path, monkeypatch):
    """SIGTERM leaves a checkpoint and says how to go on; going on needs no settings, and ends as an unbroken run.

    It is sent after the first checkpoint, however fast or slow the machine is.
    """
    unbroken = run("agents.ppo", *TRAIN, *SLOWER, "--out", str(tmp_path / "unbroken"))
    assert unbroken.returncode == 0, unbroken.stderr
    out = tmp_path / "stopped"
    save = Checkpointer.save

    def stopping(checkpointer):
        save(checkpointer)
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpointer, "save", stopping)
    process = run("agents.ppo", *TRAIN, *SLOWER, "--out", str(out))
    assert process.returncode == 128 + signal.SIGTERM, process.stderr
    assert "SIGTERM: stopping with a checkpoint after this rollout" in process.stdout
    assert f"go on with --resume --out {out}" in process.stderr
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
    assert run("agents.ppo", *TRAIN, *SMALL, "--out", str(out)).returncode == 0
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
    assert [row["method"] for row in student.record.results].count("redif-ppo") == 1

    config["versions"]["torch"] = "1.0"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="versions have changed since the run was started"):
        check(replace(read_settings(out, ppo.Args()), out=out, resume=True), "ppo")
    with pytest.raises(ValueError, match=r"holds a run of ppo with other settings"):
        check(replace(read_settings(out, ppo.Args()), out=out, resume=True), "cem")
    config["settings"]["colour"] = "blue"
    config["settings"]["network"]["copy"] = False
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has unknown settings \['colour', 'network.copy'\]"):
        read_settings(out, ppo.Args())
    for text in ("{", "[1]"):
        (out / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json"):
            read_settings(out, ppo.Args())


def test_a_refused_run_takes_no_folder(tmp_path):
    """Settings that are refused leave no config behind that would stand in the way of the right ones."""
    assert run("agents.ppo", *TRAIN, "--solver", "euler", "--out", str(tmp_path / "run")).returncode == 2
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("program", "budget"),
    [
        (cem, {"network_calls": 6 * 3072, "checkpoint_every": 3}),
        (gauss_newton, {"network_calls": 6 * 208, "checkpoint_every": 3}),
    ],
)
def test_a_search_goes_on_to_the_same_end(program, budget, tmp_path):
    """Programs that train without Stable-Baselines3 too: from a checkpoint of half its steps, the same student."""
    settings = with_sizes(program.Args(teacher="gaussian-ring", num_steps=3, reference_size=64, **budget))
    whole, _ = program.train(replace(settings, out=tmp_path / "whole"))
    program.train(replace(settings, out=tmp_path / "half"))
    remove_checkpoint(checkpoints(tmp_path / "half" / "checkpoints")[-1])
    resumed, facts = program.train(replace(settings, out=tmp_path / "half", resume=True))
    assert torch.equal(resumed.mean_actions, whole.mean_actions)
    assert resumed.mean_actions.abs().max() > 0.05
    assert facts["environment_steps"] == budget["network_calls"]


def test_a_policy_may_begin_with_a_table(tmp_path):
    """Without exploration worth the name, the student is the table's; a table that the task has not is refused."""
    table = ["--table-calls", "416", "--network-calls", "48", "--reference-size", "64", "--test-size", "64"]
    process = run("agents.ppo", *TRAIN, *table, "--out", str(tmp_path / "run"))
    assert process.returncode == 0, process.stderr
    student = Student.from_pretrained(tmp_path / "run" / "student")
    given = MDPSettings(teacher="gaussian-ring", num_steps=3)
    mdp = build_mdp(given)
    found = fitted_table(mdp, reference_set(mdp.teacher, 64), 416, Rates())
    assert student.mdp.action_map.center == tuple(map(tuple, found.tolist()))
    planned = run("agents.ppo", *TRAIN, *table, "--dry-run", "--out", str(tmp_path / "other"))
    assert "table of actions" in planned.stdout
    for dry in ([], ["--dry-run"]):
        for given, said in ((["--action", "step"], "action='step'"), (["--min-steps", "2"], "min_steps=2")):
            refused = run("agents.ppo", *TRAIN, *table, *given, *dry, "--out", str(tmp_path / "refused"))
            assert refused.returncode == 2
            assert f"table_calls=416 cannot be had with {said}" in refused.stderr
    negative = run("agents.ppo", *TRAIN, "--table-calls", "-5", "--out", str(tmp_path / "refused"))
    assert "table_calls must be at least 0, got -5" in negative.stderr


def test_a_dry_run_says_what_a_run_costs(tmp_path, monkeypatch):
    """Calls, seconds and memory of every part; nothing is trained, nothing written."""
    monkeypatch.setattr("redif_env.training.plan.TIMED_SECONDS", 0.0)
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
    monkeypatch.setattr(sys, "argv", ["ppo", *TRAIN, *SMALL, "--out", str(tmp_path / "run")])

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("redif_env.students.export.folder.write_sealed", full)
    with pytest.raises(SystemExit) as stopped:
        command.run(ppo.main, ppo.Args, settled)
    assert stopped.value.code == 1
    assert "error: the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "run" / "student").exists()
    monkeypatch.undo()
    resumed = run("agents.ppo", "--resume", "--out", str(tmp_path / "run"))
    assert resumed.returncode == 0, resumed.stderr
    assert Student.from_pretrained(tmp_path / "run" / "student").num_steps == 3


def test_an_adaptive_student_is_trained_exported_and_judged(tmp_path):
    """With prices, a row for each of five; the solvers beside it have as many calls as its dearest samples."""
    extra = ["--min-steps", "2", "--prices", "0.01", "0.5", "--reward", "endpoint", "1", "price", "1"]
    process = run("agents.ppo", *TRAIN, *SMALL, *extra, "--out", str(tmp_path))
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    ours = [row for row in result["rows"] if row["method"] == "redif-ppo"]
    assert len(ours) == 5
    assert all(2 <= row["nfe"] <= 3 for row in ours)
    assert result["settings"]["reward"] == [["endpoint", 1.0], ["price", 1.0]]
    log = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"rewards/endpoint", "rewards/price", "held_out/nfe"} <= set(log.Tags()["scalars"])
    assert all(2 <= event.value <= 3 for event in log.Scalars("held_out/nfe"))


@QUIET
@pytest.mark.usefixtures("small_fits")
def test_the_base_of_a_run_may_be_chosen_by_validation_noises(tmp_path, monkeypatch):
    """It is the nearest of all candidates, printed, stored, counted in a dry run, and not chosen again on resuming."""
    monkeypatch.setattr("redif_env.training.plan.TIMED_SECONDS", 0.0)
    given = [*TRAIN, *SMALL, "--teacher-steps", "20", "--baselines", "none", "--out", str(tmp_path / "run")]
    planned = run("agents.ppo", *given, "--solver", "auto", "--dry-run").stdout
    assert "choice among 3 base solvers" in planned
    assert f"{3 * 32 * 3:,}" in planned
    assert "choice among" not in run("agents.ppo", *given, "--dry-run").stdout
    process = run("agents.ppo", *given, "--solver", "auto")
    assert process.returncode == 0, process.stderr
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    chosen = Base(*(settings[name] for name in ("solver", "grid", "initial_map")))
    teacher = GaussianMixtureTeacher.ring()
    judge = Evaluator(teacher, 32, VALIDATION_SEED, 20)
    distances = {base: judge.distance(base.sampler(teacher, 3)) for base in bases_of(teacher, 3)}
    assert chosen == min(distances, key=distances.__getitem__)
    assert f"validation noises: {chosen}" in process.stdout
    monkeypatch.setattr(ppo_program, "nearest_base", None)
    assert "is finished" in run("agents.ppo", *given, "--solver", "auto", "--resume").stdout
    assert "is finished" in run("agents.ppo", "--resume", "--out", str(tmp_path / "run")).stdout
    assert "holds a run already" in run("agents.ppo", *given, "--solver", "auto").stderr
    refused = run("agents.ppo", *given[:-1], str(tmp_path / "other"), "--solver", "auto", "--grid", "time@8")
    assert "grid='time@8' and initial_map=None belong to a solver that is named" in refused.stderr


def test_bases_that_cannot_be_fitted_are_not_tried():
    """Linear steps are for samples of few numbers, for few steps, and for episodes of one length."""
    teacher = GaussianMixtureTeacher.ring()
    assert {base.solver for base in bases_of(teacher, 4)} == {"linear"}
    assert {base.solver for base in bases_of(teacher, 4, adaptive=True)} == {"ipndm", "ipndm2", "ipndm3"}
    assert "linear" not in {base.solver for base in bases_of(teacher, 5000)}


def test_bases_of_a_pipeline_are_tried_on_its_own_timesteps():
    """A teacher that is called directly has none."""
    driven = shared_teacher(TeacherSettings(teacher="digits", driven=True))
    own = [base.solver for base in bases_of(driven, 4, adaptive=True) if base.grid == "own"]
    assert own == ["ipndm2", "ipndm3", "dpm++2m"]
    made = Base("ipndm2", "own").sampler(driven, 4)(torch.randn(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))
    assert made.isfinite().all()
    assert "own" not in {base.grid for base in bases_of(shared_teacher(TeacherSettings(teacher="digits")), 4, True)}
