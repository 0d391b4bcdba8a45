"""Adaptive step counts: what the budget number does, and what the student spends."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from redif_env import ReDiFVectorEnv, Student
from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.solvers import SOLVERS, sample
from redif_env.envs.environments import ReDiFEnv
from redif_env.mdp.actions import ACTION_MAPS
from redif_env.mdp.observations import OBSERVATIONS
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.process import DenoisingMDP

RING = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20}
ADAPTIVE = RING | {"num_steps": 6, "min_steps": 2}


def actions(env, *budget):
    """Zero actions but for the budget number of each sub-environment."""
    array = np.zeros(env.action_space.shape, np.float32)
    array[:, -1] = budget
    return array


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("budget", [0.0, 0.1, -1.0])
def test_full_budget_is_the_base_solver(name, budget):
    env = ReDiFVectorEnv(4, **ADAPTIVE, solver=name)
    env.reset(seed=0)
    for _ in range(6):
        terminated = env.step(actions(env, *[budget] * 4))[2]
    assert terminated.all()
    noise = env.reference.noise[env.last_transition.pair]
    expected = sample(env.mdp.teacher, env.mdp.solver, env.mdp.grid, noise, 6)
    assert torch.equal(env.last_transition.next_state.x, expected)


@pytest.mark.parametrize("calls", [2, 3, 4, 5])
def test_reduced_budget_is_the_base_solver_with_fewer_steps(calls):
    """Giving up the spare calls in the first step gives the samples of the shorter solver."""
    env = ReDiFVectorEnv(3, **ADAPTIVE)
    env.reset(seed=0)
    terminated = env.step(actions(env, *[0.1 + (6 - calls) / 8] * 3))[2]
    steps = 1
    while not terminated.any():
        terminated = env.step(actions(env, 0, 0, 0))[2]
        steps += 1
    assert terminated.all()
    assert steps == calls
    state = env.last_transition.next_state
    assert state.nfe.tolist() == [calls] * 3
    noise = env.reference.noise[env.last_transition.pair]
    torch.testing.assert_close(state.x, sample(env.mdp.teacher, env.mdp.solver, env.mdp.grid, noise, calls))


def test_budget_is_at_least_the_minimum():
    env = ReDiFVectorEnv(2, **ADAPTIVE, autoreset_mode="SameStep")
    env.reset(seed=0)
    spent = []
    for _ in range(12):
        _, _, terminated, _, info = env.step(actions(env, 1, 1))
        if terminated.any():
            spent += info["final_info"]["nfe"][terminated].tolist()
    assert set(spent) == {2}


def test_finished_episodes_cost_no_network_calls():
    """The network is called only for rows that need it: once per step and once per new episode."""
    env = ReDiFVectorEnv(3, **ADAPTIVE, autoreset_mode="Disabled")
    rows = []
    hook = env.mdp.teacher.network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    env.reset(seed=0)
    env.step(actions(env, 1, 0.35, 0))
    terminated = env.step(actions(env, 0, 0, 0))[2]
    assert terminated.tolist() == [True, False, False]
    assert env.last_transition.next_state.nfe.tolist() == [2, 3, 3]
    assert rows == [3, 3, 2]
    hook.remove()


@pytest.mark.parametrize("settings", [{}, {"prices": (0.01, 0.1), "reward": {"endpoint": 1.0, "price": 1.0}}])
def test_both_checkers_pass(settings):
    env = gym.make("ReDiF-v0", **ADAPTIVE, **settings, render_mode="rgb_array").unwrapped
    check_env(env)
    sb3_check_env(env)


def test_prices_are_observed_and_charged():
    """The last observation is the log price scaled to its range; each network call costs the price."""
    env = ReDiFVectorEnv(4, **RING, num_steps=3, prices=(0.01, 1.0), reward={"price": 1.0})
    observation, _ = env.reset(seed=0)
    assert env.single_observation_space.contains(observation[0])
    assert len(set(observation[:, -1].tolist())) == 4
    rewards = env.step(np.zeros(env.action_space.shape, np.float32))[1]
    np.testing.assert_allclose(rewards, -0.01 * 100.0 ** observation[:, -1], rtol=1e-5)


def test_bad_budgets_and_prices():
    with pytest.raises(ValueError, match="min_steps must be from 1 to num_steps=4, got 5"):
        ReDiFVectorEnv(1, **RING, min_steps=5)
    with pytest.raises(ValueError, match="prices must be two numbers above 0, the smaller first"):
        ReDiFVectorEnv(1, **RING, prices=(0.1, 0.01))


def student_of(budget, **settings):
    """A student whose policy always gives the same budget number."""
    parts = ACTION_MAPS["solver"], OBSERVATIONS["features"]
    teacher = ReDiFVectorEnv(1, **RING).mdp.teacher
    mdp = DenoisingMDP(teacher, SOLVERS["dpm++2m"], GRIDS["time"], 6, *parts, **settings)
    policy = Policy(PolicyConfig((mdp.observation_size, mdp.action_size)))
    with torch.no_grad():
        policy.linears[0].weight.zero_()
        policy.linears[0].bias.zero_()
        policy.linears[0].bias[-1] = budget
    return Student(mdp, policy)


def test_adaptive_student_uses_the_budget_of_its_policy(tmp_path):
    student = student_of(1.0, min_steps=2)
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    rows = []
    hook = student.network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    samples = student(noise=noise)
    assert rows == [5, 5]
    hook.remove()
    torch.testing.assert_close(
        samples, sample(student.mdp.teacher, SOLVERS["dpm++2m"], GRIDS["time"], noise, 2).clamp(-1, 1)
    )
    student.save_pretrained(tmp_path / "student")
    assert torch.equal(Student.from_pretrained(tmp_path / "student")(noise=noise), samples)


def test_student_with_prices_makes_fewer_calls_at_higher_prices(tmp_path):
    """Also after saving and loading."""
    student = student_of(0.0, min_steps=2, prices=(0.01, 1.0))
    with torch.no_grad():
        student.policy.linears[0].weight[-1, -1] = 0.6
    student.save_pretrained(tmp_path / "student")
    student = Student.from_pretrained(tmp_path / "student")
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    spent = [student.trajectory(noise, price)[-1].nfe.tolist() for price in (None, 0.01, 1.0)]
    assert spent == [[6] * 3, [6] * 3, [2] * 3]
    assert set(student.trajectory(noise, 0.1)[-1].nfe.tolist()) <= {2, 3, 4, 5}
    with pytest.raises(ValueError, match=r"price must be from 0.01 to 1.0, as in training, got 2"):
        student(noise=noise, price=2)
    with pytest.raises(ValueError, match="price=1 means nothing to this student"):
        student_of(0.0)(noise=noise, price=1)


def test_steps_observation_is_the_steps_left_alone():
    """One-hot, the same for all noises at a step; the environment around it passes Gymnasium's checker."""
    env = ReDiFEnv(**RING, observation="steps", num_steps=3)
    check_env(env, skip_render_check=True)
    for seed in (0, 1):
        observation, _ = env.reset(seed=seed)
        visited = [observation.tolist()]
        for _ in range(3):
            observation, *_ = env.step(np.zeros(5, np.float32))
            visited.append(observation.tolist())
        assert visited == [[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]]
