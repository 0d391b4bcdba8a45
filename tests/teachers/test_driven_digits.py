"""The digits as a stock pipeline that drives itself, against the same network called directly."""

import diffusers
import gymnasium as gym
import numpy as np
import torch

from redif_env import Teacher, load_teacher
from redif_env.storage.files import ASSETS


def test_an_agent_sees_and_earns_the_same(tmp_path, monkeypatch):
    """Same seeds, same actions: what a training program would be given is the same to rounding."""
    pipe = diffusers.DDPMPipeline.from_pretrained(ASSETS / "digits", low_cpu_mem_usage=False)
    driven = Teacher.from_pipeline(pipe, run_size=64)
    assert driven.schedule.half_logsnr_at(torch.tensor([0.3])).allclose(
        load_teacher("digits").schedule.half_logsnr_at(torch.tensor([0.3])), rtol=1e-6
    )
    monkeypatch.setenv("REDIF_CACHE", str(tmp_path))
    results = []
    for teacher in ("digits", driven):
        envs = gym.make_vec("ReDiF-v0", num_envs=8, teacher=teacher, num_steps=4, reference_size=64, teacher_steps=20)
        actions = np.random.default_rng(0)
        seen, rewards = [envs.reset(seed=0)[0]], []
        for _ in range(12):
            step = envs.step(actions.uniform(-1, 1, envs.action_space.shape).astype(np.float32))
            seen.append(step[0])
            rewards.append(step[1])
        results.append((np.stack(seen), np.stack(rewards)))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=2e-3)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=2e-3)
    driven.close()
