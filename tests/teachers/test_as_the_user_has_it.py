"""Pipelines as their users have them: LoRAs, offloading, slicing, compilation, half precision, image adapters."""

import copy
import itertools

import diffusers
import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance

from redif_env import Teacher
from redif_env.diffusion.solvers import SOLVERS, sample
from tests.teachers.driving import row_errors, teacher_of, zero_action_error
from tests.teachers.zoo import ZOO, Entry, noise

pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture
def entry():
    return ZOO["stable_diffusion"]()


def standing(pipe):
    """Where every tensor of a pipeline is, of what type, and at which address."""
    return {
        (name, key): (tensor.device, tensor.dtype, tensor.data_ptr())
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
        for key, tensor in itertools.chain(part.named_parameters(), part.named_buffers())
    }


def check(entry, tolerance=1e-5):
    """As the stock pipeline steps; rows at levels of their own as alone; and all tensors stay where they are."""
    before = standing(entry.pipe)
    teacher = teacher_of(entry)
    assert zero_action_error(teacher) < tolerance
    error, control = row_errors(teacher)
    assert error < tolerance
    if teacher.drive.dtype == torch.float32:  # elsewhere rounding is as large as what is left out
        assert control > 10 * error
    assert standing(entry.pipe) == before
    assert type(entry.pipe) is diffusers.StableDiffusionPipeline
    return teacher


def predicted(teacher):
    x = torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    level = teacher.schedule.half_logsnr_at(torch.full((2,), 0.6).double())
    return teacher.predict(x, level, teacher.schedule.timestep(level)).eps


def with_lora(pipe, folder):
    """Load a LoRA of random weights, as users do."""
    from peft import LoraConfig, get_peft_model_state_dict

    network = copy.deepcopy(pipe.unet)
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(network))
    pipe.load_lora_weights(folder, adapter_name="style")


@pytest.mark.parametrize("fused", [False, True])
def test_loras(entry, tmp_path, fused):
    pytest.importorskip("peft")
    bare = predicted(teacher_of(entry))
    with_lora(entry.pipe, tmp_path / "lora")
    unfused = predicted(teacher_of(entry))
    if fused:
        entry.pipe.fuse_lora()
    teacher = check(entry)
    assert not torch.allclose(predicted(teacher), bare, atol=1e-3)
    torch.testing.assert_close(predicted(teacher), unfused, rtol=0, atol=1e-4)
    from redif_env.students.export.redif_scheduler import loras_of

    assert loras_of(entry.pipe) == ["style"]
    teacher.close()


def test_attention_slicing(entry):
    entry.pipe.enable_attention_slicing()
    check(entry).close()


def test_model_offloading(entry):
    """What ``enable_model_cpu_offload`` puts around each network, with the host for the device."""
    accelerate = pytest.importorskip("accelerate")
    hook = None
    for name in ("text_encoder", "unet", "vae"):
        _, hook = accelerate.cpu_offload_with_hook(getattr(entry.pipe, name), "cpu", prev_module_hook=hook)
    check(entry).close()
    assert all(hasattr(getattr(entry.pipe, name), "_hf_hook") for name in ("text_encoder", "unet", "vae"))


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offloading(entry, kind):
    host = torch.device("cpu")
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    entry.pipe.unet.enable_group_offload(host, host, offload_type=kind, **blocks)
    check(entry).close()


def by_torchao(network):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(network, quantization.Int8WeightOnlyConfig())
    assert any(isinstance(weight, quantization.Int8Tensor) for weight in network.parameters())


def by_bitsandbytes(network):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    for name, layer in list(network.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            quantised = bitsandbytes.nn.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=torch.float32
            )
            quantised.load_state_dict(layer.state_dict())
            network.set_submodule(name, quantised.to("cpu"))
    assert any(parameter.dtype == torch.uint8 for parameter in network.parameters())


@pytest.mark.parametrize("quantise", [by_torchao, by_bitsandbytes])
def test_quantised_networks(entry, quantise):
    full = teacher_of(entry)
    bare, fingerprint = predicted(full), full.fingerprint
    quantise(entry.pipe.unet)
    teacher = check(entry)
    error = (predicted(teacher) - bare).norm() / bare.norm()
    assert 1e-4 < error < 0.3  # the quantised network answers
    assert teacher.fingerprint != fingerprint
    teacher.close()


@pytest.mark.slow
def test_a_compiled_network(entry):
    bare = predicted(teacher_of(entry))
    entry.pipe.unet = torch.compile(entry.pipe.unet, backend="eager")
    teacher = check(entry)
    torch.testing.assert_close(predicted(teacher), bare, rtol=0, atol=1e-5)
    teacher.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(entry, dtype):
    """Networks answer in their type; samples between calls are as the pipeline keeps them."""
    entry.pipe.to(dtype)
    teacher = check(entry, 5e-2)
    assert teacher.drive.dtype == dtype
    teacher.close()


def ip_adapter_weights(unet, width):
    """Weights of an image adapter, by the names of its files."""
    generator, layers = torch.Generator().manual_seed(0), {}
    cross = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(cross):
        to_k = unet.get_submodule(name.removesuffix(".processor")).to_k.weight
        for part in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * number + 1}.{part}.weight"] = 0.1 * torch.randn(to_k.shape, generator=generator)
    size = to_k.shape[1]
    projection = {
        "proj.weight": torch.randn(4 * size, width, generator=generator), "proj.bias": torch.zeros(4 * size),
        "norm.weight": torch.ones(size), "norm.bias": torch.zeros(size),
    }  # fmt: skip
    return {"image_proj": projection, "ip_adapter": layers}


def test_an_image_adapter(entry):
    """One picture for all samples, with and without which guidance predicts."""
    bare = predicted(teacher_of(entry))
    entry.pipe.unet._load_ip_adapter_weights([ip_adapter_weights(entry.pipe.unet, 8)], low_cpu_mem_usage=False)
    faces = [torch.cat([torch.zeros(1, 1, 8), noise("face", row, 1, 8)]) for row in range(2)]
    teacher = check(Entry(entry.pipe, entry.conditions, {**entry.shared, "ip_adapter_image_embeds": [faces[0]]}))
    assert not torch.allclose(predicted(teacher), bare, atol=1e-3)
    teacher.close()
    with pytest.raises(ValueError, match="ip_adapter_image cannot be given for a batch"):
        Teacher.from_pipeline(entry.pipe, ["a cat"], ip_adapter_image=torch.zeros(1, 3, 8, 8))
    differing = [{"prompt": "a cat", "ip_adapter_image_embeds": [face]} for face in faces]
    with pytest.raises(ValueError, match="pictures of image adapters are common to a batch"):
        Teacher.from_pipeline(entry.pipe, differing)


@pytest.mark.slow
def test_guiders_that_remember_are_not_shared_by_calls():
    """Two calls beside each other, each of one sample, have a momentum each."""
    entry = ZOO["hunyuan_video_15"]()
    guider = AdaptiveProjectedGuidance(guidance_scale=4.0, adaptive_projected_guidance_momentum=-0.75)
    entry.pipe.register_modules(guider=guider)
    together, apart = (
        Teacher.from_pipeline(entry.pipe, entry.conditions, run_size=size, **entry.shared) for size in (2, 1)
    )
    x = torch.randn(2, *together.sample_shape, generator=torch.Generator().manual_seed(1))
    rows = torch.tensor([0, 1])

    def sampled(teacher, steps=4):
        return sample(teacher, SOLVERS["ddim"], teacher.own_grid(steps), x, steps, rows)

    one = sampled(together)
    torch.testing.assert_close(sampled(apart), one, rtol=0, atol=1e-5)
    assert guider.momentum_buffer is None
    fingerprint = together.fingerprint
    entry.pipe.register_modules(guider=AdaptiveProjectedGuidance(guidance_scale=4.0))
    forgetful = Teacher.from_pipeline(entry.pipe, entry.conditions, **entry.shared)
    assert forgetful.fingerprint != fingerprint
    assert (sampled(forgetful) - one).abs().max() > 0.01
