"""Built-in teachers as stock pipelines that drive themselves, against the same networks called directly."""

import diffusers
import gymnasium as gym
import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from redif_env import Teacher, load_teacher
from redif_env.storage.files import ASSETS


class LabelledPipeline(diffusers.DiffusionPipeline):
    """A user's own pipeline by class, which no adapter knows: diffusers' DDPMPipeline takes no labels."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, class_labels, generator=None, num_inference_steps=10, output_type="pt"):
        shape = (len(class_labels), self.unet.config.in_channels, *2 * (self.unet.config.sample_size,))
        self.scheduler.set_timesteps(num_inference_steps)
        x = randn_tensor(shape, generator=generator) * getattr(self.scheduler, "init_noise_sigma", 1.0)
        for t in self.scheduler.timesteps:
            scaled = self.scheduler.scale_model_input(x, t) if hasattr(self.scheduler, "scale_model_input") else x
            predicted = self.unet(scaled, t.repeat(len(x)), class_labels=class_labels).sample
            x = self.scheduler.step(predicted, t, x).prev_sample
        return diffusers.ImagePipelineOutput(images=(x / 2 + 0.5).clamp(0, 1))


def driven(name):
    stock = diffusers.DDPMPipeline.from_pretrained(ASSETS / name, low_cpu_mem_usage=False)
    if name == "digits":
        return Teacher.from_pipeline(stock, run_size=64)
    labels = [{"class_labels": torch.tensor([label])} for label in range(10)]
    return Teacher.from_pipeline(LabelledPipeline(stock.unet, stock.scheduler), labels, run_size=64)


@pytest.mark.parametrize("name", ["digits", "mnist", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_an_agent_sees_and_earns_the_same(name, tmp_path, monkeypatch):
    """Same seeds, same actions: what a training program would be given is the same to rounding."""
    pipeline = driven(name)
    assert pipeline.schedule.half_logsnr_at(torch.tensor([0.3])).allclose(
        load_teacher(name).schedule.half_logsnr_at(torch.tensor([0.3])), rtol=1e-6
    )
    monkeypatch.setenv("REDIF_CACHE", str(tmp_path))
    results = []
    for teacher in (name, pipeline):
        # Flows begin with the noise as it is when they are driven; from pure noise on that is no difference.
        task = {"teacher": teacher, "num_steps": 4, "reference_size": 8, "teacher_steps": 6, "grid": "time"}
        envs = gym.make_vec("ReDiF-v0", num_envs=8, **task)
        actions = np.random.default_rng(0)
        seen, rewards = [envs.reset(seed=0)[0]], []
        for _ in range(8):
            step = envs.step(actions.uniform(-1, 1, envs.action_space.shape).astype(np.float32))
            seen.append(step[0])
            rewards.append(step[1])
        results.append((np.stack(seen), np.stack(rewards)))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=2e-3)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=2e-3)
    pipeline.close()


def test_a_pipeline_that_takes_no_labels_is_refused():
    with pytest.raises(ValueError, match="its network asks for class labels, which its call does not take"):
        Teacher.from_pipeline(diffusers.DDPMPipeline.from_pretrained(ASSETS / "mnist", low_cpu_mem_usage=False))
