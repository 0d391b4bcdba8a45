"""Models from disk: what a user's folder may be, what is refused, and what goes home with the student."""

import json
import pickle
import shutil
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
import tyro

from agents import ppo
from redif_env import ReDiFVectorEnv, Student, Teacher
from redif_env.envs.environments import terms_of
from redif_env.judging.baselines import Baseline
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.measures.distances import structural_dissimilarity
from redif_env.rewards.endpoint import EndpointAlignment, image_distance
from redif_env.students.export import ReDiFPipeline
from tests.models import (
    MODELS,
    PROMPTS,
    Model,
    dit,
    save_dit,
    save_stable_diffusion,
    save_stable_diffusion_3,
    save_unet,
    unet,
)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """The folder of a model, written once."""
    folder = tmp_path_factory.mktemp("saved")

    def save(how):
        path = folder / how.__name__
        if not path.exists():
            torch.manual_seed(0)
            how(path)
        return path

    return save


def student_of(teacher, **options):
    mdp = build_mdp(MDPSettings(teacher=teacher, num_steps=2, solver="ddim", grid="time", **options))
    torch.manual_seed(1)
    return Student(mdp, Policy(PolicyConfig((mdp.observation_size, mdp.action_size))))


def test_stable_diffusion_is_diffusers_own(saved):
    """Our guided DDIM on its latents, decoded, against StableDiffusionPipeline with DDIM: the same picture."""
    path = saved(save_stable_diffusion)
    teacher = Teacher.from_pretrained(path, conditions=PROMPTS, guidance_scale=5.0)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(path, safety_checker=None, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(
        pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=True, timestep_spacing="linspace"
    )
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 10, "guidance_scale": 5.0, "latents": latents, "output_type": "pt"}
    expected = pipeline("two dogs", **options).images
    # The same levels: whole timesteps, evenly from 999 to 0, each of which our step lands on.
    timesteps = pipeline.scheduler.timesteps.double()
    x, row = latents, torch.tensor([1])
    with torch.no_grad():
        for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
            here = teacher.schedule.half_logsnr(timestep[None])
            answer = teacher.predict(x, here, timestep[None], row)
            # diffusers' DDIM steps by a stride of its own; its last step lands on clean data.
            stride = 1000 // 10
            previous = timestep - stride
            level = teacher.schedule.level(
                teacher.schedule.half_logsnr(previous[None]) if previous >= 0 else torch.tensor([torch.inf])
            )
            x = level.alpha.float() * answer.x0 + level.sigma.float() * answer.eps
            assert following is None or following < timestep
    torch.testing.assert_close(teacher.images(x) / 2 + 0.5, expected, rtol=0, atol=2e-3)


def test_stable_diffusion_3_is_diffusers_own(saved):
    """Our DDIM on the shifted flow grid against StableDiffusion3Pipeline, guided: the same picture."""
    path = saved(save_stable_diffusion_3)
    teacher = Teacher.from_pretrained(path, conditions=PROMPTS, guidance_scale=4.0)
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(path, low_cpu_mem_usage=False, **absent)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    size = teacher.image_shape[-1]
    expected = pipeline(
        "a cat",
        num_inference_steps=6,
        guidance_scale=4.0,
        latents=latents,
        output_type="pt",
        height=size,
        width=size,
    ).images
    x, sigmas = latents, pipeline.scheduler.sigmas.double()
    with torch.no_grad():
        for sigma, following in pairwise(sigmas):
            half_logsnr = ((1 - sigma).log() - sigma.log())[None]
            answer = teacher.predict(x, half_logsnr, 1000 * sigma[None])
            x = (1 - following).float() * answer.x0 + following.float() * answer.eps
    torch.testing.assert_close(teacher.images(x) / 2 + 0.5, expected, rtol=0, atol=1e-3)


def test_dit_is_diffusers_own(saved):
    """One guided prediction against DiTPipeline's own arithmetic: the variance channels are left out."""
    teacher = Teacher.from_pretrained(saved(save_dit), conditions=[2], guidance_scale=4.0)
    assert teacher.sample_shape == (4, 8, 8)
    assert teacher.image_shape == (3, 16, 16)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([600.0], dtype=torch.float64)
    with torch.no_grad():
        labels = torch.tensor([2, 5])  # 5 is the null class of a model of five
        both = teacher.network(torch.cat([x, x]), timestep=timestep.float().expand(2), class_labels=labels).sample
        asked, free = both[:, :4].chunk(2)
        found = teacher.predict(x, teacher.schedule.half_logsnr(timestep), timestep).eps
    torch.testing.assert_close(found, free + 4.0 * (asked - free), rtol=1e-4, atol=1e-5)


def test_a_bare_model_with_its_scheduler_is_read(tmp_path):
    """config.json and weights in the folder itself, the scheduler beside or below; what is written is read again."""
    torch.manual_seed(0)
    unet().save_pretrained(tmp_path / "beside")
    diffusers.EDMEulerScheduler().save_pretrained(tmp_path / "beside")
    teacher = Teacher.from_pretrained(tmp_path / "beside")
    assert type(teacher.preconditioning).__name__ == "EDMPreconditioning"
    dit().save_pretrained(tmp_path / "below")
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "below" / "scheduler")
    latent = Teacher.from_pretrained(tmp_path / "below", conditions=[0, 1])
    assert latent.decoder is None
    for found, options in ((teacher, {}), (latent, {"conditions": [0, 1]})):
        found.save_pretrained(tmp_path / f"again-{found.sample_shape[0]}")
        again = Teacher.from_pretrained(tmp_path / f"again-{found.sample_shape[0]}", **options)
        assert again.fingerprint == found.fingerprint


def test_pipelines_of_latents_are_saved_whole(saved, tmp_path):
    teacher = Teacher.from_pretrained(saved(save_stable_diffusion), conditions=PROMPTS)
    teacher.save_pretrained(tmp_path / "copy")
    again = Teacher.from_pretrained(tmp_path / "copy", conditions=PROMPTS)
    assert again.fingerprint == teacher.fingerprint
    assert again.decoder is not None


def test_half_precision_compilation_and_slicing_are_diffusers_own(saved):
    """bfloat16 where asked, near float32; a compiled network and sliced attention answer the same."""
    path = saved(save_stable_diffusion)
    exact = Teacher.from_pretrained(path, conditions=PROMPTS)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([500.0, 20.0], dtype=torch.float64)
    level = exact.schedule.half_logsnr(timestep)
    with torch.no_grad():
        expected = exact.predict(x, level, timestep).eps
        half = Teacher.from_pretrained(path, conditions=PROMPTS, torch_dtype=torch.bfloat16)
        assert half.dtype is torch.bfloat16
        found = half.predict(x, level, timestep).eps
        assert found.dtype is torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=0.1)
        exact.source.enable_attention_slicing(1)
        torch.testing.assert_close(exact.predict(x, level, timestep).eps, expected, rtol=0, atol=1e-5)
        small = Teacher.from_pretrained(saved(save_unet))  # compiling costs seconds for each kind of block
        expected = small.predict(x[:, :3], level, timestep).eps
        small.network.compile(backend="eager")
        torch.testing.assert_close(small.predict(x[:, :3], level, timestep).eps, expected, rtol=0, atol=1e-5)


def test_rewards_of_latents_look_at_images(saved):
    """Feature and structural rewards decode; the endpoint reward does not. The base solver earns -1 in each."""
    teacher = Teacher.from_pretrained(saved(save_dit), conditions=[0, 1])
    terms = {"endpoint": 1.0, "feature": 1.0, "endpoint_ssim": 1.0, "mmd": 1.0}
    env = ReDiFVectorEnv(8, teacher=teacher, num_steps=2, reward=terms, reference_size=8, teacher_steps=6)
    distance = image_distance(structural_dissimilarity, teacher)
    samples = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = structural_dissimilarity(teacher.images(samples), teacher.images(-samples))
    assert torch.equal(distance(samples, -samples), expected)
    assert EndpointAlignment.calibrated(env.mdp, env.reference, distance).scale > 0
    env.reset(seed=0)
    env.step(np.zeros(env.action_space.shape, np.float32))
    *_, infos = env.step(np.zeros(env.action_space.shape, np.float32))
    found = terms_of(infos)
    for name in terms:
        assert np.isfinite(found[name]).all()
        assert found[name].mean() < 0


def test_rendering_decodes(saved):
    teacher = Teacher.from_pretrained(saved(save_dit), conditions=[0, 1])
    env = ReDiFVectorEnv(1, teacher=teacher, num_steps=2, reference_size=4, teacher_steps=2, render_mode="rgb_array")
    env.reset(seed=0)
    (frame,) = env.render()
    assert frame.shape[2] == 3


def test_text_student_is_saved_with_its_encoders(saved, tmp_path):
    """From the folder alone: the same pictures for a known prompt, and pictures for one never trained with."""
    teacher = Teacher.from_pretrained(saved(save_stable_diffusion), conditions=PROMPTS, guidance_scale=3.0)
    student = student_of(teacher, learn_guidance=True)
    student.save_pretrained(tmp_path / "student")
    assert {"vae", "text_encoder", "tokenizer"} <= {path.name for path in (tmp_path / "student").iterdir()}
    pipeline = ReDiFPipeline.from_pretrained(tmp_path / "student")
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = student(noise=noise, condition="two dogs")
    theirs = pipeline(latents=noise, prompt="two dogs", output_type="pt").images
    torch.testing.assert_close(theirs, ours / 2 + 0.5, rtol=0, atol=1e-5)
    new = pipeline(prompt=["a house", "a cat"], generator=torch.Generator().manual_seed(0)).images
    assert [image.size for image in new] == [teacher.image_shape[1:]] * 2
    with pytest.raises(ValueError, match="condition=a house is not among the 2"):
        student(1, condition="a house")


def test_class_student_is_saved_with_its_labels(saved, tmp_path):
    model = next(model for model in MODELS if model.conditioning == "class labels, guided")
    student = student_of(Teacher.from_pretrained(saved(model.save), **model.options))
    student.save_pretrained(tmp_path / "student")
    pipeline = ReDiFPipeline.from_pretrained(tmp_path / "student")
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = pipeline(latents=noise, class_labels=[2, 0], output_type="latent").images
    assert torch.equal(theirs, student(noise=noise, condition=[2, 0]))
    with pytest.raises(ValueError, match="takes no text"):
        pipeline(prompt="a cat")
    program = student.trace(2).module()
    torch.testing.assert_close(program(noise, torch.tensor([2, 0])), theirs, rtol=0, atol=1e-4)


def test_invalid_pipeline_folders_are_refused(saved, tmp_path):
    """The error names what is missing, inconsistent or out of range."""
    model = next(model for model in MODELS if model.conditioning == "class labels, guided")
    with pytest.raises(ValueError, match=r"conditions must be labels from 0 to 3 .* got 4, -1"):
        Teacher.from_pretrained(saved(model.save), conditions=[0, 4, -1])
    with pytest.raises(ValueError, match="null_label must be from 0 to 3"):
        Teacher.from_pretrained(saved(model.save), null_label=9)
    with pytest.raises(ValueError, match="needs a prediction without condition"):
        Teacher.from_pretrained(saved(model.save), guidance_scale=2.0)
    with pytest.raises(ValueError, match="takes none"):
        Teacher.from_pretrained(saved(MODELS[0].save), conditions=[1])
    with pytest.raises(ValueError, match="takes texts"):
        Teacher.from_pretrained(saved(save_stable_diffusion))
    with pytest.raises(ValueError, match="takes texts"):
        Teacher.from_pretrained(saved(save_stable_diffusion), conditions=[3])

    def broken(name, change):
        folder = tmp_path / name
        shutil.copytree(saved(MODELS[0].save), folder)
        change(folder)
        return folder

    def edit(path, **values):
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    weights = "unet/diffusion_pytorch_model.safetensors"
    bare = broken("no-weights", lambda folder: (folder / weights).unlink())
    with pytest.raises(ValueError, match="cannot be loaded"):
        Teacher.from_pretrained(bare)
    pickled = broken("pickled", lambda folder: (folder / weights).rename(folder / "unet/diffusion_pytorch_model.bin"))
    with pytest.raises(ValueError, match="safetensors"):
        Teacher.from_pretrained(pickled)
    other = broken("mismatch", lambda folder: edit(folder / "unet/config.json", block_out_channels=[16, 16]))
    with pytest.raises(ValueError, match="cannot be loaded"):
        Teacher.from_pretrained(other)
    strange = broken(
        "scheduler", lambda folder: (folder / "scheduler/scheduler_config.json").write_text('{"_class_name": "Mine"}')
    )
    with pytest.raises(ValueError, match="scheduler 'Mine', whose alpha and sigma are unknown"):
        Teacher.from_pretrained(strange)
    missing = broken("no-scheduler", lambda folder: shutil.rmtree(folder / "scheduler"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        Teacher.from_pretrained(missing)
    torn = broken("torn", lambda folder: (folder / weights).write_bytes(b"torn"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        Teacher.from_pretrained(torn)


@pytest.mark.parametrize("part", ["text_encoder/model", "vae/diffusion_pytorch_model"])
def test_pickled_components_are_refused(saved, tmp_path, part):
    """A pipeline all of whose networks but one are safetensors: the pickle is not opened."""
    folder = tmp_path / "teacher"
    shutil.copytree(saved(save_stable_diffusion), folder)
    name = "pytorch_model.bin" if part.startswith("text") else "diffusion_pytorch_model.bin"
    (folder / f"{part}.safetensors").unlink()
    (folder / part).with_name(name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="cannot be loaded"):
        Teacher.from_pretrained(folder, conditions=PROMPTS)
    assert not Trap.sprung


class Trap:
    """Fails the test if it is unpickled."""

    sprung = False

    def __reduce__(self):
        return (spring, ())


def spring():
    Trap.sprung = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, r"has a FluxTransformer2DModel, which only its own pipeline knows"),
        ({"_class_name": "SomeNewModel"}, "Teachers by name can be: GaussianMixtureModel, UNet2DModel"),
        ({"in_channels": 9, "out_channels": 4}, "inpainting, editing, upscaling"),
        ({"sample_size": None}, "names no sample_size"),
    ],
)
def test_networks_that_carry_more_are_refused_with_a_reason(saved, tmp_path, change, message):
    folder = tmp_path / "teacher"
    shutil.copytree(saved(MODELS[0].save), folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        Teacher.from_pretrained(folder)


def test_sdxl_is_refused_with_a_reason(saved, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(saved(save_stable_diffusion), folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "addition_embed_type": "text_time"}))
    with pytest.raises(ValueError, match="needs more than a prompt"):
        Teacher.from_pretrained(folder, conditions=PROMPTS)


TINY = [
    *("--network-calls", "64", "--num-steps", "2", "--num-envs", "8", "--group-size", "4", "--held-out-every", "2"),
    *("--reference-size", "8", "--teacher-steps", "4", "--test-size", "8", "--held-out-size", "8"),
]


TRAINED = [model for model in MODELS if model.name != "UNet2DModel, class labels, guided"]


@pytest.mark.filterwarnings("ignore:rich is experimental")  # the bar of Stable-Baselines3
@pytest.mark.usefixtures("quick_distance")
@pytest.mark.parametrize("model", TRAINED, ids=lambda model: model.name)
def test_ppo_trains_on_every_class(model: Model, saved, tmp_path, monkeypatch):
    """The program, unchanged, from a folder to an exported student, a table and a picture."""
    options = dict(model.options)
    arguments = ["--teacher", str(saved(model.save)), "--out", str(tmp_path / "run"), *TINY]
    if "conditions" in options:
        arguments += ["--conditions", *map(str, options["conditions"]), "--observation", "features+condition"]
    if "guidance_scale" in options:
        arguments += ["--guidance-scale", str(options["guidance_scale"]), "--learn-guidance"]
    if "null_label" in options:
        arguments += ["--null-label", str(options["null_label"])]
    few = [Baseline("ddim", "time"), Baseline("unipc2", "time^2")]
    monkeypatch.setattr("redif_env.training.report.baselines_of", lambda which, teacher: few)
    ppo.main(tyro.cli(ppo.Args, args=arguments))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    calls = 2 if "guidance_scale" in options else 1
    rows = {row["method"]: row for row in result["rows"]}
    assert rows["redif-ppo"]["nfe"] == rows["ddim"]["nfe"] == 2 * calls
    assert result["environment_steps"] * calls == 64
    assert (tmp_path / "run" / "samples.png").stat().st_size > 0
    assert Student.from_pretrained(tmp_path / "run" / "student").num_steps == 2
