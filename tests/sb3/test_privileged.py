"""A baseline that knows the endpoint: what it takes from advantages, and what that leaves."""

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO

from agents import ppo
from experiments.nfe_curve import SETTINGS
from experiments.predicted_error import explained, foretold
from redif_env import ReDiFVectorEnv, Student
from redif_env.envs.groups import relative
from redif_env.mdp.policies import Policy
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.measures.distances import root_mean_square
from redif_env.sb3 import PrivilegedBaseline, make_vec_env
from redif_env.teachers.teacher import GaussianMixtureTeacher

TINY = {"teacher": "gaussian-ring", "reference_size": 256, "teacher_steps": 20}


class Spy(PrivilegedBaseline):
    """Notes advantages before and after, and distances, of every rollout."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.rollouts = []

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        before, actions = buffer.advantages.copy(), buffer.actions.copy()
        super()._on_rollout_end()
        self.rollouts.append((before, buffer.advantages.copy(), np.stack(self._found), actions))


def trained(spy, rollouts, kind=PPO, episodes=1, **settings):
    """An agent that does not learn: rollouts of one policy, wide enough to end in other modes."""
    # Its last step lands on the newest prediction, so that the distance foretold is the one that is paid.
    env = make_vec_env(64, **TINY, num_steps=4, solver="dpm++3m", **settings)
    options = {"batch_size": 256 * episodes, "n_epochs": 1} if kind is PPO else {}
    agent = kind(
        "MlpPolicy", env, n_steps=4 * episodes, learning_rate=0.0, gae_lambda=1.0, gamma=1.0, seed=0, **options
    )
    agent.policy.log_std.data.fill_(-1.5)
    agent.learn(rollouts * 256 * episodes, callback=spy)
    return agent


def test_foresight_is_the_newest_prediction_and_the_endpoint():
    env = ReDiFVectorEnv(4, **TINY, num_steps=2)
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.privileged_information()
    env.reset(seed=0)
    for _ in range(3):  # on into the next episode
        _, _, _, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
        predicted, endpoint = env.privileged_information()
        state = env._now
        asked = env.mdp.teacher.predict(state.x, state.half_logsnr, state.timestep).x0
        torch.testing.assert_close(predicted, asked)
        torch.testing.assert_close(endpoint, env.reference.endpoints[info["pair"]])


@pytest.mark.parametrize(("group_size", "episodes"), [(8, 1), (1, 2)])
def test_it_takes_what_earlier_rollouts_foretold(group_size, episodes):
    """By hand: the slope through the origin of advantages over distances, both less their group's, decayed sums."""
    spy = Spy(distance=root_mean_square, decay=0.5)
    trained(spy, 3, group_size=group_size, episodes=episodes)
    (first, unchanged, *_), *_ = spy.rollouts
    np.testing.assert_array_equal(first, unchanged)
    size, sums = (group_size if group_size > 1 else 64), None
    for before, after, found, _ in spy.rollouts:
        found, blame = (relative(values.astype(np.float64), size) for values in (found, before))
        if sums is not None:
            slope = np.divide(*sums, out=np.zeros(4), where=sums[1] > 0)
            np.testing.assert_allclose(after, before - np.tile(slope, episodes)[:, None] * found, rtol=1e-4, atol=1e-5)
        now = [np.stack([part[step::4].mean() for step in range(4)]) for part in (found * blame, found**2)]
        sums = now if sums is None else [0.5 * old + 0.5 * new for old, new in zip(sums, now, strict=True)]
    assert (slope[1:] < 0).all()  # far from the endpoint foretells a low return
    if group_size > 1:
        assert slope[0] == 0  # siblings begin alike


@pytest.mark.parametrize("kind", [PPO, A2C])
def test_it_leaves_less_to_chance_and_the_gradient_as_it_was(kind):
    """Most of what siblings differ by at the last step is gone, and what was taken tells nothing of the actions."""
    spy = Spy(distance=root_mean_square)
    trained(spy, 30, kind, group_size=8)
    settled_in = spy.rollouts[5:]
    before, after = (np.stack([relative(rollout[i], 8) for rollout in settled_in]) for i in (0, 1))
    left = after.var(axis=(0, 2)) / before.var(axis=(0, 2))
    assert left[3] < 0.5
    assert (left < 1.1).all()
    taken = (before - after)[:, 3].reshape(-1)
    actions = np.stack([rollout[3][3] for rollout in settled_in]).reshape(len(taken), -1)
    for number in actions.T:
        assert abs(np.corrcoef(taken, number)[0, 1]) < 4 / len(taken) ** 0.5


def test_what_it_refuses():
    def learn(n_steps=4, **settings):
        env = make_vec_env(8, **TINY | settings, num_steps=4, group_size=8)
        PPO("MultiInputPolicy" if "action" in settings else "MlpPolicy", env, n_steps=n_steps, batch_size=16).learn(
            16, callback=PrivilegedBaseline()
        )

    with pytest.raises(ValueError, match="min_steps=2 below num_steps=4"):
        learn(min_steps=2)
    with pytest.raises(ValueError, match="action='noise', whose prediction is not there"):
        learn(action="noise", observation="sample")
    with pytest.raises(ValueError, match="n_steps=6, which are no whole episodes of num_steps=4"):
        learn(n_steps=6)
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1, got 1"):
        PrivilegedBaseline(decay=1)


@pytest.mark.parametrize("change", [{"min_steps": 2}, {"action": "noise"}])
def test_training_is_refused_before_it_takes_a_folder(change, tmp_path):
    settings = ppo.Args(privileged_baseline=True, network_calls=8, out=tmp_path / "run", **change)
    with pytest.raises(ValueError, match="leave PrivilegedBaseline out"):
        ppo.train(replace(settings, reference_size=8, teacher_steps=5, num_envs=8))
    assert not (tmp_path / "run").exists()


def test_what_was_decided_before_a_step_is_counted():
    """Nothing before the first step, most before the last; by hand, what a correlation of 0.6 explains."""
    teacher = GaussianMixtureTeacher.ring()
    mdp = ReDiFVectorEnv(1, teacher=teacher, num_steps=4, solver="dpm++3m", reference_size=256, teacher_steps=20).mdp
    student = Student(mdp, Policy.from_table(torch.zeros(4, mdp.action_size), mdp.observation_size))
    shares = foretold(student, 0.2, 32, 8, 0)
    assert shares[0] == 0
    assert shares[3] > 0.5
    assert shares[3] == max(shares)
    first, other = np.array([1.0, -1.0, 1.0, -1.0]), np.array([1.0, 1.0, -1.0, -1.0])
    assert explained(first, 0.6 * first + 0.8 * other) == pytest.approx(0.36)
    assert relative(np.array([1.0, 3.0, 5.0, 5.0]), 2).tolist() == [-1, 1, 0, 0]
    other_steps = build_mdp(MDPSettings(teacher=teacher, num_steps=4, action="step", solver="dpm++3m", grid="time^1.5"))
    student = Student(other_steps, Policy.from_table(torch.zeros(4, 1), other_steps.observation_size))
    with pytest.raises(ValueError, match="not trained in the default environment"):
        foretold(student, 0.2, 4, 8, 0)


def test_the_curve_has_the_same_run_with_and_without():
    """The two differ by the baseline and the folder alone."""
    with_it, without = (
        SETTINGS[name](ppo.Args(num_steps=6, seed=1), Path("runs")) for name in ("redif-ppo-privileged", "redif-ppo")
    )
    assert with_it.privileged_baseline
    assert replace(with_it, privileged_baseline=False, out=without.out) == without
    assert with_it.out != without.out
