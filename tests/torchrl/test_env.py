"""TorchRL's environment: its own checks, the same numbers as Gymnasium's, and a student of what it trains."""

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("torchrl", reason="needs redif-env[torchrl]")
# TorchRL and tensordict warn of their own changes to come.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

from tensordict.nn import TensorDictModule  # noqa: E402
from torchrl.envs import Compose, ObservationNorm, RewardSum, StepCounter, TransformedEnv, check_env_specs  # noqa: E402

from redif_env import Student  # noqa: E402
from redif_env.torchrl import ReDiFEnv  # noqa: E402

TINY = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20}


@pytest.mark.parametrize("options", [{}, {"observation": "steps"}, {"min_steps": 2}, {"prices": (0.01, 0.1)}])
def test_torchrls_own_check(options):
    check_env_specs(ReDiFEnv(4, **TINY, **options))


def test_numbers_are_gymnasiums():
    """Step by step, over resets: observations, rewards and ends."""
    ours = ReDiFEnv(6, **TINY, num_steps=3, seed=5)
    theirs = gym.make_vec("ReDiF-v0", num_envs=6, **TINY, num_steps=3, autoreset_mode="Disabled")
    data, (expected, _) = ours.reset(), theirs.reset(seed=5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(7):
        np.testing.assert_array_equal(data["observation"].numpy(), expected)
        data["action"] = torch.rand(6, 5, generator=generator) * 2 - 1
        stepped, data = ours.step_and_maybe_reset(data.clone())
        expected, rewards, terminated, *_ = theirs.step(stepped["action"].numpy())
        np.testing.assert_array_equal(stepped["next", "observation"].numpy(), expected)
        np.testing.assert_allclose(stepped["next", "reward"][:, 0].numpy(), rewards, rtol=1e-6)
        np.testing.assert_array_equal(stepped["next", "done"][:, 0].numpy(), terminated)
        if terminated.any():
            expected, _ = theirs.reset(options={"reset_mask": terminated})


def test_groups_share_their_noise_and_compare():
    env = ReDiFEnv(8, group_size=4, **TINY, seed=0)
    data = env.rollout(4)
    assert torch.equal(data["observation"][:4, 0], data["observation"][:1, 0].expand(4, -1))
    assert not torch.equal(data["observation"][0, 0], data["observation"][4, 0])
    last = data["next"][:, -1]
    torch.testing.assert_close(last["reward"].reshape(2, 4).mean(1), torch.zeros(2), atol=1e-6, rtol=0)
    paid = last["task_reward"].reshape(2, 4)
    torch.testing.assert_close(last["reward"].reshape(2, 4), paid - paid.mean(1, keepdim=True))


def test_it_goes_on_from_its_state():
    first, second = ReDiFEnv(4, **TINY, seed=0), ReDiFEnv(4, **TINY, seed=9)
    first.reset(), second.reset()
    second.load_state_dict(first.state_dict())
    action = torch.full((4, 5), 0.2)
    for env in (first, second):
        env.data = env.step(env.reset().set("action", action))
    assert torch.equal(first.data["next", "observation"], second.data["next", "observation"])


def test_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="observation='sample' is not supported with TorchRL"):
        ReDiFEnv(2, **TINY, observation="sample", action="noise")
    with pytest.raises(ValueError, match="group_size must divide num_envs=6, got 4"):
        ReDiFEnv(6, group_size=4, **TINY)
    with pytest.raises(ValueError, match="group_size=2 needs episodes of one length"):
        ReDiFEnv(6, group_size=2, **TINY, min_steps=2)
    env = ReDiFEnv(2, **TINY)
    with pytest.raises(ValueError, match=r"actions must be finite, but those of sub-environments \[1\]"):
        env.step(env.reset().set("action", torch.tensor([[0.0] * 5, [torch.nan] * 5])))


def test_students_of_transformed_environments():
    """What only counts is carried; what changes observations is refused."""
    env = ReDiFEnv(4, **TINY)
    size = env.mdp.observation_size
    policy = torch.nn.Sequential(torch.nn.Linear(size, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)).requires_grad_(False)
    Student.from_policy(policy, TransformedEnv(env, Compose(RewardSum(), StepCounter())))
    norm = ObservationNorm(0.0, 2.0, in_keys=["observation"], out_keys=["observation"])
    with pytest.raises(ValueError, match="env has the transform ObservationNorm, which cannot be read"):
        Student.from_policy(policy, TransformedEnv(env, norm))


def test_the_program_learns(tmp_path):
    """More than the base solver on the ring, and the student is exported."""
    from agents import torchrl_ppo

    args = torchrl_ppo.Args(
        **TINY,
        reward=(("endpoint", 1.0),),
        network_calls=12_000,
        num_envs=32,
        out=tmp_path,
        test_size=32,
        baselines="none",
    )
    torchrl_ppo.main(args)
    student = Student.from_pretrained(tmp_path / "student")
    env = ReDiFEnv(32, **TINY, seed=3)

    def paid(policy):
        return env.rollout(4, TensorDictModule(policy, ["observation"], ["action"]))["next", "reward"].sum()

    assert paid(student.policy) > 0.8 * paid(lambda seen: torch.zeros(32, 5))
