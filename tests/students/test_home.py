"""A student of a pipeline, put into the stock pipeline as a scheduler: the same samples."""

import copy
import json
import shutil

import diffusers
import pytest
import torch

from redif_env.mdp.policies import Policy
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.students.export.home import differences, save_scheduler
from redif_env.students.export.redif_scheduler import ReDiFStepsScheduler
from redif_env.students.student import Student
from tests.teachers.driving import teacher_of
from tests.teachers.zoo import ZOO

NAMES = (
    "stable_diffusion",
    "sdxl_base",
    "sdxl_edm",
    "sd3_base",
    "flux_base",
    "qwen_image",
    "wan",
    "wan_two_experts",
    "mochi",
)


def student_of(teacher):
    mdp = build_mdp(MDPSettings(teacher=teacher, num_steps=3, observation="steps", grid="time"))
    actions = torch.rand(3, mdp.action_size, generator=torch.Generator().manual_seed(3)) - 0.5
    return Student(mdp, Policy.from_table(actions, mdp.observation_size))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_the_stock_pipeline_makes_the_students_samples(name, tmp_path):
    teacher = teacher_of(ZOO[name]())
    student, drive = student_of(teacher), teacher.drive
    save_scheduler(student, tmp_path / "student")
    scheduler = ReDiFStepsScheduler.from_pretrained(tmp_path / "student" / "scheduler")
    noise = torch.randn(1, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    expected = teacher.images(student.trajectory(noise)[-1].x)
    pipe = copy.copy(teacher.source)
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    settings = {**drive.shared, **drive.conditions[0], "latents": noise, "num_inference_steps": 3, "output_type": "pt"}
    with torch.no_grad():
        output = pipe(**settings)
    found = 2 * torch.as_tensor(output[0]) - 1
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=2e-4)
    with pytest.raises(ValueError, match="has learned 3 steps"):
        pipe(**settings | {"num_inference_steps": 5})
    assert differences(scheduler, teacher.source, **drive.shared) == []
    changed = {"guidance_scale": 1.25}
    if "guidance_scale" in drive.shared:
        assert "guidance_scale" in differences(scheduler, teacher.source, **changed)[0]
    teacher.close()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_pipeline_folder_opens_the_scheduler_without_this_package(tmp_path):
    teacher = teacher_of(ZOO["ddpm"]())
    save_scheduler(student_of(teacher), tmp_path / "student")
    teacher.source.save_pretrained(tmp_path / "pipe")
    shutil.rmtree(tmp_path / "pipe" / "scheduler")
    shutil.copytree(tmp_path / "student" / "scheduler", tmp_path / "pipe" / "scheduler")
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    index["scheduler"] = ["redif_scheduler", "ReDiFStepsScheduler"]
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="trust_remote_code"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipe", trust_remote_code=True)
    assert type(pipe.scheduler).__name__ == "ReDiFStepsScheduler"
    assert not type(pipe.scheduler).__module__.startswith("redif_env")
    text = (tmp_path / "pipe" / "scheduler" / "redif_scheduler.py").read_text()
    assert "redif_env" not in text
    pipe.set_progress_bar_config(disable=True)
    images = pipe(num_inference_steps=3, output_type="pt", generator=torch.Generator().manual_seed(0)).images
    assert torch.as_tensor(images).isfinite().all()
    teacher.close()
