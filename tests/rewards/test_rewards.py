import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from redif_env import ReDiFVectorEnv
from redif_env.diffusion.schedules import FlowSchedule, VarianceExplodingSchedule
from redif_env.envs.environments import terms_of
from redif_env.measures.distances import squared_error
from redif_env.measures.kernels import EnergyKernel, squared_mmd
from redif_env.rewards.cost import StepCost
from redif_env.rewards.custom import CallableReward
from redif_env.rewards.distribution import DistributionAlignment
from redif_env.rewards.endpoint import EndpointAlignment, TrajectoryAlignment
from redif_env.rewards.feature import FeatureDistance
from redif_env.rewards.names import REWARDS
from redif_env.rewards.reward import Term
from redif_env.teachers.references import base_samples, reference_paths, reference_set
from redif_env.teachers.teacher import GaussianMixtureTeacher

RING = {"teacher": "gaussian-ring", "reference_size": 64, "teacher_steps": 20}
TINY = RING | {"num_steps": 2}


def episode(env, seed=0):
    """All transitions of one episode under random actions."""
    env.reset(seed=seed)
    env.action_space.seed(seed)
    transitions = []
    for _ in range(env.mdp.num_steps):
        env.step(env.action_space.sample())
        transitions.append(env.last_transition)
    return transitions


def last_transition():
    return episode(ReDiFVectorEnv(3, **TINY))[-1]


def moved_to(transition, samples, terminated=True):
    """The same transition with other final samples."""
    return dataclasses.replace(
        transition,
        next_state=dataclasses.replace(transition.next_state, x=samples),
        terminated=torch.as_tensor(terminated).expand(len(samples)),
    )


def test_endpoint_alignment_by_hand():
    """Differences of 0.3 and 0.4 have a mean square of 0.125."""
    transition = last_transition()
    ends = torch.tensor([True, True, False])
    moved = moved_to(transition, transition.endpoint + torch.tensor([0.3, 0.4]), ends)
    expected = torch.tensor([0.125, 0.125, 0.0])
    torch.testing.assert_close(EndpointAlignment(scale=0.5)(moved), -expected.sqrt() / 0.5)
    torch.testing.assert_close(EndpointAlignment(0.5, squared_error)(moved), -expected / 0.5)


def test_scale_of_zero_is_refused():
    for reward in (EndpointAlignment, TrajectoryAlignment):
        with pytest.raises(ValueError, match=r"scale must be above 0, got 0.0"):
            reward(0.0)


def test_feature_alignment_by_hand():
    """The features double the first dimension and drop the second, so differences of 0.1 become 0.2."""
    doubled = nn.Linear(2, 1, bias=False).requires_grad_(False)
    doubled.weight.copy_(torch.tensor([[2.0, 0.0]]))
    transition = last_transition()
    inside = dataclasses.replace(transition, endpoint=torch.zeros(3, 2))
    moved = moved_to(inside, torch.tensor([[0.1, 0.9], [0.0, 0.5], [0.3, 0.0]]))
    torch.testing.assert_close(EndpointAlignment(0.5, FeatureDistance(doubled))(moved), -torch.tensor([0.4, 0.0, 1.2]))


TERMINAL = ["endpoint", "endpoint_squared", "endpoint_ssim", "feature", "mmd", "energy"]


@pytest.mark.parametrize("name", TERMINAL)
def test_terminal_rewards_are_minus_one_for_the_base_solver_and_zero_for_the_teacher(name):
    """On the calibration noises."""
    env = ReDiFVectorEnv(32, teacher="digits", num_steps=3, teacher_steps=20, reference_size=32, reward=name)
    transition, mdp = episode(env)[-1], env.mdp
    base = base_samples(mdp.teacher, env.reference, mdp.solver, mdp.grid, 3)
    ended = dataclasses.replace(transition, endpoint=env.reference.endpoints)
    reward = REWARDS[name](mdp, env.reference)
    assert reward(moved_to(ended, base)).mean().item() == pytest.approx(-1, abs=1e-4)
    perfect = moved_to(ended, env.reference.endpoints)
    reward(perfect)  # fills the buffer of distribution rewards
    assert reward(perfect).mean().item() == pytest.approx(0, abs=1e-4)


def test_trajectory_rewards_sum_to_the_endpoint_reward():
    """The sum telescopes for any actions (Ng et al. 1999)."""
    env = ReDiFVectorEnv(8, **RING, num_steps=5)
    dense, terminal = TrajectoryAlignment(0.7), EndpointAlignment(0.7)
    transitions = episode(env)
    total = sum(dense(transition) for transition in transitions)
    torch.testing.assert_close(total, terminal(transitions[-1]))
    assert (dense(transitions[1]) != 0).all()


def test_trajectory_rewards_sum_to_the_endpoint_reward_for_predicting_actions():
    """With action="noise", the first prediction is an action too."""
    env = ReDiFVectorEnv(8, **RING, num_steps=4, action="noise", observation="sample", reward="trajectory")
    terminal, transitions = EndpointAlignment(env.terms[0].reward.scale), episode(env)
    total = sum(env.terms[0](transition) for transition in transitions)
    torch.testing.assert_close(total.float(), terminal(transitions[-1]))
    assert (env.terms[0](transitions[0]) != 0).all()


def test_reference_paths_of_a_gaussian_match_the_closed_form():
    """In the probability flow of a Gaussian, ``(x - alpha m) / marginal_std`` is constant."""
    means, stds = torch.tensor([[0.3, -0.2, 0.1]]).double(), torch.tensor([[0.5, 0.2, 1.0]]).double()
    teacher = GaussianMixtureTeacher(means, stds)
    reference = reference_set(teacher, 5, num_steps=400)
    paths = reference_paths(teacher, reference)
    level_of = teacher.schedule.level
    half_logsnr = torch.tensor([-4.0, -1.3, 0.0, 0.7, 2.5], dtype=torch.float64)
    level, first = level_of(half_logsnr), level_of(teacher.schedule.half_logsnr_at(torch.ones(5, dtype=torch.float64)))

    def marginal_std(at):
        return ((at.alpha[:, None] * stds) ** 2 + at.sigma[:, None] ** 2).sqrt()

    z = (reference.noise.double() - first.alpha[:, None] * means) / marginal_std(first)
    exact = level.alpha[:, None] * means + marginal_std(level) * z
    torch.testing.assert_close(paths.at(torch.arange(5), half_logsnr).double(), exact, rtol=0, atol=5e-3)
    clean = torch.full((5,), torch.inf, dtype=torch.float64)
    torch.testing.assert_close(paths.at(torch.arange(5), clean), reference.endpoints)
    assert paths.angle[-1] == 0


@pytest.mark.parametrize("teacher", ["flow", "exploding"])
def test_reference_paths_of_other_schedules_start_at_the_noise(teacher):
    schedule = {"flow": FlowSchedule(), "exploding": VarianceExplodingSchedule()}[teacher]
    mixture = GaussianMixtureTeacher(torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), 0.3, None, schedule)
    reference = reference_set(mixture, 4, num_steps=30)
    paths = reference_paths(mixture, reference)
    first = schedule.half_logsnr_at(torch.ones(4, dtype=torch.float64))
    initial = schedule.normalised(reference.noise * schedule.init_noise_sigma, first)
    torch.testing.assert_close(paths.at(torch.arange(4), first), initial)
    assert bool(paths.x.isfinite().all())


def test_path_reward_is_minus_one_for_the_base_solver_and_zero_for_the_teacher():
    """An episode of the base solver over the reference set, and states on the teacher's trajectory."""
    env = ReDiFVectorEnv(32, **{**RING, "reference_size": 32}, num_steps=3, reward="path")
    env.reset(seed=0)
    env.episodes.pair = torch.arange(32)
    state = env.mdp.initial(env.reference.noise)
    env.episodes.started = env.mdp.predict(state, torch.ones(32, dtype=torch.bool))
    total = 0
    for _ in range(3):
        total += env.step(np.zeros(env.action_space.shape, np.float32))[1]
    assert total.mean() == pytest.approx(-1, abs=1e-4)
    transition = env.last_transition
    reward = env.terms[0].reward
    exact = reward.paths.at(transition.pair, transition.next_state.half_logsnr)
    np.testing.assert_allclose(reward(moved_to(transition, exact)), 0, atol=1e-6)
    values = reward(moved_to(transition, exact + torch.tensor([0.3, 0.4])))
    np.testing.assert_allclose(values, -(0.125**0.5) / reward.scale, rtol=1e-4)


def test_trajectory_reward_by_hand():
    """The error of the clean prediction decreases from 0.5 to 0.2."""
    env = ReDiFVectorEnv(3, **RING, num_steps=4)
    second = episode(env)[1]
    end = second.endpoint
    level = second.state.half_logsnr_history[:, :1]
    before, after = (
        dataclasses.replace(state, history=(end + apart)[:, None].repeat(1, 2, 1), half_logsnr_history=level)
        for state, apart in ((second.state, 0.5), (second.next_state, -0.2))
    )
    moved = dataclasses.replace(second, state=before, next_state=after)
    torch.testing.assert_close(TrajectoryAlignment(2.0)(moved), torch.full((3,), 0.15))


def distribution_reward(seed=0):
    generator = torch.Generator().manual_seed(seed)
    samples, endpoints = (torch.rand(40, 2, generator=generator).double() * 2 - 1 for _ in range(2))
    return DistributionAlignment(EnergyKernel(), nn.Identity(), samples, endpoints, "energy"), samples, endpoints


def test_distribution_reward_averages_to_minus_the_mmd():
    reward, samples, endpoints = distribution_reward()
    distance = squared_mmd(EnergyKernel(), samples, endpoints)
    assert reward.scale == pytest.approx(distance.item())
    assert reward.values(samples).mean().item() == pytest.approx(-1, abs=1e-5)


def test_distribution_reward_has_the_gradient_of_the_mmd():
    """Up to sign, scale and the number of samples."""
    reward, samples, endpoints = distribution_reward()
    moving = samples.clone().requires_grad_()
    (of_values,) = torch.autograd.grad(reward.values(moving).sum(), moving)
    moving = samples.clone().requires_grad_()
    (of_mmd,) = torch.autograd.grad(squared_mmd(EnergyKernel(), moving, endpoints), moving)
    torch.testing.assert_close(of_values, -of_mmd * len(samples) / reward.scale)


def test_buffer_replaces_the_oldest_samples_and_resets():
    reward, samples, _ = distribution_reward()
    transition = last_transition()
    first = reward(transition)
    assert (reward(transition) != first).all()
    torch.testing.assert_close(reward._samples[6:], samples[6:])
    torch.testing.assert_close(reward._endpoints[:3], transition.endpoint.clamp(-1, 1).double())
    reward.reset()
    torch.testing.assert_close(reward(transition), first)


def test_seeding_an_environment_resets_the_buffer():
    env = ReDiFVectorEnv(4, **TINY, reward="energy")
    zero = np.zeros(env.action_space.shape, np.float32)

    def rewards():
        env.reset(seed=0)
        return np.stack([env.step(zero)[1] for _ in range(4)])

    np.testing.assert_array_equal(rewards(), rewards())


def test_step_cost():
    transition = last_transition()
    assert StepCost(0.25)(transition).tolist() == [-0.25] * 3
    assert StepCost()(transition).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="cost must be at least 0, got -1"):
        StepCost(-1)


def test_callable_reward():
    """Its values are the reward, and are in the info under its name."""
    env = ReDiFVectorEnv(
        3, **TINY, reward=CallableReward(lambda transition: transition.next_state.x.norm(dim=1), "norm")
    )
    env.reset(seed=0)
    _, rewards, _, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
    np.testing.assert_allclose(rewards, env.last_transition.next_state.x.norm(dim=1).numpy())
    np.testing.assert_array_equal(info["reward/norm"], rewards)


def test_reward_is_the_weighted_sum_of_its_terms():
    """The info has each weighted term under its name."""
    env = ReDiFVectorEnv(3, **TINY, reward={"endpoint": 2.0, "step_cost": 0.5})
    env.reset(seed=0)
    zero = np.zeros(env.action_space.shape, np.float32)
    _, first, _, _, info = env.step(zero)
    assert first.tolist() == [-0.5] * 3
    assert set(terms_of(info)) == {"endpoint", "step_cost"}
    _, rewards, _, _, info = env.step(zero)
    terms = terms_of(info)
    np.testing.assert_allclose(rewards, terms["endpoint"] + terms["step_cost"])
    plain = EndpointAlignment.calibrated(env.mdp, env.reference)(env.last_transition)
    np.testing.assert_allclose(terms["endpoint"], 2 * plain.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("nonsense", "reward='nonsense' is unknown: choose one of 'endpoint'"),
        ({}, "reward has no term"),
        ({"endpoint": 1.0, "other": 1.0}, "reward='other' is unknown"),
    ],
)
def test_unknown_rewards_are_refused(reward, message):
    with pytest.raises(ValueError, match=message):
        ReDiFVectorEnv(1, **TINY, reward=reward)


def test_a_reward_may_take_a_gradient_of_its_own():
    def steepness(transition):
        with torch.inference_mode(False), torch.enable_grad():
            x = transition.next_state.x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(x.pow(3).sum(), x)
        return gradient.sum(dim=1)

    env = ReDiFVectorEnv(3, **TINY, reward=steepness)
    env.reset(seed=0)
    rewards = env.step(np.zeros(env.action_space.shape, np.float32))[1]
    np.testing.assert_allclose(rewards, 3 * env.last_transition.next_state.x.square().sum(dim=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (
            lambda t: t.next_state.x,
            r"reward 'mine' returned shape \(3, 2\): return one number an episode, shape \(3,\)",
        ),
        (lambda t: t.terminated.float().mean(), r"reward 'mine' returned shape \(\)"),
        (lambda t: 1.0, "reward 'mine' returned float: return a torch tensor"),
        (
            lambda t: torch.zeros(3, device="meta"),
            "reward 'mine' returned a tensor on meta: return it on the host or on cpu",
        ),
        (lambda t: torch.tensor([0.0, torch.nan, 0.0]), "reward 'mine' returned nan in sub-environment 1 at step 1"),
        (lambda t: torch.tensor([0.0, 0.0, -torch.inf]), "reward 'mine' returned -inf in sub-environment 2 at step 1"),
    ],
)
def test_invalid_reward_values_are_refused(fn, message):
    """The error names the term and the step."""
    env = ReDiFVectorEnv(3, **TINY, reward=CallableReward(fn, "mine"))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(np.zeros(env.action_space.shape, np.float32))


def test_distance_of_the_wrong_shape_is_refused():
    reward = EndpointAlignment(1.0, lambda samples, endpoints: samples - endpoints, "mine")
    with pytest.raises(ValueError, match=r"reward 'mine': its distance returned shape \(3, 2\) for 3 samples"):
        reward(last_transition())


def test_rewards_of_rows_without_a_step_are_zero():
    """NaN in rows where no step was taken is not an error."""
    term = Term(CallableReward(lambda t: torch.tensor([1.0, torch.nan, 1.0]), "mine"), 2.0)
    transition = dataclasses.replace(last_transition(), live=torch.tensor([True, False, True]))
    assert term(transition).tolist() == [2.0, 0.0, 2.0]
