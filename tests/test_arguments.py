"""The public surface, with values of wrong types and ranges: each is refused by a message that names the argument.

Hypothesis draws the argument and the value; what is right for an argument is left out by its own rule.
"""

import functools
import inspect
import math
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import redif_env  # noqa: F401
from redif_env import ReDiFEnv, ReDiFPipeline, ReDiFVectorEnv, Student, Teacher, cli
from redif_env.mdp.policies import Policy
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.sb3.training import ppo
from redif_env.sb3.training.recipes import settled
from redif_env.training.command import run

TINY = {"teacher": "gaussian-ring", "reference_size": 8, "teacher_steps": 4}
each_number_of_cases = pytest.mark.parametrize("cases", [30, pytest.param(500, marks=pytest.mark.slow)])
"""Drawn by each of five tests: 2,500 in all, run with ``-m slow``."""

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**30, -(10**30), 0.5, -1.0, math.nan, math.inf, -math.inf, 2.5, 1e300]),
    st.sampled_from(["", "4", "nonsense", "ünï\x00", "cpu:99", "a/b", "../x", "solver", "float16"]),
    st.sampled_from(
        [b"bytes", object(), [], {}, (), [0.1], (0.1,), (1, 2, 3), {"endpoint": math.nan}, {"x": 1}, {1: 2}]
    ),
    st.sampled_from(
        [np.float64(0.5), np.array([1, 2]), torch.ones(2), len, int, Path("nowhere"), {"endpoint": "much"}]
    ),
)

NUMBER = (int, np.integer)


def whole(low, high=math.inf):
    return lambda value: isinstance(value, NUMBER) and not isinstance(value, bool) and low <= value <= high


def one_of(*values):
    return lambda value: any(value is known or (type(value) is type(known) and value == known) for known in values)


def nothing(value):
    return value is None


def either(*rules):
    return lambda value: any(rule(value) for rule in rules)


flag = one_of(True, False)
# What each argument of an environment of the ring may be: the rest of what is drawn must be refused.
RIGHT = {
    "teacher": one_of(),
    "num_steps": whole(1, 3),
    "action": one_of("solver"),
    "observation": one_of(),
    "solver": one_of(),
    "grid": one_of(),
    "initial_map": nothing,
    "min_steps": either(nothing, whole(1, 3)),
    "prices": nothing,
    "conditions": nothing,
    "null_label": nothing,
    "guidance_scale": nothing,
    "variant": either(nothing, lambda value: isinstance(value, str)),  # of no file of the ring's
    "prompts": nothing,
    "driven": either(nothing, one_of(False)),
    "height": nothing,
    "width": nothing,
    "call_arguments": nothing,
    "run_size": nothing,
    "autoreset_mode": nothing,
    "learn_guidance": one_of(False),
    "device": one_of(),
    "dtype": one_of("float16"),
    "reward": either(callable),
    "reference_size": either(nothing, whole(1, 3)),
    "teacher_steps": either(nothing, whole(1, 3)),
    "autocast": flag,
    "render_mode": lambda value: not isinstance(value, str) or not value,  # Gymnasium reads it first
}
VECTOR = {**RIGHT, "num_envs": whole(1, 3), "group_size": whole(1, 2), "autoreset_mode": one_of()}
VECTOR["max_episode_steps"] = nothing
PRETRAINED = {
    "name_or_path": one_of(),
    "conditions": nothing,
    "null_label": nothing,
    "guidance_scale": either(nothing, one_of(1)),
    "torch_dtype": nothing,
    "variant": nothing,
    "bounds": either(nothing, lambda value: isinstance(value, np.ndarray)),
    "name": either(nothing, lambda value: isinstance(value, str)),
}
SAMPLED = {
    "num_samples": whole(1, 3),
    "generator": nothing,
    "noise": one_of(),
    "price": nothing,
    "condition": either(nothing, one_of("", ())),
    "seed": either(nothing, whole(0, 2**63 - 1)),
}
PIPELINE = {
    "batch_size": whole(1, 3),
    "generator": either(nothing, one_of([])),
    "num_inference_steps": either(nothing, one_of(2)),
    "latents": one_of(None),
    "price": nothing,
    "class_labels": either(nothing, one_of("", ())),
    "prompt": nothing,
    "negative_prompt": either(nothing, one_of("")),
    "guidance_scale": either(nothing, one_of(1)),
    "output_type": one_of("latent"),
    "callback_on_step_end": either(nothing, callable),
    "callback_on_step_end_tensor_inputs": either(one_of([], (), "")),
}


@functools.cache
def student():
    mdp = build_mdp(MDPSettings(teacher="gaussian-ring", num_steps=2))
    return Student(mdp, Policy.from_table(torch.zeros(2, mdp.action_size), mdp.observation_size))


@functools.cache
def pipeline():
    made = student().pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def ours(error):
    """Whether an error, or the one that Gymnasium says it comes from, was raised by a file of ours."""
    frames = inspect.getinnerframes(error.__traceback__)
    return "redif_env" in Path(frames[-1].filename).parts or (error.__cause__ is not None and ours(error.__cause__))


def refused(name, value, call):
    """Call with a wrong value: a ValueError or TypeError of ours that names the argument."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call(**{name: value})
    assert ours(caught.value), (name, value, repr(caught.value))
    assert name in str(caught.value), (name, value, str(caught.value))


SURFACE = {
    "gym.make": (RIGHT, lambda **wrong: gym.make("ReDiF-v0", **{**TINY, **wrong})),
    "gym.make_vec": (VECTOR, lambda **wrong: gym.make_vec("ReDiF-v0", **{"num_envs": 2, **TINY, **wrong})),
    "ReDiFPipeline()": (PIPELINE, lambda **wrong: pipeline()(**{"output_type": "latent", **wrong})),
    "Student()": (SAMPLED, lambda **wrong: student()(**({"num_samples": 2} if "noise" not in wrong else {}) | wrong)),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@each_number_of_cases
@pytest.mark.parametrize("surface", SURFACE)
def test_wrong_arguments_are_refused_by_name(surface, cases):
    rules, call = SURFACE[surface]

    @settings(max_examples=cases, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(rules)), JUNK)
    def drawn(name, value):
        if rules[name](value):
            return
        refused(name, value, call)

    drawn()


@each_number_of_cases
def test_wrong_arguments_of_from_pretrained_are_refused(pipeline_folder, cases):
    @settings(max_examples=cases, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(PRETRAINED)), JUNK)
    def drawn(name, value):
        if PRETRAINED[name](value):
            return
        if name == "name_or_path" and isinstance(value, str | Path):
            with pytest.raises(ValueError, match="teacher="):
                Teacher.from_pretrained(value)
            return
        given = {"name_or_path": pipeline_folder, name: value}
        refused(name, value, lambda **_: Teacher.from_pretrained(**given))

    drawn()


NUMBERS = [
    *("num-steps", "min-steps", "num-envs", "group-size", "batches", "epochs", "network-calls", "reference-size"),
    *("teacher-steps", "test-size", "held-out-size", "held-out-every", "checkpoint-every", "learning-rate"),
    *("gamma", "clip-range", "average", "seed", "guidance-scale"),
]


@each_number_of_cases
@pytest.mark.parametrize("program", ["agents.ppo", "redif sample"])
def test_wrong_numbers_at_the_command_line_are_refused(program, cases, tmp_path, capsys, monkeypatch):
    """A sentence and exit code 2; never a traceback."""
    student().save_pretrained(tmp_path / "student")

    @settings(max_examples=cases, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(NUMBERS if program == "agents.ppo" else ["num-samples", "seed", "price", "condition"]),
        st.sampled_from(["-1", "-5", "nan", "inf", "-inf", "x", "", "1e400", "99999999999999999999999", "0.0.1"]),
    )
    def drawn(name, value):
        if (name, value) in (("condition", ""),):
            return
        ppo_words = ["--dry-run", "--teacher", "gaussian-ring", "--out", str(tmp_path / "run"), f"--{name}={value}"]
        out = str(tmp_path / "out.safetensors")
        cli_words = ["redif", "sample", str(tmp_path / "student"), "--out", out, f"--{name}={value}"]
        monkeypatch.setattr(sys, "argv", cli_words)
        train = partial(run, ppo.main, ppo.Args, settled, arguments=ppo_words)
        with pytest.raises(SystemExit) as left:
            (train if program == "agents.ppo" else cli.main)()
        assert left.value.code == 2
        said = "".join(capsys.readouterr())
        assert name in said.replace("_", "-"), (name, value, said)

    drawn()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--reward endpoint nan", "reward['endpoint'] must be a finite number"),
        ("--prices 1 0.1", "prices must be two numbers above 0, the smaller first"),
        ("--min-steps 9", "min_steps"),
        ("--solver unipc", "solver='unipc' is one of diffusers' own"),
        ("--group-size 3", "group_size must divide num_envs=64, got 3"),
        ("--hidden 64 0", "hidden must be at least 1, got 0"),
        ("--features nothing", "features='nothing'"),
        ("--initial-map quadratic", "initial_map='quadratic' is unknown"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(words, message, tmp_path, capsys):
    arguments = ["--dry-run", "--teacher", "gaussian-ring", "--num-envs", "64", "--out", str(tmp_path), *words.split()]
    with pytest.raises(SystemExit) as left:
        run(ppo.main, ppo.Args, settled, arguments=arguments)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_no_argument_is_left_out():
    known = {
        ReDiFEnv: RIGHT,
        ReDiFVectorEnv: VECTOR,
        Teacher.from_pretrained: PRETRAINED,
        Student.__call__: SAMPLED,
        ReDiFPipeline.__call__: {**PIPELINE, "return_dict": None},
    }
    for function, rules in known.items():
        assert set(inspect.signature(function).parameters) - {"self"} == set(rules), function


def test_what_is_right_is_taken():
    """The control: the same calls with right values."""
    for call in (SURFACE["gym.make"][1], SURFACE["gym.make_vec"][1]):
        for wrong in ({"num_steps": np.int64(2)}, {"min_steps": 2}, {"autocast": True}, {"prices": [0.1, 1]}):
            call(**wrong)
    assert SURFACE["Student()"][1](num_samples=3).shape == (3, 2)
    with suppress(KeyError):
        student()(2, condition="")
