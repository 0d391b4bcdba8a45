"""A student of a pipeline goes home: as a scheduler, as a file without this library, with its policy, as a block."""

import copy
import functools
import importlib
import json
import shutil
import sys

import diffusers
import pytest
import torch

from redif_env import ReDiFPipeline, ReDiFScheduler, Student
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.students.export import home
from redif_env.students.export.saved_process import scheduler_of
from redif_env.students.export.stock import stock_scheduler
from redif_env.teachers.driven.arguments import batched
from tests.fresh import ours_forgotten
from tests.teachers.driving import teacher_of
from tests.teachers.zoo import ZOO

CORE = ("stable_diffusion", "sd3_base", "flux_base", "image_to_image", "wan_two_experts")
EVERY = [pytest.param(name, marks=[] if name in CORE else [pytest.mark.slow], id=name) for name in ZOO]
quiet = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*:UserWarning:diffusers")

pytestmark = [pytest.mark.usefixtures("quiet"), quiet]


def student_of(teacher, **settings):
    """One whose steps are fixed, and drawn at random."""
    mdp = build_mdp(MDPSettings(**{"teacher": teacher, "num_steps": 3, "observation": "steps"} | settings))
    actions = torch.rand(3, mdp.action_size, generator=torch.Generator().manual_seed(3)) - 0.5
    return Student(mdp, Policy.from_table(actions, mdp.observation_size))


def looking_student_of(teacher, **settings):
    """One whose policy looks at the state: of random weights."""
    mdp = build_mdp(MDPSettings(teacher=teacher, num_steps=3, **settings))
    torch.manual_seed(5)
    policy = Policy(PolicyConfig((mdp.observation_size, 16, mdp.action_size)))
    for layer in policy.linears:
        torch.nn.init.normal_(layer.weight, std=0.3)
    return Student(mdp, policy)


def call(pipe, teacher, rows=(0,), **arguments):
    """The pipeline called with conditions of the zoo, to tensors."""
    drive = teacher.drive
    pipe.set_progress_bar_config(disable=True)
    given = {**drive.shared, **batched([drive.conditions[row] for row in rows]), **arguments}
    if "generator" in drive.takes and not ("latents" in arguments and not drive.injection.generator):
        generators = [torch.Generator().manual_seed(0) for _ in rows]  # as driven: some encode images by them
        given["generator"] = generators if len(rows) > 1 else generators[0]
    if "batch_size" in drive.takes and "prompt" not in given:
        given["batch_size"] = len(rows)
    with torch.no_grad():
        return pipe(**given, output_type="pt")


def shown(output):
    """What a pipeline returned, as one tensor."""
    found = next(iter(output.values()))
    return torch.stack(list(found)) if isinstance(found, list) else torch.as_tensor(found)


def stock(teacher, scheduler):
    pipe = copy.copy(teacher.source)
    pipe.scheduler = scheduler
    return pipe


def noise_of(student, first, rows=(0,)):
    """The noise with which a student begins at the samples ``first`` ``(B, *S)``."""
    teacher = student.mdp.teacher
    grid_start = student.mdp.grid.half_logsnr(torch.zeros(1).double(), teacher.schedule)
    if teacher.probe.from_image:
        level = teacher.schedule.level(grid_start)
        return (first - float(level.alpha) * teacher.drive.images(rows)) / float(level.sigma)
    return first if teacher.begins_with_noise else first / float(teacher.schedule.size(grid_start))


@pytest.mark.parametrize("name", EVERY)
def test_the_stock_pipeline_makes_the_student_s_samples(name, tmp_path):
    teacher = teacher_of(ZOO[name]())
    student = student_of(teacher)
    student.save_pretrained(tmp_path / "student")
    scheduler = ReDiFScheduler.from_pretrained(tmp_path / "student")
    if scheduler.config.refusal:
        with pytest.raises(ValueError, match=r"this student's pipeline .*: use ReDiFPipeline"):
            scheduler.set_timesteps(3)
        return
    pipe = stock(teacher, scheduler)
    seen = []
    step = scheduler.step

    @functools.wraps(step)
    def watched(output, timestep, sample, *args, **rest):
        moved = step(output, timestep, sample, *args, **rest)
        seen.append((sample, moved[0] if isinstance(moved, tuple) else moved.prev_sample))
        return moved

    scheduler.step = watched
    latents = torch.randn(1, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    given = {"latents": latents} if teacher.drive.injection.kind == "latents" else {}
    call(pipe, teacher, num_inference_steps=scheduler.num_inference_steps, **given)
    assert len(seen) == 3
    first, last = seen[0][0][:1].float(), seen[-1][1][:1].float()
    expected = student.trajectory(noise_of(student, first))[-1].x
    error = float((last - expected).abs().max() / expected.abs().max())
    assert error < 1e-4
    teacher.close()


LOOKING = ("stable_diffusion", "flux_base", "image_to_image", "wan_two_experts", "sdxl_edm", "ltx2_with_sound", "dit")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in CORE else [pytest.mark.slow]) for name in LOOKING]
)
def test_the_policy_in_the_loop_makes_the_student_s_samples(name, tmp_path, monkeypatch):
    """One call of the pipeline, with its own noise; each sample by its own decisions."""
    teacher = teacher_of(ZOO[name]())
    student, rows = looking_student_of(teacher), (0, 1 % len(teacher.conditions))
    student.save_pretrained(tmp_path / "student")
    pipe, seen = ReDiFPipeline.of(teacher.source, tmp_path / "student"), []
    assert isinstance(pipe, type(teacher.source))
    answered = home._OneCall.predict

    def watched(self, *args):
        parts = answered(self, *args)
        seen.append(torch.cat([answer.x for _, _, answer in parts]))
        return parts

    monkeypatch.setattr(home._OneCall, "predict", watched)
    found = 2 * shown(call(pipe, teacher, rows)).float() - 1
    noise = noise_of(student, seen[0], rows)
    expected, frozen = (
        teacher.images(one.trajectory(noise, condition=torch.tensor(rows))[-1].x) for one in (student, student.frozen())
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert not torch.allclose(found, frozen, rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match="has learned 3"):
        call(pipe, teacher, rows, num_inference_steps=7)
    teacher.close()


def test_the_policy_goes_into_a_pipeline_that_has_the_scheduler(at_home):
    teacher, folder = at_home
    pipe = stock(teacher, ReDiFScheduler.from_pretrained(folder))
    fixed = shown(call(pipe, teacher, num_inference_steps=3))
    torch.testing.assert_close(shown(call(ReDiFPipeline.of(pipe, folder), teacher)), fixed, rtol=0, atol=1e-4)


def test_a_student_that_decides_its_number_of_calls_goes_home_too(tmp_path):
    teacher = teacher_of(ZOO["stable_diffusion"]())
    student = looking_student_of(teacher, min_steps=1)
    student.save_pretrained(tmp_path / "student")
    pipe = ReDiFPipeline.of(teacher.source, tmp_path / "student")
    assert shown(call(pipe, teacher, (0, 1))).isfinite().all()
    scheduler = ReDiFScheduler.from_pretrained(tmp_path / "student")
    with pytest.raises(ValueError, match="decides its number of calls"):
        scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match=r"is a student of a StableDiffusionPipeline.*ReDiFPipeline.of"):
        Student.from_pretrained(tmp_path / "student")
    teacher.close()


# What it was trained with.


@pytest.fixture(scope="module")
def at_home(tmp_path_factory):
    """A teacher and the folder of its student, whose levels alone were learned."""
    folder = tmp_path_factory.mktemp("home") / "student"
    teacher = teacher_of(ZOO["stable_diffusion"]())
    student_of(teacher, solver="ddim", action="step").save_pretrained(folder)
    yield teacher, folder
    teacher.close()


def test_the_pipeline_of_training_is_known(at_home):
    teacher, folder = at_home
    scheduler = ReDiFScheduler.from_pretrained(folder)
    assert scheduler.arguments.items() >= {"guidance_scale": 6.0}.items()
    assert scheduler.check(teacher.source, **scheduler.arguments) == []


def test_what_differs_is_a_warning(at_home):
    teacher, folder = at_home
    scheduler, other = ReDiFScheduler.from_pretrained(folder), copy.copy(teacher.source)
    other.unet = copy.deepcopy(other.unet)
    with torch.no_grad():
        next(other.unet.parameters()).add_(1)
    other.get_list_adapters = lambda: {"unet": ["style"]}
    with pytest.warns(UserWarning, match="is not the one that the student was trained in") as caught:
        found = scheduler.check(other, guidance_scale=2.0)
    assert len(caught) == 1
    assert [text.split("used")[0] for text in found] == [
        "trained with guidance_scale=6.0, ",
        "trained with LoRAs [], ",
        "trained with other weights of unet, or in another precision",
    ]
    with pytest.warns(UserWarning, match="used in a StableDiffusionImg2ImgPipeline"):
        scheduler.check(ZOO["image_to_image"]().pipe)


def test_samples_of_another_shape_are_a_warning(at_home):
    """Seen by the scheduler itself, in the stock pipeline."""
    teacher, folder = at_home
    pipe = stock(teacher, ReDiFScheduler.from_pretrained(folder))
    with pytest.warns(UserWarning, match=r"trained with samples of shape \(4, 16, 16\)"):
        call(pipe, teacher, num_inference_steps=3, height=64, width=64)
    for wrong in ({"num_inference_steps": 5}, {"sigmas": [3.0, 1.0]}, {"timesteps": [900, 500]}):
        with pytest.raises(ValueError, match="has learned 3 steps: pass num_inference_steps=3"):
            call(pipe, teacher, **wrong)


def test_the_card(at_home):
    teacher, folder = at_home
    text = (folder / "README.md").read_text()
    for part in ("library_name: diffusers", "pipeline_tag: text-to-image", "guidance_scale", "ReDiFScheduler"):
        assert part in text
    teacher.source.register_to_config(_name_or_path="someone/tiny")
    assert home.trained_with(teacher)["base_model"] == "someone/tiny"


def test_a_student_of_no_pipeline_is_refused(tmp_path, ring):
    mdp = build_mdp(MDPSettings(teacher=ring, num_steps=2))
    Student(mdp, Policy(PolicyConfig((mdp.observation_size, mdp.action_size)))).save_pretrained(tmp_path / "student")
    with pytest.raises(ValueError, match="which is no pipeline that drives itself"):
        ReDiFPipeline.of(ZOO["stable_diffusion"]().pipe, tmp_path / "student")


# Without this library.


def test_a_pipeline_folder_opens_the_scheduler_without_this_library(tmp_path, monkeypatch):
    teacher = teacher_of(ZOO["ddpm"]())
    student_of(teacher).save_pretrained(tmp_path / "student")
    expected = shown(call(stock(teacher, ReDiFScheduler.from_pretrained(tmp_path / "student")), teacher,
                          num_inference_steps=3))  # fmt: skip
    pipe = tmp_path / "pipe"
    teacher.source.save_pretrained(pipe)
    shutil.rmtree(pipe / "scheduler")
    shutil.copytree(tmp_path / "student" / "scheduler", pipe / "scheduler")
    index = json.loads((pipe / "model_index.json").read_text())
    index["scheduler"] = ["redif_scheduler", "ReDiFScheduler"]
    (pipe / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="trust_remote_code"):
        diffusers.DiffusionPipeline.from_pretrained(pipe)
    with ours_forgotten():
        monkeypatch.setitem(sys.modules, "redif_env", None)
        with pytest.raises(ImportError):
            importlib.import_module("redif_env.diffusion.types")
        opened = diffusers.DiffusionPipeline.from_pretrained(pipe, trust_remote_code=True)
        assert type(opened.scheduler).__name__ == "ReDiFScheduler"
        found = shown(call(opened, teacher, num_inference_steps=3))
        monkeypatch.undo()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    teacher.close()


@pytest.mark.parametrize("name", ["sd3_base", "flux_base", "stable_diffusion"])
def test_levels_alone_are_a_stock_scheduler_s(name, tmp_path):
    """With the config and the arguments of the folder; with the pipeline's own shift they would be shifted twice."""
    teacher = teacher_of(ZOO[name]())
    student_of(teacher, solver="ddim", action="step").save_pretrained(tmp_path / "student")
    expected = shown(call(stock(teacher, ReDiFScheduler.from_pretrained(tmp_path / "student")), teacher,
                          num_inference_steps=3))  # fmt: skip
    folder = tmp_path / "student" / "stock"
    kind = json.loads((folder / "scheduler_config.json").read_text())["_class_name"]
    arguments = json.loads((folder / "arguments.json").read_text())
    found = shown(call(stock(teacher, getattr(diffusers, kind).from_pretrained(folder)), teacher, **arguments))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    if name != "stable_diffusion":
        twice = teacher.source.scheduler.from_config(teacher.source.scheduler.config, shift=3.0)
        assert not torch.allclose(shown(call(stock(teacher, twice), teacher, **arguments)), expected, rtol=0, atol=1e-3)
    teacher.close()


def test_more_than_levels_are_no_stock_scheduler_s(tmp_path):
    teacher = teacher_of(ZOO["sd3_base"]())
    scheduler = scheduler_of(student_of(teacher).mdp, student_of(teacher).mean_actions)
    with pytest.raises(ValueError, match="more was learned than levels"):
        stock_scheduler(scheduler)
    teacher.close()


def test_noise_that_steps_do_not_take_is_refused():
    """DDIMPipeline gives its scheduler an eta whatever it is."""
    scheduler = scheduler_of(build_mdp(MDPSettings(teacher="digits", num_steps=2)), torch.zeros(2, 7))
    scheduler.set_timesteps(2)
    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"eta=0\.5 .* a student's are deterministic"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=0.5)
    assert (
        scheduler.step(x, scheduler.timesteps[0], x, eta=0.0, use_clipped_model_output=None).prev_sample.shape
        == x.shape
    )
