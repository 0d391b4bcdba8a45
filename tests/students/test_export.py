"""Exports of a student, compared with the student."""

import inspect
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from diffusers.utils.dynamic_modules_utils import get_cached_module_file
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from redif_env import Student
from redif_env.diffusion.noise_schedulers import read_scheduler
from redif_env.diffusion.solvers import SOLVERS, sample
from redif_env.mdp.actions import SolverMap
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.students.export import PolicyModel, ReDiFPipeline, ReDiFScheduler
from redif_env.students.export.saved_process import scheduler_of
from redif_env.students.export.steps import run_steps, steps_of
from redif_env.students.record import Record
from redif_env.teachers.teacher import GaussianMixtureTeacher, load_teacher
from tests.models import unet


def make_student(teacher="gaussian-ring", seed=0, num_steps=3, solver="dpm++3m", action="solver", **options):
    mdp = build_mdp(
        MDPSettings(teacher=str(teacher), num_steps=num_steps, action=action, solver=solver, grid="time^1.5", **options)
    )
    torch.manual_seed(seed)
    return Student(mdp, Policy(PolicyConfig((mdp.observation_size, 16, mdp.action_size))))


def centered(num_steps):
    """Actions of images around a table."""
    return SolverMap(center=((0.3, -0.2, 0.4, 0.2, -0.3, 0.5, -0.4),) * num_steps)


def noise_of(student, rows=4, seed=0):
    return torch.randn(rows, *student.sample_shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["gaussian-ring", "pipeline"])
def student(request, pipeline_folder):
    """A student of the exact two-dimensional teacher, and one of a small UNet that predicts v."""
    return make_student("gaussian-ring" if request.param == "gaussian-ring" else pipeline_folder)


@pytest.fixture
def image_student(pipeline_folder):
    return make_student(pipeline_folder)


# The pipeline


def test_diffusers_itself_opens_a_student(image_student, tmp_path):
    """Allowed to trust one line that imports this library; which itself never runs a folder's code."""
    image_student.save_pretrained(tmp_path / "student")
    if "trust_remote_code" in inspect.signature(get_cached_module_file).parameters:  # older ones do not ask
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            DiffusionPipeline.from_pretrained(tmp_path / "student")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student", trust_remote_code=True)
    noise = noise_of(image_student)
    assert torch.equal(pipeline(latents=noise, output_type="latent").images, image_student(noise=noise))

    (tmp_path / "student" / "redif_pipeline.py").write_text("raise RuntimeError")
    for load in (ReDiFPipeline.from_pretrained, Student.from_pretrained):
        load(tmp_path / "student")


def test_student_and_pipeline_give_the_same_samples(student, tmp_path):
    """Exactly in float32, before and after saving by either."""
    noise = noise_of(student)
    expected = student(noise=noise)
    pipeline = student.pipeline()
    assert torch.equal(pipeline(latents=noise, output_type="latent").images, expected)
    pipeline.save_pretrained(tmp_path / "by-pipeline")
    student.save_pretrained(tmp_path / "by-student")
    for folder in (tmp_path / "by-pipeline", tmp_path / "by-student"):
        again = ReDiFPipeline.from_pretrained(folder)
        assert torch.equal(again(latents=noise, output_type="latent").images, expected)
        assert torch.equal(Student.from_pretrained(folder)(noise=noise), expected)
    for path in (tmp_path / "by-student").rglob("*.safetensors"):
        twin = tmp_path / "by-pipeline" / path.relative_to(tmp_path / "by-student")
        assert path.read_bytes() == twin.read_bytes()


def test_samples_are_reproducible_with_generators(student):
    pipeline = student.pipeline()
    samples = pipeline(4, torch.Generator().manual_seed(5), output_type="latent").images
    assert torch.equal(samples, student(4, generator=torch.Generator().manual_seed(5)))
    apart = pipeline(2, [torch.Generator().manual_seed(seed) for seed in (6, 7)], output_type="latent").images
    one = pipeline(1, torch.Generator().manual_seed(7), output_type="latent").images
    torch.testing.assert_close(apart[1:], one)


def test_output_types(image_student):
    """PIL images, arrays and tensors in [0, 1] hold the same samples."""
    pipeline, noise = image_student.pipeline(), noise_of(image_student)
    unit = image_student(noise=noise) / 2 + 0.5
    images = pipeline(latents=noise, output_type="pt").images
    torch.testing.assert_close(images, unit)
    assert not images.is_inference(), "what is given back may be trained on"
    arrays = pipeline(latents=noise, output_type="np").images
    np.testing.assert_allclose(arrays, unit.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-6)
    (pictures,) = pipeline(latents=noise, return_dict=False)
    assert [picture.size for picture in pictures] == [(8, 8)] * 4
    np.testing.assert_array_equal(np.asarray(pictures[0]), (arrays[0] * 255).round().astype("uint8"))


def test_callback_on_step_end(student):
    """Sampling continues with the latents that the callback returns."""
    pipeline, noise, seen = student.pipeline(), noise_of(student), []

    def look(pipe, step, timestep, given):
        seen.append((step, given["latents"].clone()))
        return given

    untouched = pipeline(latents=noise, output_type="latent", callback_on_step_end=look).images
    assert torch.equal(untouched, student(noise=noise))
    assert [step for step, _ in seen] == [0, 1, 2]
    for (_, x), state in zip(seen, student.trajectory(noise), strict=True):
        assert torch.equal(x, state.x)

    def push(pipe, step, timestep, given):
        return {"latents": given["latents"] + (0.5 if step == 1 else 0.0)}

    pushed = pipeline(latents=noise, output_type="latent", callback_on_step_end=push).images
    assert not torch.equal(pushed, untouched)


def test_number_of_network_calls_is_num_steps(image_student):
    rows = []
    image_student.network.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    pipeline = image_student.pipeline()
    rows.clear()
    pipeline(batch_size=5, output_type="pt")
    assert rows == [5, 5, 5]


def test_bfloat16_samples_are_close(image_student, tmp_path):
    image_student.save_pretrained(tmp_path / "student")
    pipeline = ReDiFPipeline.from_pretrained(tmp_path / "student", torch_dtype=torch.bfloat16)
    assert pipeline.unet.dtype == torch.bfloat16
    noise = noise_of(image_student)
    near = pipeline(latents=noise, output_type="latent").images
    assert near.dtype == torch.float32
    assert (near - image_student(noise=noise)).abs().mean() < 0.05
    back = pipeline.to(torch.float32)
    assert back.unet.dtype == torch.float32


def test_student_with_fixed_steps_has_no_policy_component(student, tmp_path):
    frozen = student.frozen()
    frozen.save_pretrained(tmp_path / "frozen")
    assert not (tmp_path / "frozen" / "policy").exists()
    noise = noise_of(student)
    pipeline = ReDiFPipeline.from_pretrained(tmp_path / "frozen")
    assert pipeline.policy is None
    assert torch.equal(pipeline(latents=noise, output_type="latent").images, frozen(noise=noise))
    assert torch.equal(Student.from_pretrained(tmp_path / "frozen")(noise=noise), frozen(noise=noise))


def test_adaptive_student_saves_its_prices(tmp_path):
    student = make_student(num_steps=4, min_steps=2, prices=(0.01, 1.0))
    student.save_pretrained(tmp_path / "student")
    pipeline, noise = ReDiFPipeline.from_pretrained(tmp_path / "student"), noise_of(student, 64)
    for price in (0.01, 0.3):
        samples = pipeline(latents=noise, price=price, output_type="latent").images
        assert torch.equal(samples, student(noise=noise, price=price))
    for refused in (student.frozen, student.steps, lambda: student.trace(2)):
        with pytest.raises(ValueError, match=r"student (chooses|decides) its number of (steps|calls) \(2 to 4\)"):
            refused()
    with pytest.raises(ValueError, match=r"student (chooses|decides) its number of (steps|calls)"):
        pipeline.scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="price must be from"):
        pipeline(price=3.0, output_type="latent")


def test_invalid_arguments_are_refused(student, tmp_path):
    pipeline = student.pipeline()
    for arguments, message in (
        ({"num_inference_steps": 50}, "num_inference_steps=50, but this student has learned 3 steps"),
        ({"output_type": "jpeg"}, "output_type='jpeg' is unknown"),
        ({"latents": torch.zeros(2, 9)}, "latents must have shape"),
        ({"price": 0.1}, "price=0.1 means nothing to this student"),
        ({"callback_on_step_end_tensor_inputs": ["noise_pred"]}, "only 'latents' can be given"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(**{"output_type": "latent"} | arguments)
    with pytest.raises(ValueError, match="writes pickles, which are never read again"):
        pipeline.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert list(tmp_path.iterdir()) == []
    scheduler = scheduler_of(student.mdp, None)
    with pytest.raises(ValueError, match="policy is missing"):
        ReDiFPipeline(pipeline.unet, scheduler)


def test_pil_output_needs_images():
    with pytest.raises(ValueError, match="needs images, and samples have shape"):
        make_student().pipeline()()


def test_pickled_weights_are_refused(image_student, tmp_path):
    """A folder whose weights were replaced by a pickle is refused."""
    image_student.save_pretrained(tmp_path / "student")
    weights = tmp_path / "student" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(image_student.network.state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match=r"lacks unet/diffusion_pytorch_model\.safetensors"):
        Student.from_pretrained(tmp_path / "student")


def test_saved_network_loads_as_a_teacher_and_in_diffusers(image_student, tmp_path):
    """The folder is a pipeline folder, and its network has the schedule of the teacher."""
    image_student.save_pretrained(tmp_path / "student")
    teacher, noise = load_teacher(tmp_path / "student"), noise_of(image_student)
    assert torch.equal(teacher.endpoint(noise, 4), image_student.mdp.teacher.endpoint(noise, 4))
    assert isinstance(
        UNet2DModel.from_pretrained(tmp_path / "student", subfolder="unet", low_cpu_mem_usage=False), UNet2DModel
    )
    assert DiffusionPipeline.load_config(tmp_path / "student")["_class_name"] == ["redif_pipeline", "ReDiFPipeline"]


# The hub


def test_push_to_hub_and_download(image_student, tmp_path, monkeypatch):
    """The folder with its model card is uploaded, and no pickles are downloaded."""
    uploaded = {}

    class Repository:
        repo_id = "somebody/student"

    def upload(repo_id, folder_path, token, commit_message, create_pr):
        uploaded["files"] = {path.name: path.read_bytes() for path in folder_path.rglob("*") if path.is_file()}
        uploaded["repo"] = repo_id
        return "https://example/commit"

    monkeypatch.setattr("redif_env.students.export.pipeline.create_repo", lambda *_, **__: Repository())
    monkeypatch.setattr("redif_env.students.export.pipeline.upload_folder", upload)
    assert image_student.pipeline().push_to_hub("student") == "https://example/commit"
    assert uploaded["repo"] == "somebody/student"
    assert b"license: unknown" in uploaded["files"]["README.md"]

    image_student.save_pretrained(tmp_path / "hub")

    def fetch(repo_id, allow_patterns, **options):
        assert (repo_id, options["revision"]) == ("somebody/student", "v1")
        assert not [pattern for pattern in allow_patterns if pattern.endswith(("bin", "ckpt", "py", "*"))]
        return str(tmp_path / "hub")

    monkeypatch.setattr("redif_env.students.export.pipeline.snapshot_download", fetch)
    noise = noise_of(image_student)
    fetched = ReDiFPipeline.from_pretrained("somebody/student", revision="v1")
    assert torch.equal(fetched(latents=noise, output_type="latent").images, image_student(noise=noise))


@pytest.mark.parametrize("name", ["runs/nowhere", "odd name/student"])
def test_names_that_are_neither_folder_nor_hub_id_are_refused(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=f"no student in {name}: no folder of that name, and no hub id"):
        ReDiFPipeline.from_pretrained(name)


# The scheduler


@pytest.mark.parametrize("action", ["solver", centered(3)])
def test_scheduler_in_a_stock_pipeline_gives_the_samples_of_the_frozen_student(action, pipeline_folder, tmp_path):
    """A diffusers pipeline with the scheduler takes the student's mean actions."""
    image_student = make_student(pipeline_folder, action=action)
    image_student.save_pretrained(tmp_path / "student")
    scheduler = ReDiFScheduler.from_pretrained(tmp_path / "student", subfolder="scheduler")
    stock = DDPMPipeline(image_student.network, scheduler)
    generator = torch.Generator().manual_seed(0)
    samples = stock(4, generator, num_inference_steps=3, output_type="np").images
    frozen = image_student.frozen()(noise=noise_of(image_student)).permute(0, 2, 3, 1) / 2 + 0.5
    np.testing.assert_allclose(samples, frozen, rtol=0, atol=1e-5)
    again = stock(4, torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np").images
    assert np.array_equal(again, samples), "the scheduler must reset between runs"


@pytest.mark.parametrize("solver", ["ddim", "ipndm3", "dpm++2m"])
def test_zero_actions_are_the_base_solver(ring, solver):
    """A scheduler with zero actions, called as diffusers does, is the base solver on its grid."""
    student = make_student(solver=solver, num_steps=5)
    scheduler = scheduler_of(student.mdp, torch.zeros(5, student.mdp.action_size))
    scheduler.set_timesteps(5)
    x = noise = noise_of(student)
    for timestep in scheduler.timesteps:
        x = scheduler.step(ring.network(x, timestep.expand(4)), timestep, x).prev_sample
    torch.testing.assert_close(x, sample(ring, SOLVERS[solver], student.mdp.grid, noise, 5))


@pytest.mark.parametrize("grid", ["time", "time^1.5@20"])
@pytest.mark.parametrize("scheduler", [DDPMScheduler, FlowMatchEulerDiscreteScheduler, EDMEulerScheduler])
def test_init_noise_sigma_of_the_scheduler(scheduler, grid):
    """Noise times ``init_noise_sigma`` is the initial state, also on grids that start below pure noise."""
    parameterization = read_scheduler({**scheduler().config, "_class_name": scheduler.__name__}, "theirs")
    teacher = GaussianMixtureTeacher(
        torch.zeros(1, 2),
        0.5,
        schedule=parameterization.schedule,
        prediction_type=parameterization.prediction_type,
        preconditioning=parameterization.preconditioning,
    )
    mdp = build_mdp(MDPSettings(teacher=teacher, num_steps=3, solver="ddim", grid=grid))
    ours = scheduler_of(mdp, torch.zeros(3, mdp.action_size))
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise * ours.init_noise_sigma, mdp.initial(noise).x)


def test_scheduler_refuses_invalid_calls(student):
    scheduler = student.pipeline().scheduler
    x = noise_of(student)
    with pytest.raises(ValueError, match=r"step\(\) was called before set_timesteps\(3\)"):
        scheduler.step(x, 0, x)
    with pytest.raises(ValueError, match="num_inference_steps=20, but this student has learned 3 steps"):
        scheduler.set_timesteps(20)
    scheduler.set_timesteps(3)
    for timestep in scheduler.timesteps:
        (x,) = scheduler.step(x, timestep, x, return_dict=False)
    with pytest.raises(ValueError, match="all 3 steps were taken"):
        scheduler.step(x, 0, x)
    assert len(scheduler) == 1000
    assert scheduler.init_noise_sigma == 1.0


def test_a_run_that_starts_in_the_middle_goes_on_from_there(ring):
    """Img2img: the step is found by its timestep or by its index, and is the solver's own from that level."""
    student = make_student(num_steps=5, solver="ddim", action="step")
    whole = scheduler_of(student.mdp, torch.zeros(5, student.mdp.action_size))
    whole.set_timesteps(5)
    x, states = noise_of(student), []
    for timestep in whole.timesteps:
        states.append(x)
        x = whole.step(ring.network(x, timestep.expand(4)), timestep, x).prev_sample
    for begin in (None, 2):
        part = scheduler_of(student.mdp, torch.zeros(5, student.mdp.action_size))
        part.set_timesteps(5)
        if begin is not None:
            part.set_begin_index(begin)
        y = states[2]
        for timestep in part.timesteps[2:]:
            y = part.step(ring.network(y, timestep.expand(4)), timestep, y).prev_sample
        torch.testing.assert_close(y, x)
    part.set_timesteps(5)
    for mixed in (lambda: part.step(y, part.timesteps[:4], y), lambda: part.add_noise(y, y, part.timesteps[:4])):
        with pytest.raises(ValueError, match="timestep must be one for all samples of a batch"):
            mixed()
    with pytest.raises(ValueError, match=r"begin_index must be a whole number, got 1\.5"):
        part.set_begin_index(1.5)


def test_noise_is_added_at_the_level_of_the_step(pipeline_folder):
    """The conditioning timestep may be another than the level's: a picture is noised to where the step starts."""
    student = make_student(pipeline_folder, num_steps=3)
    actions = torch.zeros(3, student.mdp.action_size)
    actions[0, 4] = 0.5
    scheduler = scheduler_of(student.mdp, actions)
    scheduler.set_timesteps(3)
    step = steps_of(student.mdp, actions)[1]
    assert abs(step.timestep - step.level_timestep) > 5
    x0, noise = noise_of(student), noise_of(student, seed=1)
    found = scheduler.add_noise(x0, noise, scheduler.timesteps[1:2].expand(4))
    torch.testing.assert_close(found, step.alpha * x0 + step.sigma * noise, rtol=0, atol=1e-4)


def test_steps_that_look_back_cannot_be_started_from(student):
    scheduler = student.pipeline().scheduler
    scheduler.set_timesteps(3)
    x = noise_of(student)
    with pytest.raises(ValueError, match="uses predictions of the steps before step 3, so it cannot start there"):
        scheduler.set_begin_index(2)
    with pytest.raises(ValueError, match="cannot start there"):
        scheduler.step(x, scheduler.timesteps[1], x)
    with pytest.raises(ValueError, match="timestep 5000 is none of this student's"):
        scheduler.step(x, 5000, x)
    scheduler.set_timesteps(3)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="is not that of step 2"):
        scheduler.step(x, scheduler.timesteps[2], x)


def test_a_row_owes_everything_to_its_generator(labelled):
    """Alone or in a batch: its noise, and the class that it shows."""
    pipeline = make_student(labelled, conditions=(0, 1, 2)).pipeline()
    pipeline.set_progress_bar_config(disable=True)

    def made(*seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipeline(batch_size=len(seeds), generator=generators, output_type="latent").images

    together = made(*range(8))
    apart = torch.cat([made(seed) for seed in range(8)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-3)
    torch.testing.assert_close(made(3, 5, 3)[2], together[3], rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="generator must be one or 3, one a sample, got 2"):
        pipeline(batch_size=3, generator=[torch.Generator(), torch.Generator()])
    with pytest.raises(ValueError, match="generator must be one or 1, one a sample, got 2"):
        pipeline(latents=noise_of(make_student(labelled), 1), generator=[torch.Generator(), torch.Generator()])


@pytest.mark.parametrize("given", [{"negative_prompt": "blurred"}, {"guidance_scale": 3.0}])
def test_guidance_that_was_not_learned_is_refused(given, image_student):
    pipeline = image_student.pipeline()
    (name,) = given
    with pytest.raises(ValueError, match=rf"{name}=.* cannot be given"):
        pipeline(batch_size=1, **given)
    pipeline(batch_size=1, negative_prompt="", guidance_scale=1.0)


# The list of steps


@pytest.mark.parametrize("solver", ["dpm++3m", "ipndm2", "ddim"])
def test_steps_json_gives_the_samples_of_the_frozen_student(solver, tmp_path):
    """With the few lines of code of its documentation, without this library."""
    student = make_student(solver=solver, num_steps=5)
    student.save_pretrained(tmp_path / "student")
    noise = noise_of(student)
    expected = student.frozen().trajectory(noise)[-1].x
    torch.testing.assert_close(run_steps(student.steps(), student.network, noise), expected, rtol=1e-4, atol=1e-5)
    x, x0s, epss = noise.double(), [], []
    for step in json.loads((tmp_path / "student" / "steps.json").read_text()):
        eps = student.network(x, torch.full((4,), step["timestep"]))
        x0s.insert(0, (x - step["sigma"] * eps) / step["alpha"])
        epss.insert(0, eps)
        x0 = step["x_weight"] * x
        x0 = x0 + sum(w * p for w, p in zip(step["x0_weights"], x0s, strict=False))
        x0 = x0 + sum(w * p for w, p in zip(step["eps_weights"], epss, strict=False))
        x = step["alpha_next"] * x0 + step["sigma_next"] / step["sigma"] * (x - step["alpha"] * x0)
    torch.testing.assert_close(x.float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("action", ["solver", centered(3)])
def test_steps_include_band_gains(action, tmp_path):
    """The samples of image students match with band gains and differ without."""
    student = make_student("digits", num_steps=3, action=action)
    noise = noise_of(student)
    expected = student.frozen().trajectory(noise)[-1].x
    torch.testing.assert_close(run_steps(student.steps(), student.network, noise), expected, rtol=1e-3, atol=1e-4)
    without_bands = [replace(step, band_gains=()) for step in student.steps()]
    assert (run_steps(without_bands, student.network, noise) - expected).abs().max() > 1e-3


def test_weights_of_base_solvers():
    """With zero actions, DDIM has the weight 1, and DPM-Solver++(2M) on equal steps 1.5 and -0.5."""
    ddim = make_student(solver="ddim", num_steps=3)
    for step in steps_of(ddim.mdp, torch.zeros(3, ddim.mdp.action_size)):
        assert step.x_weight == pytest.approx(0, abs=1e-12)
        assert step.x0_weights == pytest.approx((1, 0, 0))
        assert step.timestep == pytest.approx(step.level_timestep)
    mdp = build_mdp(MDPSettings(teacher="gaussian-ring", num_steps=20, solver="dpm++2m", grid="logsnr"))
    steps = steps_of(mdp, torch.zeros(20, mdp.action_size))
    assert steps[1].x0_weights == pytest.approx((1.5, -0.5, 0), abs=1e-6)
    assert (steps[-1].alpha_next, steps[-1].sigma_next) == (1.0, 0.0)
    assert steps[3].sigma_next == pytest.approx(steps[4].sigma)
    with pytest.raises(ValueError, match="actions must be 20, one a step"):
        steps_of(mdp, torch.zeros(4, mdp.action_size))


# Traced programs


@pytest.fixture(scope="module")
def traced_student(tmp_path_factory):
    """Two steps of a UNet without attention: tracing costs time for each step and each operation."""
    folder = tmp_path_factory.mktemp("small")
    network = UNet2DModel.from_config({**unet().config, "add_attention": False})
    DDPMPipeline(network, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(folder)
    return make_student(folder, num_steps=2, action=centered(2))


def test_traced_program_gives_the_samples_of_the_student(traced_student, tmp_path):
    program = traced_student.trace(4)
    torch.export.save(program, tmp_path / "student.pt2")
    noise = noise_of(traced_student)
    samples = torch.export.load(tmp_path / "student.pt2").module()(noise)
    torch.testing.assert_close(samples, traced_student(noise=noise), rtol=0, atol=1e-4)
    # Tracing does not change later runs.
    torch.testing.assert_close(
        traced_student(noise=noise), traced_student.pipeline()(latents=noise, output_type="latent").images
    )


@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg", "ignore::DeprecationWarning")
def test_onnx_file_gives_the_samples_of_the_student(traced_student, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    traced_student.write_onnx(tmp_path / "student.onnx", 2)
    session = runtime.InferenceSession(tmp_path / "student.onnx")
    noise = noise_of(traced_student, 2)
    (samples,) = session.run(["samples"], {"noise": noise.numpy()})
    np.testing.assert_allclose(samples, traced_student(noise=noise).numpy(), rtol=0, atol=1e-4)


# The model card


def test_model_card_contains_the_record(student, tmp_path):
    results = [{"method": "redif-ppo", "nfe": 3, "fd_teacher": 0.125, "fd_data": None}]
    record = Record({"seed": 7, "teacher": "x"}, "100 noises", results, {"torch": "2.13"}, "apache-2.0")
    Student(student.mdp, student.policy, record).save_pretrained(tmp_path / "student")
    card = ModelCard.load(tmp_path / "student" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "diffusers"
    for text in (
        "| redif-ppo | 3 | 0.125 | - |",
        "| seed | `7` |",
        "| torch | `2.13` |",
        "100 noises",
        "3-step student",
    ):
        assert text in card.text
    assert Student.from_pretrained(tmp_path / "student").record == record


def test_policy_component_matches_the_policy(student):
    model = PolicyModel.of(student.policy)
    observation = torch.randn(5, student.mdp.observation_size)
    assert torch.equal(model(observation), student.policy(observation))
    table = torch.rand(3, student.mdp.action_size) * 2 - 1
    blind = Policy.from_table(table, student.mdp.observation_size)
    assert torch.equal(blind.table(3), table)
    assert student.policy.table(3) is None
    one_hot = torch.zeros(3, student.mdp.observation_size)
    one_hot[[0, 1, 2], [2, 1, 0]] = 1
    assert torch.equal(blind(one_hot), table)
    for linear in blind.linears:  # the linear policy of an agent has biases
        torch.nn.init.constant_(linear.bias, 0.25)
    torch.testing.assert_close(blind.table(3), blind(one_hot))
    assert torch.equal(blind.table(3), (table + 0.25).clamp(-1, 1))


def test_folder_without_a_student_is_refused(tmp_path):
    (tmp_path / "odd").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "odd" / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="no student in"):
        ReDiFPipeline.from_pretrained(tmp_path / "odd")
