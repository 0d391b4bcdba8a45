"""A student is what was trained: what stands between environment and policy is carried, or the student is refused."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import (
    ClipAction,
    FrameStackObservation,
    NormalizeObservation,
    RescaleAction,
    RescaleObservation,
    TransformAction,
    TransformObservation,
)
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env as stock_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

import redif_env  # noqa: F401
from redif_env import Student
from redif_env.sb3 import make_vec_env
from redif_env.sb3.wrappers import between, cores_of

# Gymnasium warns of the bounds of whatever its own wrappers make.
pytestmark = pytest.mark.filterwarnings("ignore:.*WARN:UserWarning")

TINY = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20}
QUICK = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "learning_rate": 1e-2, "seed": 0}


class Mix(BaseFeaturesExtractor):
    """A features extractor of one's own, of the observation's size."""

    def __init__(self, space):
        super().__init__(space, space.shape[0])
        self.layer = torch.nn.Linear(space.shape[0], space.shape[0])

    def forward(self, x):
        return self.layer(x) * 3


class Zeroed(gym.ActionWrapper):
    def action(self, action):
        return np.zeros_like(action)


class Secretive(gym.Wrapper):
    """Of no kind that says what it does: only what comes of it shows."""

    def step(self, action):
        return self.env.step(action / 2)


def wrapped(wrapper, count=1):
    return stock_vec_env(lambda: wrapper(gym.make("ReDiF-v0", **TINY)), count)


def trained(env, kind=PPO, steps=96, **options):
    settings = QUICK if kind is PPO else {"seed": 0, "learning_starts": 16, "learning_rate": 1e-2}
    return kind("MlpPolicy", env, **{**settings, **options}).learn(steps)


def own_samples(agent, env):
    """What the agent itself makes in its environment: initial noises, finished samples."""
    if isinstance(env, VecNormalize):
        env.training = False
    observation = env.reset()
    (core, *others) = cores_of(env)
    assert not others
    noise = core.state.x.clone()
    for _ in range(4):
        observation, *_ = env.step(agent.predict(observation, deterministic=True)[0])
    return noise, core.last_transition.next_state.x


CARRIED = {
    "nothing": lambda: make_vec_env(8, **TINY),
    "VecNormalize": lambda: VecNormalize(make_vec_env(8, **TINY)),
    "VecNormalize that clips": lambda: VecNormalize(make_vec_env(8, **TINY), clip_obs=0.5),
    "VecNormalize of rewards": lambda: VecNormalize(VecMonitor(make_vec_env(8, **TINY)), norm_obs=False),
    "NormalizeObservation": lambda: wrapped(NormalizeObservation),
    "RescaleAction": lambda: wrapped(lambda env: RescaleAction(env, np.float32(-0.5), np.float32(0.25))),
    "RescaleObservation": lambda: wrapped(lambda env: RescaleObservation(env, np.float32(-1), np.float32(3))),
    "all of them": lambda: VecNormalize(
        wrapped(lambda env: RescaleAction(RescaleObservation(env, -1.0, 1.0), np.float32(-2), np.float32(1)))
    ),
}


@pytest.mark.parametrize("kind", CARRIED)
def test_affine_wrappers_go_with_the_student(kind, tmp_path):
    """The agent's own samples in its own environment are the student's, saved and loaded."""
    env = CARRIED[kind]()
    agent = trained(env)
    student = Student.from_agent(agent)
    noise, expected = own_samples(agent, env)
    assert student.policy.linears[-1].weight.abs().max() > 1e-3  # something was learned
    torch.testing.assert_close(student(noise=noise), expected, rtol=0, atol=2e-3)
    student.save_pretrained(tmp_path / "student")
    # The weights are the same; products of matrices differ by where these lie in memory.
    loaded = Student.from_pretrained(tmp_path / "student")
    torch.testing.assert_close(loaded(noise=noise), student(noise=noise), rtol=0, atol=1e-6)


def test_a_squashed_actor_takes_rescaled_actions_as_they_are():
    env = wrapped(lambda env: RescaleAction(env, np.float32(-0.5), np.float32(0.25)))
    agent = trained(env, SAC, 20)
    noise, expected = own_samples(agent, env)
    torch.testing.assert_close(Student.from_agent(agent)(noise=noise), expected, rtol=0, atol=2e-3)


def test_a_normalised_blind_policy_is_still_a_table():
    env = VecNormalize(make_vec_env(8, **TINY, observation="steps"))
    student = Student.from_agent(trained(env, policy_kwargs={"net_arch": []}))
    assert student.fixed
    assert len(student.steps()) == 4


REFUSED = {
    "Zeroed": lambda: wrapped(Zeroed),
    "TransformObservation": lambda: wrapped(lambda env: TransformObservation(env, np.tanh, env.observation_space)),
    "TransformAction": lambda: wrapped(lambda env: TransformAction(env, np.tanh, env.action_space)),
    "ClipAction": lambda: wrapped(lambda env: RescaleAction(ClipAction(env), -1.0, 1.0)),
    "FrameStackObservation": lambda: wrapped(lambda env: FrameStackObservation(env, 2)),
    "VecFrameStack": lambda: VecFrameStack(make_vec_env(8, **TINY), 2),
    "Secretive": lambda: wrapped(Secretive),
    "different statistics": lambda: wrapped(NormalizeObservation, 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_student_can_carry_is_refused_by_name(name):
    try:
        agent = trained(REFUSED[name]())
    except ValueError:
        pytest.skip("cannot be trained on at all")
    with pytest.raises(ValueError, match=name):
        Student.from_agent(agent)


def test_features_extractors_are_refused_by_name():
    agent = trained(make_vec_env(8, **TINY), policy_kwargs={"features_extractor_class": Mix})
    with pytest.raises(ValueError, match="features extractor Mix"):
        Student.from_agent(agent)


def test_memories_are_refused_by_name():
    contrib = pytest.importorskip("sb3_contrib")
    agent = contrib.RecurrentPPO("MlpLstmPolicy", make_vec_env(8, **TINY), n_steps=8, batch_size=32, n_epochs=1)
    with pytest.raises(ValueError, match="LSTM"):
        Student.from_agent(agent)


def test_a_student_of_other_decisions_is_refused():
    """The last net: whatever makes the agent's actions others than those of its layers."""
    agent = trained(make_vec_env(8, **TINY))
    Student.from_agent(agent)
    predict = agent.predict

    def other(*arguments, **options):
        action, state = predict(*arguments, **options)
        return action * 0.9, state

    agent.predict = other
    with pytest.raises(ValueError, match=r"does not decide as the agent does: at step 1 they differ by 0\."):
        Student.from_agent(agent)


def test_the_check_leaves_the_environment_as_it_is():
    env = VecNormalize(make_vec_env(8, **TINY))
    agent = trained(env)
    core, count = cores_of(env)[0], env.obs_rms.count
    before = core.state_dict()
    Student.from_agent(agent)
    after = core.state_dict()
    assert env.training
    assert env.obs_rms.count == count
    assert all(torch.equal(before["state"][name], after["state"][name]) for name in before["state"])
    assert str(before["draws"]["generators"]) == str(after["draws"]["generators"])


@pytest.mark.slow
def test_environments_in_other_processes_are_read_too():
    """The outermost wrapper, what it has learned, and whatever is below. A new process imports what the id names."""
    env = SubprocVecEnv([lambda: gym.wrappers.NormalizeObservation(gym.make("redif_env:ReDiF-v0", **TINY))], "spawn")
    agent = trained(env)
    maps = between(env)
    assert maps.names == ("PassiveEnvChecker", "OrderEnforcing", "NormalizeObservation")
    assert np.abs(maps.mean).max() > 0
    assert Student.from_agent(agent)(3, seed=0).isfinite().all()
    env.close()


@pytest.mark.slow
def test_what_cannot_be_sent_from_other_processes_is_refused():
    def reward(transition):
        return transition.next_state.x.flatten(1).mean(dim=1)

    env = SubprocVecEnv([lambda: gym.make("redif_env:ReDiF-v0", **TINY, reward=reward)], "spawn")
    with pytest.raises(ValueError, match="pass env= with a DummyVecEnv"):
        between(env)


def test_maps_compose():
    """The innermost first: what the policy sees is what the chain makes, number by number."""
    env = CARRIED["all of them"]()
    trained(env)
    env.training = False
    maps, seen = between(env), env.reset()
    (core,) = cores_of(env)
    raw = core.mdp.observe(core.state).double().numpy()
    np.testing.assert_allclose(((raw - maps.mean) * maps.scale).clip(-maps.clip, maps.clip), seen, atol=2e-3)
    assert maps.names[-1] == "VecNormalize"
    assert isinstance(env.unwrapped, DummyVecEnv)
