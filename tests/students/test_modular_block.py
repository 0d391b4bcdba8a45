"""A student as a block of modular pipelines, in the place of the step after the network."""

import importlib

import pytest
import torch
from diffusers.modular_pipelines import ModularPipelineBlocks

from redif_env import ReDiFScheduler
from tests.students.test_home import call, shown, stock, student_of
from tests.teachers.driving import teacher_of
from tests.teachers.zoo import ZOO

pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*:UserWarning:diffusers"),
]

PACKAGES = {
    "flux_base": ("FluxAutoBlocks", ("text_encoder",), {}),
    "qwen_image": ("QwenImageAutoBlocks", ("text_encoder",), {"guider": 4.0}),
    "sdxl_base": ("StableDiffusionXLAutoBlocks", (), {"guider": 5.0}),
    "wan": ("WanBlocks", ("text_encoder",), {"guider": 5.0}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "flux_base" else [pytest.mark.slow]) for name in PACKAGES]
)
def test_the_block_repository_makes_the_student_s_samples(name, tmp_path):
    """As the student's scheduler does, in the same blocks and in the stock pipeline; the stock scheduler does not."""
    teacher = teacher_of(ZOO[name]())
    student_of(teacher).save_pretrained(tmp_path / "student")
    scheduler = ReDiFScheduler.from_pretrained(tmp_path / "student")
    step = ModularPipelineBlocks.from_pretrained(tmp_path / "student" / "block", trust_remote_code=True)
    latents = torch.randn(1, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    found = modular(teacher, name, latents, step.scheduler, step)
    expected = shown(call(stock(teacher, scheduler), teacher, num_inference_steps=3, latents=latents))
    torch.testing.assert_close(found.reshape(expected.shape), expected.float(), rtol=0, atol=1e-3)
    assert not torch.allclose(found, modular(teacher, name, latents, teacher.source.scheduler, None), rtol=0, atol=2e-3)
    teacher.close()


def modular(teacher, name, latents, scheduler, step):
    """What the package's blocks make with a scheduler, and with a block in the place of the step after the network."""
    kind, without, guiders = PACKAGES[name]
    blocks = getattr(importlib.import_module("diffusers.modular_pipelines"), kind)()
    if blocks._workflow_map:
        blocks = blocks.get_workflow("text2image")
    for part in without:
        blocks.sub_blocks.pop(part)
    pipe = (blocks if step is None else step.put_into(blocks)).init_pipeline()
    parts = {**teacher.source.components, "scheduler": scheduler}
    pipe.update_components(**{key: parts[key] for key in pipe.component_names if parts.get(key) is not None})
    for guider, scale in guiders.items():
        pipe.update_components(**{guider: type(getattr(pipe, guider))(guidance_scale=scale)})
    pipe.set_progress_bar_config(disable=True)
    known = {parameter.name for parameter in blocks.inputs}
    given = {**teacher.drive.shared, **teacher.drive.conditions[0], "latents": latents.clone()}
    given = {key: value for key, value in given.items() if key in known or key.endswith(("embeds", "embeds_mask"))}
    output = pipe(**given, num_inference_steps=3, output_type="pt")
    return torch.as_tensor(
        next(value for key in ("images", "videos") if (value := output.get(key)) is not None)
    ).float()


def test_the_block_wants_its_scheduler_and_its_place(tmp_path):
    teacher = teacher_of(ZOO["flux_base"]())
    student_of(teacher).save_pretrained(tmp_path / "student")
    step = ModularPipelineBlocks.from_pretrained(tmp_path / "student" / "block", trust_remote_code=True)
    with pytest.raises(ValueError, match="has no block named after_denoiser"):
        step.put_into(ModularPipelineBlocks())
    with pytest.raises(ValueError, match="trust_remote_code"):
        ModularPipelineBlocks.from_pretrained(tmp_path / "student" / "block")
    with pytest.raises(ValueError, match="has a FlowMatchEulerDiscreteScheduler, whose timesteps are not this student"):
        step(teacher.source, type("State", (), {"latents": None})(), 0, 0)
    teacher.close()
