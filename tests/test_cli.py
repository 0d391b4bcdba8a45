"""The command ``redif``, typed."""

import json
import re
import sys
from dataclasses import asdict

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from redif_env import Student
from redif_env.cli import base_timesteps, main, shown_names
from redif_env.judging.baselines import QUICK
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.students.record import Record


@pytest.fixture
def type_in(monkeypatch, capsys):
    """Run the command with arguments; its exit code, output and errors."""

    def typed(*arguments):
        monkeypatch.setattr(sys, "argv", ["redif", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        output = capsys.readouterr()
        return code, output.out, output.err

    return typed


def make_student(folder, teacher="gaussian-ring", **options):
    mdp = build_mdp(MDPSettings(teacher=str(teacher), num_steps=3, solver="dpm++3m", grid="time^1.5", **options))
    torch.manual_seed(0)
    results = [{"method": "redif-ppo", "nfe": 3, "fd_teacher": 0.1234567}]
    record = Record({"seed": 11}, "50 held-out noises", results, {"torch": "2.13"}, "mit")
    student = Student(mdp, Policy(PolicyConfig((mdp.observation_size, 16, mdp.action_size))), record)
    student.save_pretrained(folder)
    return student


def test_sample(type_in, tmp_path, pipeline_folder):
    """The picture holds the samples of the seed; the tensor file holds them exactly."""
    student = make_student(tmp_path / "student", pipeline_folder)
    code, said, _ = type_in("sample", tmp_path / "student", "-n", 5, "--seed", 3, "--out", tmp_path / "grid.png")
    assert code == 0
    assert "5 samples of 3 network calls each, seed 3" in said
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.mode == "RGB"
        assert picture.size[0] > picture.size[1], "three columns, two rows"
    file = tmp_path / "samples.safetensors"
    assert type_in("sample", tmp_path / "student", "-n", 5, "--seed", 3, "--out", file)[0] == 0
    expected = student(5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(load_file(file)["samples"], expected)


def test_samples_that_are_not_images_are_drawn(type_in, tmp_path):
    make_student(tmp_path / "student")
    assert type_in("sample", tmp_path / "student", "-n", 7, "--out", tmp_path / "points.png")[0] == 0
    with Image.open(tmp_path / "points.png") as picture:
        assert picture.size[0] > 100


def test_info(type_in, tmp_path):
    """Teacher, calls, the schedule drawn, settings, versions and the quality measured at export."""
    student = make_student(tmp_path / "student")
    code, said, _ = type_in("info", tmp_path / "student")
    assert code == 0
    for text in (
        "gaussian-ring",
        "dpm++3m",
        "looks at the state",
        "seed",
        "11",
        "2.13",
        "0.12346",
        "held-out",
        "mit",
    ):
        assert text in said, text
    (drawn,) = [line for line in said.splitlines() if line.strip().startswith("level of x")]
    assert drawn.count("●") == 3
    assert drawn.index("●") == drawn.index(" ●") + 1, "the first call is at the noisiest level"
    assert f"{student.steps()[1].timestep:.1f}" in said
    assert base_timesteps(student) == pytest.approx([999, 999 * (2 / 3) ** 1.5, 999 * (1 / 3) ** 1.5])


def test_info_of_fixed_and_of_adaptive_steps(type_in, tmp_path):
    student = make_student(tmp_path / "student")
    student.frozen().save_pretrained(tmp_path / "frozen")
    assert "none: the steps are fixed" in type_in("info", tmp_path / "frozen")[1]
    make_student(tmp_path / "adaptive", min_steps=2, prices=(0.1, 1.0))
    said = type_in("info", tmp_path / "adaptive")[1]
    assert "2 to 3, decided by the policy" in said
    assert "no one schedule to draw" in said


def test_evaluate(type_in, tmp_path):
    """The table of the student beside the best solvers, and the same numbers as JSON."""
    student = make_student(tmp_path / "student")
    code, said, _ = type_in("evaluate", tmp_path / "student", "--size", 40, "--out", tmp_path / "rows.json")
    assert code == 0
    assert "40 held-out noises, pixels" in said
    rows = json.loads((tmp_path / "rows.json").read_text())
    methods = [row["method"] for row in rows]
    assert methods[:3] == ["teacher", "teacher, other noises", "student"]
    assert len(rows) == 3 + len(QUICK)
    assert {"unipc3", "ipndm3"} <= set(methods)
    assert type_in("evaluate", tmp_path / "student", "--size", 40, "--baselines", "none")[0] == 0
    from redif_env.judging.evaluation import Evaluator

    assert rows[2] == asdict(Evaluator(student.mdp.teacher, 40).student_row("student", student))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample", "{nowhere}"), "no student in"),
        (("sample", "{student}", "-n", "0"), "num_samples must be at least 1, got 0"),
        (("sample", "{student}", "--out", "grid.bmp"), "must end in .png or .safetensors"),
        (("sample", "{student}", "--price", "0.5"), "price=0.5 means nothing to this student"),
        (("sample", "{student}", "--device", "abacus"), "device='abacus' cannot be used here"),
        (("evaluate", "{student}", "--size", "1"), "size must be at least 2, got 1"),
        (("info", "{nowhere}"), "no student in"),
    ],
)
def test_errors_are_one_line(type_in, tmp_path, arguments, message):
    make_student(tmp_path / "student")
    places = {"student": tmp_path / "student", "nowhere": tmp_path / "nowhere"}
    code, _, errors = type_in(*(argument.format(**places) for argument in arguments))
    assert code == 2
    assert errors.startswith("error: ")
    assert message in errors


def test_conditional_student(type_in, tmp_path):
    """Labels by ``--condition``; ``info`` names them, the schedule from pure noise on, and both calls of guidance."""
    from tests.models import save_unet_of_classes

    save_unet_of_classes(tmp_path / "teacher")
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0}
    (tmp_path / "teacher" / "scheduler" / "scheduler_config.json").write_text(json.dumps(flow))
    student = make_student(tmp_path / "student", tmp_path / "teacher", null_label=3, guidance_scale=2.0)
    out = tmp_path / "samples.safetensors"
    code, said, _ = type_in("sample", tmp_path / "student", "-n", 2, "--condition", 1, "--out", out)
    assert code == 0
    assert "2 samples of 6 network calls each" in said
    expected = student(2, generator=torch.Generator().manual_seed(0), condition=1)
    assert torch.equal(load_file(out)["samples"], expected)
    code, said, _ = type_in("info", tmp_path / "student")
    assert code == 0
    assert "0, 1, 2" in said
    assert "2, two calls a prediction" in said
    assert "1000" in said
    code, _, complained = type_in("sample", tmp_path / "student", "--condition", 8, "--out", out)
    assert code == 2
    assert "condition=8 is not among the 3" in complained


# Stable-Baselines3's progress bar is tqdm's, drawn by rich.
@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning", "ignore:rich is experimental")
def test_train_is_the_program_of_agents(type_in, tmp_path):
    """A tiny run; ``python -m agents.ppo`` goes on with its folder, as it would with its own."""
    from agents import ppo

    out = tmp_path / "run"
    tiny = ["--teacher", "gaussian-ring", "--num-steps", 2, "--network-calls", 64, "--num-envs", 16, "--test-size", 32]
    small = ["--held-out-size", 32, "--reference-size", 32, "--teacher-steps", 8, "--baselines", "none", "--out", out]
    code, said, errors = type_in("train", *tiny, *small)
    assert code == 0, errors
    assert said.index("student saved in") < said.index("redif-ppo")
    assert Student.from_pretrained(out / "student").num_steps == 2
    assert {row["method"] for row in json.loads((out / "result.json").read_text())["rows"]} == {
        "teacher", "teacher, other noises", "redif-ppo"
    }  # fmt: skip
    ppo.main(ppo.Args(out=out, resume=True, **stored_settings(out)))


def stored_settings(out):
    """Those of a run that a test's command line named."""
    names = ("num_steps", "network_calls", "num_envs", "test_size", "held_out_size", "reference_size", "teacher_steps")
    settings = json.loads((out / "config.json").read_text())["settings"]
    return {name: settings[name] for name in ("teacher", "baselines", *names)}


def test_train_says_which_defaults_are_in_force(type_in):
    """The recipe's of the action that is given; no option with a default of None but those that may be left out."""
    code, said, _ = type_in("train", "--help")
    assert code == 0
    assert said.startswith("usage: redif train")
    for flag, default in {"--learning-rate": "0.001", "--num-envs": "128", "--gamma": "1.0", "--epochs": "4"}.items():
        assert re.search(rf"{flag} .*?\(default:\W+{re.escape(default)}\)", said, re.DOTALL), flag
    _, said, _ = type_in("train", "--action", "noise", "--help")
    assert re.search(r"--learning-rate .*?\(default:\W+0.0002\)", said, re.DOTALL)


def test_training_without_its_library_names_the_extra(type_in, monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    for name in [name for name in sys.modules if name.startswith("redif_env.sb3")]:
        monkeypatch.delitem(sys.modules, name)
    code, _, errors = type_in("train", "--dry-run")
    assert code == 2
    assert errors == "error: redif train needs stable_baselines3: pip install 'redif-env[sb3]'\n"


def test_a_dry_run_refuses_unknown_names(type_in):
    for option, value in (("reward", "brightness"), ("grid", "fine"), ("action", "jump")):
        code, _, errors = type_in("train", "--dry-run", f"--{option}", value, *(["1"] if option == "reward" else []))
        assert code == 2
        assert f"{option}='{value}' is unknown: choose one of" in errors


def test_show(type_in, tmp_path):
    """The page is written; a student of another teacher is refused, and so is none."""
    make_student(tmp_path / "first" / "student")
    make_student(tmp_path / "other" / "student")
    make_student(tmp_path / "digits", "digits")
    little = ("--seeds", 2, "--solver-steps", 2, "--teacher-steps", 4, "--out", tmp_path / "page.html")
    code, said, _ = type_in("show", tmp_path / "first" / "student", tmp_path / "other" / "student", *little)
    assert (code, said) == (0, f"page: {tmp_path / 'page.html'}\n")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    names = re.findall(r'\{"name": "([^"]*)"', text)
    assert names == ["teacher", "solver (iPNDM)", "first", "other"]
    code, _, wrong = type_in("show", tmp_path / "first" / "student", tmp_path / "digits", *little)
    assert code == 2
    assert "is of teacher ('digits'" in wrong
    code, _, wrong = type_in("show", tmp_path / "first" / "student", "--port", 99999, *little[:6])
    assert code == 2
    assert "port=99999 cannot be bound" in wrong
    assert type_in("show", *little)[0] == 2
    code, _, wrong = type_in("show", tmp_path / "first" / "student", "--out", tmp_path / "page")
    assert (code, wrong) == (2, f"error: out='{tmp_path / 'page'}' must end in .html: the page is one file\n")


def test_names_of_students_on_a_page():
    folders = ("runs/a/student", "runs/b/student", "other/a/student/", "student")
    assert shown_names(folders) == ["a", "b", "a (2)", "student"]
