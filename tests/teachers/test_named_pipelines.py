"""Pipelines by name: folder, file of prompts and call arguments, as every environment and program takes them."""

import json
import os
import signal
from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from PIL import Image

from redif_env import Teacher
from redif_env.diffusion.solvers import SOLVERS, sample
from redif_env.judging.baselines import baselines_of
from redif_env.judging.evaluation import Evaluator
from redif_env.judging.stock import StockBaseline, stock_baselines
from redif_env.mdp.settings import TeacherSettings, shared_teacher
from redif_env.measures.features import load_features
from redif_env.measures.metrics import diversity
from redif_env.sb3.checkpoints import Checkpointer
from redif_env.sb3.training import ppo
from redif_env.teachers.driven.drive import Drive
from redif_env.teachers.teacher import PipelineTeacher
from redif_env.training.runs import RESULT, RunStoppedError
from tests.teachers.driving import stock_scheduler
from tests.teachers.zoo import ZOO

SMALL = {"reference_size": 8, "teacher_steps": 4, "num_steps": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Stable Diffusion with random weights, and two prompts, one of which is drawn three times as often."""
    made = tmp_path_factory.mktemp("pipelines") / "text"
    ZOO["stable_diffusion"]().pipe.save_pretrained(made)
    lines = [{"prompt": "a cat"}, {"prompt": "two dogs", "weight": 3}]
    (made / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return made


@pytest.fixture(scope="module")
def settings(folder):
    return TeacherSettings(teacher=folder, prompts=folder / "prompts.jsonl", guidance_scale=3.0, run_size=4)


@pytest.fixture(scope="module")
def teacher(settings):
    return shared_teacher(settings)


def test_environments_take_prompts(folder, settings, teacher):
    """The teacher is the pipeline as it drives itself, and all environments share it."""
    given = {"teacher": folder, "prompts": settings.prompts, "guidance_scale": 3.0, "run_size": 4, **SMALL}
    assert gym.make_vec("ReDiF-v0", num_envs=2, **given).unwrapped.mdp.teacher is teacher
    env, found = gym.make("ReDiF-v0", **given), teacher
    assert isinstance(found, PipelineTeacher)
    assert (found.calls, found.run_size, found.drive.shared["guidance_scale"]) == (2, 4, 3.0)
    assert found.conditions.names == ("a cat", "two dogs")
    assert found.conditions.weights.tolist() == [1, 3]
    env.reset(seed=0)
    ended = [env.step(env.action_space.sample() * 0)[2] for _ in range(3)]
    assert ended == [False, False, True]


def test_arguments_of_the_call_reach_it(folder):
    """Height as an argument of its own, others by name; samples have the size that follows."""
    asked = TeacherSettings(teacher=folder, conditions=["a cat"], height=64, call_arguments={"eta": 0.0})
    made = shared_teacher(asked)
    assert made.sample_shape == (4, 32, 32)
    assert made.drive.shared == {"height": 64, "width": 64, "eta": 0.0}
    assert shared_teacher(replace(asked, width=32)).sample_shape == (4, 32, 16)


def test_prompts_that_changed_are_read_anew(folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    for text in ("a cat\n", "a cat\ntwo dogs\n"):
        prompts.write_text(text)
        found = shared_teacher(TeacherSettings(teacher=folder, prompts=prompts))
        assert found.conditions.names == tuple(text.split("\n")[:-1])


def test_what_is_driven(folder, tmp_path, pipeline_folder):
    """Whatever nothing calls directly, and what its call is given arguments for."""
    made = {name: tmp_path / name for name in ("sdxl_base", "image_to_image")}
    for name, place in made.items():
        ZOO[name]().pipe.save_pretrained(place)
        assert TeacherSettings(teacher=place).drives
    assert not TeacherSettings(teacher=folder, conditions=["a cat"]).drives
    assert not TeacherSettings(teacher=pipeline_folder).drives
    assert not TeacherSettings(teacher="digits").drives
    assert TeacherSettings(teacher="digits", driven=True).drives
    assert TeacherSettings(teacher=folder, prompts="prompts.txt").drives
    assert TeacherSettings(teacher=folder, conditions=["a cat"], width=16).drives


def different_sizes(folder):
    """A file of an image-to-image pipeline's arguments."""
    for name, side in (("small", 32), ("large", 64)):
        Image.new("RGB", (side, side)).save(folder / f"{name}.png")
    lines = [{"prompt": "x", "image": f"{name}.png"} for name in ("small", "large")]
    (folder / "pictures.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "pictures.jsonl"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": "{empty}"}, "line 2 is empty: give one prompt"),
        ({"call_arguments": {"hight": 64}}, "does not take hight: its call takes prompt, height"),
        ({"action": "noise"}, "noise"),
        ({"conditions": ["a dog"]}, "are both conditions: give one of them"),
        ({"null_label": 3}, "null_label=3 is nothing that a pipeline's own call takes"),
        ({"dtype": "int8"}, "dtype='int8' is unknown: choose one of 'float32', 'float64', 'bfloat16', 'float16'"),
        ({"prompts": "{pictures}"}, "image of different sizes in one batch"),
        ({"prompts": None, "run_size": 4, "conditions": ["a dog"]}, "run_size=4 belongs to pipelines that are driven"),
    ],
)
def test_bad_input_is_a_sentence(folder, tmp_path, given, message):
    (tmp_path / "empty.txt").write_text("a cat\n\n")
    places = {"{empty}": tmp_path / "empty.txt", "{pictures}": different_sizes(tmp_path)}
    named = {name: places.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(ValueError, match=message):
        gym.make("ReDiF-v0", **{"teacher": folder, "prompts": folder / "prompts.jsonl", **SMALL, **named})


def test_half_precision_is_that_of_the_networks_alone(settings):
    envs = gym.make_vec("ReDiF-v0", num_envs=2, **vars(replace(settings, dtype="bfloat16")), **SMALL).unwrapped
    assert envs.mdp.teacher.drive.dtype == torch.bfloat16
    envs.reset(seed=0)
    assert envs.state.x.dtype == torch.float32


# The rivals.


def test_stock_rivals_are_the_stock_pipeline(teacher):
    """A first-order scheduler in the pipeline's own call ends where driven first-order steps end; another does not."""
    noise = torch.randn(6, *teacher.sample_shape, generator=torch.Generator().manual_seed(3))
    rows = torch.tensor([0, 1, 1, 0, 1, 0])
    driven = sample(teacher, SOLVERS["ddim"], teacher.own_grid(4), noise, 4, rows)
    size = driven.abs().max()
    assert (StockBaseline("ddim", stock_scheduler(teacher))(teacher, noise, 4, rows) - driven).abs().max() < 1e-5 * size
    found = {baseline.method: baseline for baseline in stock_baselines(teacher)}
    assert set(found) == {"PNDM", "DDIM", "DPM-Solver++ 2M", "DPM-Solver++ 2M Karras", "UniPC", "UniPC Karras", "Heun"}
    assert (found["UniPC"](teacher, noise, 4, rows) - driven).abs().max() > 1e-3 * size


def test_stock_rivals_make_as_many_predictions_as_they_say(teacher, monkeypatch):
    calls = []
    forward = teacher.drive.networks["unet"].forward
    monkeypatch.setattr(
        teacher.drive.networks["unet"], "forward", lambda *args, **kw: calls.append(1) or forward(*args, **kw)
    )
    for baseline in stock_baselines(teacher):
        calls.clear()
        baseline(teacher, torch.zeros(2, *teacher.sample_shape), 6)
        assert len(calls) == baseline.predictions(6) <= 6, baseline
    assert baselines_of("none", teacher) == []


# The judge.


def test_a_pipeline_brings_its_judge_along(teacher):
    """Features of its own VAE's encoder by default, and diversity against its own."""
    evaluator = Evaluator(teacher, 8, teacher_steps=4)
    assert evaluator.feature_name == "vae"
    row = evaluator.teacher_row()
    assert row.diversity == pytest.approx(1)
    one = evaluator.endpoints[:1].expand_as(evaluator.endpoints)
    assert evaluator.row("one", "own", 1, one).diversity == pytest.approx(0, abs=1e-3)
    assert Evaluator(teacher, 8, teacher_steps=4, features="pixels").feature_name == "pixels"


def test_vae_features_are_the_encoder_s_last_hidden_layer(teacher):
    """Averaged over a grid; the encoder's last convolution makes latents of them, which are as they were."""
    vae, images = teacher.vae, torch.randn(11, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features, before = load_features("vae", (3, 32, 32), vae), vae.encode(images).latent_dist.mean
    found = features(images)
    hidden = vae.encoder.conv_norm_out(vae.encoder.mid_block(_down(vae.encoder, images)))
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.nn.functional.silu(hidden), 4).flatten(1)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(vae.encode(images).latent_dist.mean, before)
    assert not vae.encoder.conv_out._forward_pre_hooks
    with pytest.raises(ValueError, match="needs a teacher with a VAE"):
        load_features("vae", (3, 32, 32))


def _down(encoder, images):
    hidden = encoder.conv_in(images)
    for block in encoder.down_blocks:
        hidden = block(hidden)
    return hidden


def test_diversity_is_the_mean_distance_within_conditions():
    features, condition = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4
    pairs = [(i, j) for i in range(9) for j in range(i) if condition[i] == condition[j]]
    expected = sum(float((features[i] - features[j]).norm()) for i, j in pairs) / len(pairs)
    assert diversity(features, condition) == pytest.approx(expected)
    assert diversity(features, torch.zeros(9)) != pytest.approx(expected)
    assert diversity(features, torch.arange(9)) != diversity(features, torch.arange(9)), "NaN without a pair"


# The program.


@pytest.fixture
def args(folder, settings, tmp_path):
    return ppo.settled(
        ppo.Args(
            teacher=str(folder),
            prompts=str(settings.prompts),
            guidance_scale=3.0,
            run_size=8,
            num_steps=3,
            num_envs=8,
            group_size=4,
            network_calls=192,
            held_out_every=1,
            reference_size=8,
            held_out_size=8,
            test_size=8,
            teacher_steps=4,
            checkpoint_every=24,
            out=tmp_path / "run",
        )
    )


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning", "ignore:rich is experimental")
def test_the_program_trains_judges_and_draws(args, capsys, monkeypatch):
    monkeypatch.setattr("redif_env.training.plan.TIMED_SECONDS", 0.0)
    ppo.main(replace(args, dry_run=True))
    printed = " ".join(capsys.readouterr().out.split())  # titles wrap
    assert "network calls a second" in printed
    assert "Memory" in printed
    ppo.main(args)
    result = json.loads((args.out / RESULT).read_text())
    rows = {row["method"]: row for row in result["rows"]}
    assert {"redif-ppo", "PNDM", "DPM-Solver++ 2M", "UniPC", "teacher"} <= set(rows)
    assert result["features"] == "vae"
    assert (rows["redif-ppo"]["nfe"], rows["PNDM"]["nfe"]) == (6, 6)
    assert all(row["diversity"] > 0 for row in rows.values())
    assert "diversity" in capsys.readouterr().out
    with Image.open(args.out / "samples.png") as picture:
        assert picture.height > 3 * 32


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning", "ignore:rich is experimental")
def test_a_stopped_run_of_a_pipeline_goes_on_to_the_same_end(args, monkeypatch):
    """Suspended calls are not stored: the pipeline is called again."""
    whole, _ = ppo.train(args)
    out, save = args.out.with_name("stopped"), Checkpointer.save

    def stopping(self):
        save(self)
        monkeypatch.setattr(Checkpointer, "save", save)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpointer, "save", stopping)
    with pytest.raises(RunStoppedError):
        ppo.train(replace(args, out=out))
    shared_teacher.__globals__["_shared_teacher"].cache_clear()  # as in another process
    resumed, facts = ppo.train(replace(args, out=out, resume=True))
    assert facts["environment_steps"] == 96
    ours, theirs = whole.policy.state_dict(), resumed.policy.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(float(value.abs().max()) > 0 for value in ours.values())


def test_a_driven_pixel_pipeline_is_as_its_network(pipeline_folder):
    """A stock DDPMPipeline that drives itself makes the predictions of its network called directly."""
    direct = Teacher.from_pretrained(pipeline_folder)
    driven = shared_teacher(TeacherSettings(teacher=pipeline_folder, driven=True))
    assert isinstance(driven.drive, Drive)
    noise = torch.randn(3, *direct.sample_shape, generator=torch.Generator().manual_seed(0))
    expected = direct.endpoint(noise, 6)
    assert torch.allclose(driven.endpoint(noise, 6), expected, atol=1e-5 * float(expected.abs().max()))
