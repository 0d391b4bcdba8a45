import dataclasses

import numpy as np
import pytest
import torch

from redif_env import ReDiFVectorEnv
from redif_env.rewards import EndpointAlignment
from redif_env.wrappers import GroupRelativeReward

TINY = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20, "num_steps": 2}


def last_transition():
    env = ReDiFVectorEnv(3, **TINY)
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.zeros(env.action_space.shape, np.float32))
    return env.last_transition


def test_endpoint_alignment_by_hand():
    """Differences of 0.3 and 0.4: the mean square is 0.125."""
    transition = last_transition()
    moved = dataclasses.replace(
        transition,
        next_state=dataclasses.replace(transition.next_state, x=transition.endpoint + torch.tensor([0.3, 0.4])),
        terminated=torch.tensor([True, True, False]),
    )
    rewards = EndpointAlignment(scale=0.5)(moved)
    torch.testing.assert_close(rewards, -torch.tensor([0.125, 0.125, 0.0]).sqrt() / 0.5)


def test_a_base_solver_that_is_the_teacher_is_refused():
    with pytest.raises(ValueError, match=r"scale must be above 0, got 0.0"):
        EndpointAlignment(0.0)


def test_own_reward_by_construction():
    """Any function of the transition with a name may be the reward; its name is in the info."""

    class Distance:
        name = "distance"

        def __call__(self, transition):
            return transition.next_state.x.norm(dim=1)

    env = ReDiFVectorEnv(3, **TINY, reward=Distance())
    env.reset(seed=0)
    _, rewards, _, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
    np.testing.assert_allclose(rewards, env.last_transition.next_state.x.norm(dim=1).numpy())
    np.testing.assert_array_equal(info["rewards"]["distance"], rewards)


def test_group_relative_reward():
    """Wrapped rewards are the bare ones less their group's mean; everything else, terms included, is the same."""
    bare = ReDiFVectorEnv(6, **TINY, group_size=3)
    wrapped = GroupRelativeReward(ReDiFVectorEnv(6, **TINY, group_size=3))
    np.testing.assert_array_equal(bare.reset(seed=0)[0], wrapped.reset(seed=0)[0])
    bare.action_space.seed(0)
    for _ in range(5):
        actions = bare.action_space.sample()
        mine, other = wrapped.step(actions), bare.step(actions)
        groups = other[1].reshape(2, 3)
        np.testing.assert_allclose(mine[1], (groups - groups.mean(1, keepdims=True)).reshape(6), atol=1e-12)
        np.testing.assert_array_equal(mine[0], other[0])
        if other[2].any():
            np.testing.assert_array_equal(
                mine[4]["final_info"]["rewards"]["endpoint"], other[4]["final_info"]["rewards"]["endpoint"]
            )


def test_groups_of_one_are_refused():
    with pytest.raises(ValueError, match="env has group_size=1, so every relative reward would be 0"):
        GroupRelativeReward(ReDiFVectorEnv(4, **TINY))
