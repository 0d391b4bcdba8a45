"""Resumed runs end exactly as uninterrupted runs."""

import copy
import itertools
import shutil

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from redif_env import ReDiFVectorEnv
from redif_env.envs.environments import terms_of
from redif_env.envs.wrappers import DistributionAlignment, GroupRelativeReward
from redif_env.judging.evaluation import Evaluator
from redif_env.sb3 import Checkpointer, GroupRelativeReturns, ReDiFVecEnv, make_vec_env
from redif_env.sb3.training.callbacks import AnnealedExploration, HeldOutCallback, Stopwatch
from redif_env.storage.checkpoints import checkpoints
from redif_env.storage.files import CorruptFileError
from redif_env.teachers.teacher import GaussianMixtureTeacher

TINY = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20, "num_steps": 3}
REWARD = {"endpoint": 1.0, "energy": 0.1}


def make_agent(kind=PPO, adaptive=False):
    options = {"min_steps": 2, "prices": (0.01, 0.5), "reward": {**REWARD, "price": 1.0}} if adaptive else {}
    env = make_vec_env(8, **{**TINY, "reward": REWARD, **options}, group_size=4)
    settings = {"batch_size": 12, "n_epochs": 2} if kind is PPO else {}
    return kind("MlpPolicy", env, n_steps=3, seed=0, gae_lambda=1.0, **settings)


def make_callbacks(agent, folder, adaptive=False):
    mdp = agent.get_env().unwrapped.mdp
    held_out = HeldOutCallback(Evaluator(GaussianMixtureTeacher.ring(), size=16), mdp, agent.policy, every=2)
    components = {"held_out": held_out, "stopwatch": Stopwatch()}
    if adaptive:
        components["groups"] = GroupRelativeReturns()
    return Checkpointer(folder, 48, components, keep=100), [AnnealedExploration(0.3, 0.1), *components.values()]


def train(agent, checkpointer, callbacks, total=240):
    # The learning rate depends on SB3's training progress, too.
    agent.learn(
        total - agent.num_timesteps, callback=[checkpointer, *callbacks], reset_num_timesteps=not agent.num_timesteps
    )


def same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key


@pytest.mark.parametrize(("kind", "adaptive"), [(PPO, False), (PPO, True), (A2C, False)])
def test_resuming_from_any_checkpoint_gives_the_same_result(kind, adaptive, tmp_path):
    """A resumed run ends as an unbroken one, in parameters, optimizer, environments, rewards and random states."""
    unbroken = make_agent(kind, adaptive)
    checkpointer, callbacks = make_callbacks(unbroken, tmp_path / "unbroken", adaptive)
    train(unbroken, checkpointer, callbacks)
    saved = checkpoints(tmp_path / "unbroken")
    assert [int(path.name) for path in saved] == [48, 96, 144, 192]
    for path in saved:
        folder = tmp_path / f"from-{path.name}"
        folder.mkdir()
        shutil.copytree(path, folder / path.name)
        agent = make_agent(kind, adaptive)
        resumed, others = make_callbacks(agent, folder, adaptive)
        resumed.resume(agent)
        assert agent.num_timesteps == int(path.name)
        train(agent, resumed, others)
        same(agent.policy.state_dict(), unbroken.policy.state_dict())
        assert others[1].best_fd == callbacks[1].best_fd
        same(others[1].best.policy.state_dict(), callbacks[1].best.policy.state_dict())
        assert torch.equal(agent.env.unwrapped.state.x, unbroken.env.unwrapped.state.x)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_environment_continues_from_a_loaded_state(mode):
    """Observations, rewards, resets and draws after loading equal those after saving."""
    first, second = (ReDiFVectorEnv(4, **TINY, reward=REWARD, autoreset_mode=mode, group_size=2) for _ in range(2))
    rng = np.random.default_rng(0)
    first.reset(seed=3)
    second.reset(seed=99)

    def act(env, actions):
        if mode is AutoresetMode.DISABLED and env._done.any():
            env.reset(options={"reset_mask": env._done.copy()})
        return env.step(actions)

    for _ in range(4):
        act(first, rng.uniform(-1, 1, first.action_space.shape).astype(np.float32))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(7):
        actions = rng.uniform(-1, 1, first.action_space.shape).astype(np.float32)
        ours, theirs = act(first, actions), act(second, actions)
        for left, right in itertools.islice(zip(ours, theirs, strict=True), 4):
            np.testing.assert_array_equal(left, right)


def test_state_of_reward_wrappers_is_saved():
    """The state of a distribution reward in a wrapper is part of the adapter's state."""

    def make():
        return ReDiFVecEnv(
            GroupRelativeReward(
                DistributionAlignment(ReDiFVectorEnv(4, **TINY, group_size=4, autoreset_mode="SameStep"))
            )
        )

    first, second = make(), make()
    actions = np.full((4, 5), 0.3, dtype=np.float32)
    for env in (first, second):
        env.seed(0)
        env.reset()
    for _ in range(5):
        first.step(actions)
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        ours, theirs = first.step(actions), second.step(actions)
        np.testing.assert_array_equal(ours[1], theirs[1])
        assert [{**info, "episode": None} for info in ours[3] if "episode" not in info] == [
            {**info, "episode": None} for info in theirs[3] if "episode" not in info
        ]
        for left, right in zip(ours[3], theirs[3], strict=True):
            assert terms_of(left) == terms_of(right)


def test_no_state_before_the_first_reset():
    from gymnasium.error import ResetNeeded

    with pytest.raises(ResetNeeded, match="before reset"):
        ReDiFVectorEnv(2, **TINY).state_dict()


def test_old_checkpoints_are_pruned(tmp_path):
    agent = make_agent()
    checkpointer = Checkpointer(tmp_path, 24, {}, keep=2)
    agent.learn(192, callback=[checkpointer])
    assert [int(path.name) for path in checkpoints(tmp_path)] == [144, 168]


def test_damaged_checkpoints_are_skipped(tmp_path):
    """The newest valid checkpoint is used, with a warning; without a valid one there is an error."""
    agent = make_agent()
    agent.learn(144, callback=[Checkpointer(tmp_path, 24, {}, keep=2)])
    older, newer = checkpoints(tmp_path)
    (newer / "tensors.safetensors").write_bytes(b"\x00" * 100)
    resumed = make_agent()
    with pytest.warns(UserWarning, match=r"a checkpoint is left out: .*tensors\.safetensors is damaged"):
        Checkpointer(tmp_path, 24, {}).resume(resumed)
    assert resumed.num_timesteps == int(older.name)
    (older / "state.json").unlink()
    with (
        pytest.warns(UserWarning, match="a checkpoint is left out"),
        pytest.raises(CorruptFileError, match=r"no checkpoint in .* can be read: delete the folder to start again"),
    ):
        Checkpointer(tmp_path, 24, {}).resume(make_agent())


def test_run_without_checkpoints_starts_anew(tmp_path):
    agent = make_agent()
    Checkpointer(tmp_path / "none", 24, {}).resume(agent)
    assert agent.num_timesteps == 0


def test_full_disk_does_not_stop_training(tmp_path, monkeypatch):
    """A checkpoint that cannot be written is a warning; the previous one remains."""
    agent = make_agent()
    agent.learn(72, callback=[Checkpointer(tmp_path, 24, {})])
    before = checkpoints(tmp_path)
    assert before

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("redif_env.storage.checkpoints.save_file", full)
    resumed = make_agent()
    checkpointer = Checkpointer(tmp_path, 24, {})
    checkpointer.resume(resumed)
    with pytest.warns(UserWarning, match=r"was not written .*No space left on device.*: training continues"):
        resumed.learn(96, callback=[checkpointer], reset_num_timesteps=False)
    assert resumed.num_timesteps >= 144
    assert checkpoints(tmp_path) == before


class Raise(BaseCallback):
    """Sends the process a signal in the middle of a rollout."""

    def __init__(self, number, step):
        super().__init__()
        self.number, self.step = number, step

    def _on_step(self):
        import signal

        if self.n_calls == self.step:
            signal.raise_signal(self.number)
        return True


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_stop_with_a_checkpoint(name, tmp_path):
    """The rollout and its update are completed and the state is saved; the signal handlers are restored."""
    import signal

    number = getattr(signal, name)
    before = signal.getsignal(number)
    agent = make_agent()
    checkpointer = Checkpointer(tmp_path, 10_000, {})
    with checkpointer.stopping_on_signals():
        agent.learn(240, callback=[checkpointer, Raise(number, 5)])
    assert checkpointer.stopped_by == number
    assert signal.getsignal(number) is before
    assert [int(path.name) for path in checkpoints(tmp_path)] == [48]


def test_unsupported_agents_are_refused(tmp_path):
    with pytest.raises(ValueError, match="every and keep must be at least 1"):
        Checkpointer(tmp_path, 0, {})
    env = make_vec_env(4, **TINY)
    agent = SAC("MlpPolicy", env, buffer_size=100, learning_starts=10)
    with pytest.raises(ValueError, match="agent is a SAC: only on-policy agents"):
        agent.learn(100, callback=[Checkpointer(tmp_path, 8, {})])
    wrapped = PPO("MlpPolicy", VecMonitor(make_vec_env(4, **TINY)), n_steps=3, batch_size=12)
    with pytest.raises(ValueError, match="environment is a VecMonitor: make it with make_vec_env"):
        wrapped.learn(60, callback=[Checkpointer(tmp_path, 8, {})])


def test_state_of_vec_normalize_is_saved(tmp_path):
    """The running means of observations and returns are part of a checkpoint."""

    def make():
        env = VecNormalize(make_vec_env(8, **TINY, reward=REWARD, group_size=4))
        return PPO("MlpPolicy", env, n_steps=3, batch_size=12, n_epochs=2, seed=0)

    unbroken, resumed = make(), make()
    unbroken.learn(144, callback=[Checkpointer(tmp_path, 72, {})])
    Checkpointer(tmp_path, 72, {}).resume(resumed)
    assert resumed.num_timesteps == 72
    resumed.learn(72, reset_num_timesteps=False)
    same(resumed.policy.state_dict(), unbroken.policy.state_dict())
    np.testing.assert_array_equal(resumed.env.obs_rms.mean, unbroken.env.obs_rms.mean)
