import copy

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import nn

from redif_env import load_teacher
from redif_env.diffusion.schedules import VariancePreservingSchedule
from redif_env.diffusion.types import PredictionType
from redif_env.teachers.teacher import GaussianMixtureTeacher, Teacher

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
HALF_LOGSNR = torch.tensor([-3.0, -0.5, 0.5, 3.0], dtype=torch.float64)


class Constant(nn.Module):
    """Returns a fixed output for any input."""

    def __init__(self, answer):
        super().__init__()
        self.register_buffer("answer", answer)

    def forward(self, x, timestep):
        return self.answer


@pytest.mark.parametrize("kind", list(PredictionType))
def test_prediction_types_are_equivalent(kind):
    """For x = alpha x0 + sigma eps, each prediction type gives back x0 and eps."""
    schedule = VariancePreservingSchedule.from_diffusers()
    generator = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    level = schedule.level(HALF_LOGSNR)
    alpha, sigma = level.alpha[:, None], level.sigma[:, None]
    forms = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}
    forms["flow_prediction"] = eps - x0
    teacher = Teacher(Constant(forms[kind.value]), schedule, (3,), kind)
    prediction = teacher.predict(alpha * x0 + sigma * eps, HALF_LOGSNR, schedule.timestep(HALF_LOGSNR))
    torch.testing.assert_close(prediction.x0, x0)
    torch.testing.assert_close(prediction.eps, eps)


def test_pipeline_folder_is_read_with_its_schedule_and_prediction_type(pipeline_folder):
    """Ten DDIM steps by us and by diffusers, both from the folder alone, make the same images."""
    teacher = load_teacher(pipeline_folder)
    assert teacher.sample_shape == (3, 8, 8)
    assert teacher.prediction_type is PredictionType.V_PREDICTION
    scheduler = DDIMScheduler.from_pretrained(pipeline_folder, subfolder="scheduler", clip_sample=False)
    timestep = torch.tensor([500])
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = teacher.network(x, timestep).sample
        half_logsnr = teacher.schedule.half_logsnr(timestep.expand(2))
        ours = teacher.predict(x, half_logsnr, timestep.expand(2).double()).x0
    scheduler.set_timesteps(10)
    torch.testing.assert_close(ours, scheduler.step(output, timestep, x).pred_original_sample, rtol=0, atol=1e-4)


def test_saved_teacher_is_the_same_and_opens_in_diffusers(pipeline_folder, tmp_path):
    teacher = load_teacher(pipeline_folder)
    teacher.save_pretrained(tmp_path / "copy")
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_teacher(tmp_path / "copy").endpoint(noise, 3), teacher.endpoint(noise, 3))
    assert isinstance(DDPMPipeline.from_pretrained(tmp_path / "copy", low_cpu_mem_usage=False).unet, UNet2DModel)


def test_saved_mixture_is_the_same(ring, tmp_path):
    ring.save_pretrained(tmp_path / "ring")
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load_teacher(tmp_path / "ring").endpoint(noise, 5), ring.endpoint(noise, 5))


def test_a_plain_module_cannot_be_saved(tmp_path):
    teacher = Teacher(Constant(X), VariancePreservingSchedule.from_diffusers(), (3,))
    with pytest.raises(TypeError, match="its network is a Constant"):
        teacher.save_pretrained(tmp_path / "never")
    assert list(tmp_path.iterdir()) == []


def test_unknown_teachers_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ValueError, match=r"teacher='.*nothing' cannot be loaded: it is no built-in name \(gaussian-ring, digits, "
    ):
        load_teacher(tmp_path / "nothing")


def test_pickled_weights_are_refused(tmp_path):
    """A folder whose weights are only there as a pickle is not opened."""
    network = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_teacher(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_embed_type": "identity"}, "only class labels can be given"),
        ({"out_channels": 4}, "predicts 4 channels"),
    ],
)
def test_unsupported_models_are_refused(tmp_path, options, message):
    settings = {"sample_size": 8, "block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1} | options
    network = UNet2DModel(**settings, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    network.save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match=message):
        load_teacher(tmp_path)


def test_endpoints_do_not_depend_on_how_noise_is_split(ring):
    noise = torch.randn(700, 2, generator=torch.Generator().manual_seed(0))
    together = ring.endpoint(noise, 4)
    apart = torch.cat([ring.endpoint(part, 4) for part in noise.split(100)])
    torch.testing.assert_close(together, apart)
    with pytest.raises(ValueError, match=r"noise must have shape \(batch, \(2,\)\)"):
        ring.endpoint(torch.zeros(3, 5))


def test_a_teacher_is_frozen_and_shared_by_copies(pipeline_folder):
    teacher = load_teacher(pipeline_folder)
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert copy.deepcopy(teacher) is teacher


def test_fingerprints_of_teachers_differ(ring):
    other = GaussianMixtureTeacher(ring.network.means + 1e-6, ring.network.stds, name=ring.name)
    cosine = VariancePreservingSchedule.from_diffusers("squaredcos_cap_v2")
    rescheduled = GaussianMixtureTeacher(ring.network.means, ring.network.stds, schedule=cosine)
    assert ring.fingerprint == GaussianMixtureTeacher.ring().fingerprint
    assert len({ring.fingerprint, other.fingerprint, rescheduled.fingerprint}) == 3
