"""Reward wrappers: the same name on either kind of environment, on top of each other, in every autoreset mode."""

import copy
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch import nn

from redif_env import ReDiFVectorEnv
from redif_env.envs.environments import terms_of
from redif_env.envs.wrappers import (
    CallableReward,
    DistributionAlignment,
    EndpointAlignment,
    FeatureAlignment,
    GroupRelativeReward,
    PathAlignment,
    StepCost,
    TrajectoryAlignment,
    add_reward,
)
from redif_env.measures.kernels import EnergyKernel
from redif_env.rewards.cost import StepCost as StepCostReward
from tests.envs.test_environments import assert_same

TINY = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20, "num_steps": 3}
MODES = list(AutoresetMode)


def norm(transition):
    return transition.next_state.x.norm(dim=1)


WRAPPERS = {
    "endpoint": lambda env: EndpointAlignment(env, weight=0.5),
    "feature": lambda env: FeatureAlignment(env, "pixels", weight=0.5),
    "trajectory": lambda env: TrajectoryAlignment(env),
    "path": lambda env: PathAlignment(env),
    "step_cost": lambda env: StepCost(env, cost=0.01),
    "callable": lambda env: CallableReward(env, norm, name="norm", weight=3.0),
    "stack": lambda env: FeatureAlignment(StepCost(CallableReward(env, norm), cost=0.01), nn.Identity(), weight=0.5),
}


# A term sees transitions alone, which are the same in every mode: one term of every step and the stack stand for all.
CASES = [
    (name, mode)
    for name in WRAPPERS
    for mode in MODES
    if mode is AutoresetMode.SAME_STEP or name in ("trajectory", "stack")
]


@pytest.mark.parametrize(("name", "mode"), CASES)
@pytest.mark.parametrize("budget", [{}, {"min_steps": 1}], ids=["fixed", "adaptive"])
def test_wrapped_vector_env_equals_stacked_wrapped_single_envs(name, mode, budget):
    """Rewards, terms by name and everything else, over 12 steps of random actions."""
    wrap = WRAPPERS[name]
    ours = wrap(gym.make_vec("ReDiF-v0", num_envs=4, **TINY, **budget, autoreset_mode=mode))
    theirs = SyncVectorEnv([lambda: wrap(gym.make("ReDiF-v0", **TINY, **budget))] * 4, autoreset_mode=mode)
    np.testing.assert_array_equal(ours.reset(seed=7)[0], theirs.reset(seed=7)[0])
    theirs.action_space.seed(0)
    for _ in range(12):
        actions = theirs.action_space.sample()
        mine, other = ours.step(actions), theirs.step(actions)
        for value, expected in zip(mine[:4], other[:4], strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-9)
        assert_same(mine[4], other[4])
        if mode is AutoresetMode.DISABLED and mine[2].any():
            options = {"reset_mask": mine[2].copy()}
            ours.reset(options=dict(options)), theirs.reset(options=dict(options))


def test_distribution_reward_of_a_batch_of_one():
    """The reward depends on past episodes, which differ between batch sizes."""

    def wrap(env):
        return DistributionAlignment(env, EnergyKernel(), "pixels")

    ours, single = wrap(gym.make_vec("ReDiF-v0", num_envs=1, **TINY)), wrap(gym.make("ReDiF-v0", **TINY))
    for _ in range(2):  # seeding starts its memory afresh
        ours.reset(seed=3), single.reset(seed=3)
        ours.action_space.seed(0)
        for _ in range(3):
            action = ours.action_space.sample()
            mine, other = ours.step(action), single.step(action[0])
            assert mine[1][0] == pytest.approx(other[1])
        assert mine[1][0] < 0


@pytest.mark.parametrize("mode", MODES)
def test_terms_sum_to_the_reward(mode):
    env = FeatureAlignment(StepCost(ReDiFVectorEnv(5, **TINY, min_steps=1, autoreset_mode=mode), cost=0.1), weight=0.5)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(8):
        _, rewards, terminated, _, infos = env.step(env.action_space.sample())
        total = np.zeros(5)
        for source in (infos, infos.get("final_info", {})):
            terms = terms_of(source)
            assert not terms or set(terms) == {"endpoint", "step_cost", "feature"}
            total += sum(terms.values())
        np.testing.assert_allclose(rewards, total)
        if mode is AutoresetMode.DISABLED and terminated.any():
            env.reset(options={"reset_mask": terminated})


def test_reset_steps_have_no_reward():
    """In autoreset mode NEXT_STEP, a reset step has no step cost."""
    env = StepCost(ReDiFVectorEnv(2, **TINY, autoreset_mode="NextStep"), cost=1.0)
    env.reset(seed=0)
    zero = np.zeros(env.action_space.shape, np.float32)
    rewards = [env.step(zero)[1].tolist() for _ in range(5)]
    assert rewards[0] == rewards[1] == rewards[4] == [-1, -1]
    assert rewards[3] == [0, 0]


@pytest.mark.parametrize("name", WRAPPERS)
def test_both_checkers_pass(name):
    env = WRAPPERS[name](gym.make("ReDiF-v0", **TINY, disable_env_checker=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env, skip_render_check=True)
    sb3_check_env(env)


def test_a_spec_makes_the_same_wrappers_again():
    env = FeatureAlignment(StepCost(gym.make("ReDiF-v0", **TINY), cost=0.25), "pixels", weight=0.5)
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    again = gym.make(spec)
    env.reset(seed=0), again.reset(seed=0)
    for _ in range(3):
        action = env.action_space.sample()
        mine, other = env.step(action), again.step(action)
        assert mine[1] == other[1]
        assert mine[4] == other[4]


def test_wrapper_with_a_network_has_no_spec():
    """Reading the spec would copy the network."""
    env = StepCost(FeatureAlignment(gym.make("ReDiF-v0", **TINY), nn.Identity()), cost=0.1)
    assert env.spec is None


def test_wrapped_environments_pickle_and_copy():
    env = WRAPPERS["stack"](ReDiFVectorEnv(3, **TINY))
    env.reset(seed=0)
    action = env.action_space.sample()
    copies = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    rewards = env.step(action)[1]
    for other in copies:
        np.testing.assert_array_equal(other.step(action)[1], rewards)


def test_two_terms_of_one_name_are_refused():
    for env in (gym.make("ReDiF-v0", **TINY), ReDiFVectorEnv(2, **TINY)):
        twice = StepCost(StepCost(env, cost=0.1), cost=0.2)
        twice.reset(seed=0)
        with pytest.raises(ValueError, match="two reward terms are named 'step_cost'"):
            twice.step(twice.action_space.sample())


def test_other_environments_and_missing_costs_are_refused():
    with pytest.raises(ValueError, match="env must be a ReDiF environment"):
        StepCost(gym.make("CartPole-v1"), cost=0.1)
    with pytest.raises(ValueError, match="env must be a ReDiF environment"):
        add_reward(gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync"), StepCostReward(0.1))
    with pytest.raises(ValueError, match="cost is missing, and the environment draws no prices"):
        StepCost(gym.make("ReDiF-v0", **TINY))


def test_group_relative_reward():
    """Wrapped rewards are the bare ones less their group's mean; everything else, terms included, is the same."""
    bare = StepCost(ReDiFVectorEnv(6, **TINY, group_size=3), cost=0.5)
    wrapped = GroupRelativeReward(StepCost(ReDiFVectorEnv(6, **TINY, group_size=3), cost=0.5))
    np.testing.assert_array_equal(bare.reset(seed=0)[0], wrapped.reset(seed=0)[0])
    bare.action_space.seed(0)
    for _ in range(5):
        actions = bare.action_space.sample()
        mine, other = wrapped.step(actions), bare.step(actions)
        groups = other[1].reshape(2, 3)
        np.testing.assert_allclose(mine[1], (groups - groups.mean(1, keepdims=True)).reshape(6), atol=1e-12)
        np.testing.assert_array_equal(mine[0], other[0])
        assert_same(mine[4], other[4])


def test_unsupported_groups_are_refused():
    with pytest.raises(ValueError, match="env has group_size=1, so every relative reward would be 0"):
        GroupRelativeReward(ReDiFVectorEnv(4, **TINY))
    with pytest.raises(ValueError, match=r"group members finish at different times: use redif_env\.sb3\.Group"):
        GroupRelativeReward(ReDiFVectorEnv(4, **TINY, group_size=2, min_steps=1))


def test_rewards_keep_to_the_environment_s_device_and_type():
    env = FeatureAlignment(ReDiFVectorEnv(2, **TINY, dtype="float64"))
    env.reset(seed=0)
    for _ in range(3):
        rewards = env.step(np.zeros(env.action_space.shape, np.float32))[1]
    assert rewards.dtype == np.float64
    assert env.term(env.core.last_transition).dtype == torch.float64
