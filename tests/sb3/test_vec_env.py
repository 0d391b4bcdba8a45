import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import ClipReward
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from redif_env import ReDiFEnv, ReDiFVectorEnv, Student
from redif_env.envs.environments import terms_of
from redif_env.envs.wrappers import GroupRelativeReward, StepCost
from redif_env.sb3 import GroupRelativeReturns, ReDiFVecEnv, make_vec_env

TINY = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20}


def test_adapter_matches_dummy_vec_env():
    """Two and a half episodes, value by value, against DummyVecEnv around single environments."""
    ours = make_vec_env(3, **TINY, num_steps=2)
    theirs = DummyVecEnv([lambda: ReDiFEnv(**TINY, num_steps=2)] * 3)
    ours.seed(4)
    theirs.seed(4)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    assert [info["pair"] for info in ours.reset_infos] == [info["pair"] for info in theirs.reset_infos]
    theirs.action_space.seed(0)
    for _ in range(5):
        actions = np.stack([theirs.action_space.sample() for _ in range(3)])
        mine, other = ours.step(actions), theirs.step(actions)
        for value, expected in zip(mine[:3], other[:3], strict=True):
            np.testing.assert_array_equal(value, expected)
            assert value.dtype == expected.dtype
        for info, expected in zip(mine[3], other[3], strict=True):
            if "terminal_observation" in expected:
                np.testing.assert_array_equal(info["terminal_observation"], expected["terminal_observation"])
                assert info["TimeLimit.truncated"] is False
                assert terms_of(info) == terms_of(expected)
                assert info["pair"] == expected["pair"]


def test_returned_arrays_never_change():
    """SB3 stores the last observation after the next step, so a view of the state would corrupt its buffer."""
    env = make_vec_env(2, **TINY)
    returned = [env.reset()]
    copies = [returned[0].copy()]
    for _ in range(6):
        observation, rewards, dones, _ = env.step(np.ones((2, 5), np.float32))
        returned += [observation, rewards, dones]
        copies += [value.copy() for value in returned[-3:]]
    for value, expected in zip(returned, copies, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_group_relative_rewards_report_the_true_return():
    env = make_vec_env(16, **TINY, group_size=8)
    env.seed(0)
    env.reset()
    for _ in range(4):
        _, rewards, dones, infos = env.step(np.zeros((16, 5), np.float32))
    assert dones.all()
    np.testing.assert_allclose(rewards.reshape(2, 8).mean(1), 0, atol=1e-6)
    for info in infos:
        assert info["episode"]["r"] == info["reward/endpoint"] < 0
        assert info["episode"]["l"] == 4


def test_wrapped_vector_envs_are_supported():
    wrapped = ClipReward(ReDiFVectorEnv(2, **TINY, autoreset_mode="SameStep"), -0.5, 0.5)
    env = VecMonitor(ReDiFVecEnv(wrapped))
    agent = PPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=0)
    agent.learn(32)
    assert Student.from_agent(agent).num_steps == 4


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (PPO, {"n_steps": 4, "batch_size": 16}),
        (PPO, {"n_steps": 4, "batch_size": 16, "policy_kwargs": {"net_arch": []}}),
        (A2C, {"n_steps": 4}),
        (SAC, {"learning_starts": 16}),
        (TD3, {"learning_starts": 16}),
    ],
)
def test_stock_agents_train_and_export(algorithm, settings, tmp_path):
    """Unchanged agents train, and their students, also saved and loaded, give the samples of the agent."""
    env = make_vec_env(8, **TINY, group_size=1)
    agent = algorithm("MlpPolicy", env, seed=0, **settings)
    agent.learn(96)
    student = Student.from_agent(agent)
    student.save_pretrained(tmp_path / "student")

    env.seed(1)
    observation = env.reset()
    noise = env.unwrapped.reference.noise[[info["pair"] for info in env.reset_infos]]
    for _ in range(4):
        observation, *_ = env.step(agent.predict(observation, deterministic=True)[0])
    finished = env.unwrapped.last_transition.next_state.x
    torch.testing.assert_close(student(noise=noise), finished, rtol=0, atol=1e-4)
    assert torch.equal(Student.from_pretrained(tmp_path / "student")(noise=noise), student(noise=noise))


def test_linear_agent_with_steps_observation_is_a_table():
    """Biases are part of the table, so the student has fixed steps."""
    env = make_vec_env(8, **TINY, observation="steps", group_size=1)
    agent = PPO("MlpPolicy", env, n_steps=4, batch_size=16, seed=0, policy_kwargs={"net_arch": []}).learn(96)
    student = Student.from_agent(agent)
    assert student.fixed
    one_hot = torch.eye(4).flip(0)  # four steps left first
    actions = torch.as_tensor(agent.predict(one_hot.numpy(), deterministic=True)[0])
    assert actions.abs().max() > 0
    torch.testing.assert_close(student.mean_actions, actions)


def test_first_importance_ratio_is_one():
    """Before the first update, log-probabilities in rollout and update agree."""

    class Compare(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            data = next(self.model.rollout_buffer.get())
            _, log_prob, _ = self.model.policy.evaluate_actions(data.observations, data.actions)
            self.difference = float((log_prob - data.old_log_prob).abs().max().detach())

    compare = Compare()
    agent = PPO("MlpPolicy", make_vec_env(8, **TINY, group_size=4), n_steps=8, batch_size=64, n_epochs=1, seed=0)
    agent.learn(64, callback=compare)
    assert compare.difference < 1e-5


def test_export_refuses_unsupported_agents():
    env = make_vec_env(2, **TINY)
    agent = PPO("MlpPolicy", env, n_steps=4, batch_size=8, policy_kwargs={"activation_fn": torch.nn.Hardswish})
    with pytest.raises(ValueError, match="layers that a student cannot carry"):
        Student.from_agent(agent)
    other = PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8)
    with pytest.raises(ValueError, match="env must be a ReDiF environment"):
        Student.from_agent(other)


def test_student_of_an_agent_on_single_envs():
    agent = A2C("MlpPolicy", ReDiFEnv(**TINY), seed=0)
    assert Student.from_agent(agent)(num_samples=2).shape == (2, 2)


def test_adapter_refuses_unsupported_environments():
    with pytest.raises(ValueError, match="env must have autoreset_mode SAME_STEP"):
        ReDiFVecEnv(ReDiFVectorEnv(2, **TINY, autoreset_mode="Disabled"))
    env = make_vec_env(2, **TINY)
    with pytest.raises(ValueError, match="indices must be None"):
        env.set_attr("render_mode", None, indices=[0])
    with pytest.raises(NotImplementedError, match=r"call the method on \.unwrapped"):
        env.env_method("reset")
    assert env.get_attr("num_envs", [0]) == [2]


def test_images_through_sb3():
    env = make_vec_env(2, **TINY, render_mode="rgb_array")
    env.reset()
    assert len(env.get_images()) == 2
    assert env.render().ndim == 3


def test_terms_of_wrappers_are_in_the_info():
    """Each finished episode has them by name and in its return."""
    core = ReDiFVectorEnv(4, **TINY, num_steps=2, group_size=2, autoreset_mode="SameStep")
    env = ReDiFVecEnv(GroupRelativeReward(StepCost(core, cost=0.25)))
    env.reset()
    for _ in range(2):
        infos = env.step(np.zeros((4, 5), np.float32))[3]
    for info in infos:
        assert info["reward/step_cost"] == -0.5
        assert info["episode"]["r"] == pytest.approx(info["reward/endpoint"] - 0.5)
        assert info["nfe"] == info["episode"]["l"] == 2


def test_group_relative_returns_match_group_relative_rewards_for_fixed_steps():
    """The trained weights are equal if no group draws the same noise twice."""
    agents, settings = [], TINY | {"reference_size": 4096}
    for callback in (None, GroupRelativeReturns()):
        core = ReDiFVectorEnv(8, **settings, num_steps=2, group_size=4, autoreset_mode="SameStep")
        env = ReDiFVecEnv(GroupRelativeReward(core) if callback is None else core)
        agent = PPO("MlpPolicy", env, n_steps=6, batch_size=24, n_epochs=2, gamma=1.0, gae_lambda=1.0, seed=0)
        agents.append(agent.learn(96, callback=callback))
    for mine, other in zip(*(agent.policy.parameters() for agent in agents), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_group_relative_returns_of_episodes_of_different_lengths():
    """The relative returns of a rollout sum to 0 for each group and noise."""
    env = ReDiFVecEnv(ReDiFVectorEnv(8, **TINY, num_steps=4, min_steps=1, group_size=4, autoreset_mode="SameStep"))
    seen = []

    class Spy(GroupRelativeReturns):
        def _on_rollout_end(self):
            before = self.model.rollout_buffer.rewards.copy()
            super()._on_rollout_end()
            seen.append((list(self._finished), self.model.rollout_buffer.rewards - before))

    agent = PPO("MlpPolicy", env, n_steps=6, batch_size=24, n_epochs=1, seed=0, policy_kwargs={"log_std_init": -0.5})
    agent.learn(48, callback=Spy())
    ((finished, change),) = seen
    assert len({episode.step for episode in finished}) > 1
    for group in {episode.group for episode in finished}:
        members = [episode for episode in finished if episode.group == group]
        mean = np.mean([episode.value for episode in members])
        for episode in members:
            assert change[episode.step, episode.env] == pytest.approx(-mean, rel=1e-4)
            change[episode.step, episode.env] = 0
    assert not change.any()
    assert max(sum(episode.group == group for episode in finished) for group in {e.group for e in finished}) >= 4


def test_group_relative_returns_need_groups():
    env = make_vec_env(4, **TINY)
    with pytest.raises(ValueError, match="env has group_size=1, so no group has other members"):
        PPO("MlpPolicy", env, n_steps=4, batch_size=8).learn(16, callback=GroupRelativeReturns())
