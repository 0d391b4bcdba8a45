"""Exploration in pairs of opposite sign: what it changes, and what it does not."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy

from redif_env.sb3 import AntitheticPolicy
from redif_env.sb3.training import ppo

SEEN, ACTED = Box(-1, 1, (3,), np.float32), Box(-1, 1, (2,), np.float32)


def made(kind):
    torch.manual_seed(0)
    return kind(SEEN, ACTED, lambda remaining: 1e-3, net_arch=[])


def explored(policy, rows):
    """A step's observations, actions, noise and log-probabilities."""
    seen = torch.rand(rows, 3)
    actions, _, log_prob = policy(seen)
    return seen, actions.detach(), (actions - policy.get_distribution(seen).mode()).detach(), log_prob.detach()


def test_the_noise_of_a_pair_is_of_opposite_sign():
    *_, noise, _ = explored(made(AntitheticPolicy), 7)
    torch.testing.assert_close(noise[1:6:2], -noise[0:6:2])
    assert not torch.allclose(noise[0], noise[2])
    assert bool(noise[6].abs().min() > 0)  # without a partner
    *_, apart, _ = explored(made(ActorCriticPolicy), 7)
    assert not torch.allclose(apart[1:6:2], -apart[0:6:2])


def test_each_action_has_the_distribution_that_the_update_reckons_with():
    policy = made(AntitheticPolicy)
    seen, actions, noise, log_prob = explored(policy, 20_000)
    torch.testing.assert_close(log_prob, policy.evaluate_actions(seen, actions)[1].detach())
    for rows in (noise[0::2], noise[1::2]):
        torch.testing.assert_close(rows.std(dim=0), policy.log_std.exp().detach(), rtol=0.03, atol=0)
        torch.testing.assert_close(rows.T.cov()[0, 1], torch.tensor(0.0), rtol=0, atol=0.03)


def test_what_is_even_in_the_noise_leaves_no_policy_gradient():
    """A quadratic return, which says nothing of where to go, moves nothing; alone its chance would."""

    def gradient(kind, of_noise):
        policy = made(kind)
        seen = torch.ones(8, 3)
        actions = policy(seen)[0].detach()
        returns = of_noise((actions - policy.get_distribution(seen).mode()).detach())
        (policy.evaluate_actions(seen, actions)[1] * returns).mean().backward()
        return policy.action_net.bias.grad

    def even(noise):
        return 3 + noise.square().sum(dim=1)

    torch.testing.assert_close(gradient(AntitheticPolicy, even), torch.zeros(2), rtol=0, atol=1e-5)
    assert bool(gradient(ActorCriticPolicy, even).abs().max() > 0.1)
    assert bool(gradient(AntitheticPolicy, lambda noise: noise[:, 0])[0] > 0.1)


def test_a_deterministic_step_is_the_mean():
    policy, seen = made(AntitheticPolicy), torch.rand(4, 3)
    torch.testing.assert_close(policy(seen, deterministic=True)[0], policy.get_distribution(seen).mode())


def test_other_exploration_is_refused():
    with pytest.raises(ValueError, match="it needs a Box of actions and use_sde=False"):
        AntitheticPolicy(SEEN, Discrete(3), lambda remaining: 1e-3)
    with pytest.raises(ValueError, match="AntitheticPolicy has a StateDependentNoiseDistribution"):
        AntitheticPolicy(SEEN, ACTED, lambda remaining: 1e-3, use_sde=True)


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_program_explores_in_pairs_unless_that_is_turned_off(antithetic):
    settings = ppo.Args(
        teacher="gaussian-ring", num_steps=2, num_envs=8, reference_size=64, teacher_steps=4, antithetic=antithetic,
        reward=(("endpoint", 1.0),),
    )  # fmt: skip
    agent = ppo.build(settings)
    assert isinstance(agent, PPO)
    assert isinstance(agent.policy, AntitheticPolicy) is antithetic


@pytest.mark.parametrize("settings", [{"group_size": 1}, {"action": "noise"}])
def test_settings_without_pairs_are_refused(settings):
    with pytest.raises(ValueError, match=r"antithetic=True .* makes no pairs: choose an even group_size"):
        ppo.build(ppo.Args(teacher="gaussian-ring", num_envs=8, antithetic=True, **settings))
    with pytest.raises(ValueError, match="makes no pairs"):
        ppo.main(ppo.Args(teacher="gaussian-ring", num_envs=8, antithetic=True, dry_run=True, **settings))
