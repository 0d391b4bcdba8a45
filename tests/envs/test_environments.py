import copy
import json
import pickle
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from packaging.version import Version
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import redif_env
from redif_env import ReDiFEnv, ReDiFVectorEnv
from redif_env.diffusion.solvers import sample
from redif_env.teachers.references import base_samples, reference_set

TINY = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20}


def random_actions(env, steps, seed=0):
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(steps)]


def assert_same(ours, theirs):
    """Two infos, arrays and nested dicts compared value by value."""
    assert set(ours) == set(theirs)
    for key, value in ours.items():
        if isinstance(value, dict):
            assert_same(value, theirs[key])
        elif value.dtype == object:
            for mine, other in zip(value, theirs[key], strict=True):
                np.testing.assert_array_equal(mine, other)
        else:
            np.testing.assert_array_equal(value, theirs[key])


@pytest.mark.parametrize("teacher", ["gaussian-ring", "digits"])
@pytest.mark.parametrize("action", ["solver", "step"])
def test_both_checkers_pass(teacher, action):
    """Gymnasium's and SB3's, with warnings as errors, for every action map and observation."""
    env = gym.make(
        "ReDiF-v0", **TINY | {"teacher": teacher}, action=action, observation="features", render_mode="rgb_array"
    )
    check_env(env.unwrapped)
    sb3_check_env(env.unwrapped)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_env_equals_stacked_single_envs(mode):
    """14 steps, exactly, against Gymnasium's SyncVectorEnv of single environments, in every autoreset mode."""
    ours = gym.make_vec("ReDiF-v0", num_envs=5, **TINY, num_steps=3, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: gym.make("ReDiF-v0", **TINY, num_steps=3)] * 5, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] is mode
    (observation, info), (expected, expected_info) = ours.reset(seed=7), theirs.reset(seed=7)
    np.testing.assert_array_equal(observation, expected)
    assert_same(info, expected_info)
    for actions in random_actions(theirs, 14):
        mine, other = ours.step(actions), theirs.step(actions)
        for value, expected in zip(mine[:4], other[:4], strict=True):
            np.testing.assert_array_equal(value, expected)
            assert value.dtype == expected.dtype
        assert_same(mine[4], other[4])
        if mode is AutoresetMode.DISABLED and mine[2].any():
            options = {"reset_mask": mine[2].copy()}
            reset, expected = ours.reset(options=dict(options)), theirs.reset(options=dict(options))
            np.testing.assert_array_equal(reset[0], expected[0])


def test_vector_env_equals_stacked_single_envs_with_a_network():
    """With a convolutional network, a batch rounds differently from its rows: the same to 1e-3."""
    settings = TINY | {"teacher": "digits"}
    ours = gym.make_vec("ReDiF-v0", num_envs=3, **settings, autoreset_mode=AutoresetMode.SAME_STEP)
    theirs = SyncVectorEnv([lambda: gym.make("ReDiF-v0", **settings)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    np.testing.assert_allclose(ours.reset(seed=1)[0], theirs.reset(seed=1)[0], atol=1e-4)
    for actions in random_actions(theirs, 6):
        for value, expected in zip(ours.step(actions)[:4], theirs.step(actions)[:4], strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-3)


def test_partial_reset_does_not_change_other_environments():
    env = ReDiFVectorEnv(3, **TINY, num_steps=2, autoreset_mode="Disabled")
    env.reset(seed=0)
    zero = np.zeros(env.action_space.shape, np.float32)
    env.step(zero)
    before = env.step(zero)[0]
    observation, info = env.reset(options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(observation[[0, 2]], before[[0, 2]])
    assert info["nfe"].tolist() == [0, 1, 0]
    with pytest.raises(gym.error.ResetNeeded, match=r"episodes \[0, 2\] are finished"):
        env.step(zero)


def test_zero_action_returns_minus_one_on_average():
    """Over the whole reference set the base solver's return is -1, and each return is minus its own scaled distance."""
    env = ReDiFVectorEnv(200, **TINY)
    env.reset(seed=0)
    zero, returns = np.zeros(env.action_space.shape, np.float32), {}
    for _ in range(4):
        _, rewards, terminated, _, _ = env.step(zero)
    assert terminated.all()
    for pair, reward in zip(env.last_transition.pair.tolist(), rewards, strict=True):
        returns[pair] = reward
    assert len(returns) == 32
    assert np.mean(list(returns.values())) == pytest.approx(-1, abs=1e-5)

    reference = reference_set(env.mdp.teacher, 32, num_steps=20)
    samples = sample(env.mdp.teacher, env.mdp.solver, env.mdp.grid, reference.noise, 4)
    errors = (samples - reference.endpoints).square().mean(1).sqrt()
    base = base_samples(env.mdp.teacher, reference, env.mdp.solver, env.mdp.grid, 4)
    torch.testing.assert_close(base, samples)
    for pair, reward in returns.items():
        assert reward == pytest.approx(-(errors[pair] / errors.mean()).item(), rel=1e-4)


def test_environments_are_independent_of_global_random_state_and_each_other():
    """Global generators of torch and numpy do not change, and interleaved environments give the same results."""
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected_torch, expected_numpy = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002

    def episode(env, other=None):
        observations = [env.reset(seed=11)[0]]
        for actions in random_actions(env, 9):
            if other is not None:
                other.reset(seed=5)
                other.step(np.ones(other.action_space.shape, np.float32))
            observations.append(env.step(actions)[0])
        return np.stack(observations)

    alone = episode(ReDiFVectorEnv(2, **TINY))
    together = episode(ReDiFVectorEnv(2, **TINY), ReDiFVectorEnv(3, **TINY))
    np.testing.assert_array_equal(alone, together)
    assert torch.rand(1) == expected_torch
    assert np.random.rand() == expected_numpy  # noqa: NPY002


def test_seeds():
    env = ReDiFVectorEnv(4, **TINY)
    pairs = env.reset(seed=9)[1]["pair"]
    assert env.reset(seed=[9, 10, 11, 12])[1]["pair"].tolist() == pairs.tolist()
    assert env.reset(seed=10)[1]["pair"][:3].tolist() == pairs[1:].tolist()
    # Without a seed the streams go on.
    assert env.reset()[1]["pair"].tolist() != env.reset()[1]["pair"].tolist()
    assert [ReDiFEnv(**TINY).reset(seed=9 + i)[1]["pair"] for i in range(4)] == pairs.tolist()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_groups_share_their_noise_in_every_episode(mode):
    env = ReDiFVectorEnv(6, **TINY, num_steps=2, group_size=3, autoreset_mode=mode)
    seen = [env.reset(seed=0)[1]["pair"]]
    zero = np.zeros(env.action_space.shape, np.float32)
    for _ in range(8):
        info = env.step(zero)[-1]
        if mode is AutoresetMode.DISABLED and info["nfe"][0] == 2 and np.isinf(info["half_logsnr"][0]):
            info = env.reset()[1]
        seen.append(info["pair"])
    for pairs in np.array(seen):
        assert len(set(pairs[:3].tolist())) == len(set(pairs[3:].tolist())) == 1
    assert len({tuple(pairs) for pairs in np.array(seen).tolist()}) > 2
    unseeded = ReDiFVectorEnv(6, **TINY, group_size=3).reset()[1]["pair"]
    assert len(set(unseeded[:3].tolist())) == 1


def test_members_of_a_group_share_the_call_that_they_begin_with(ring):
    rows = []
    ring.network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    arguments = TINY | {"teacher": ring, "num_steps": 2}
    env = ReDiFVectorEnv(6, **arguments, group_size=3, autoreset_mode=AutoresetMode.SAME_STEP)
    alone = ReDiFVectorEnv(6, **arguments)
    rows.clear()
    info = env.reset(seed=0)[1]
    assert rows == [2]
    assert info["nfe"].tolist() == [1] * 6  # what a sample takes, whoever made it
    alone.reset(options={"index": info["pair"]})
    assert rows == [2, 6]
    torch.testing.assert_close(env.state.history, alone.state.history)
    assert not torch.allclose(env.state.history[0], env.state.history[3])  # of another group
    # Actions set them apart, and so does a caller who chooses where each begins.
    env.step(env.action_space.sample())
    env.step(env.action_space.sample())
    assert rows == [2, 6, 6, 2]
    env.reset(options={"index": np.arange(6)})
    assert rows[-1] == 6


def test_members_that_begin_at_different_times_have_their_own_groups_prediction(ring):
    env = ReDiFVectorEnv(6, **TINY | {"teacher": ring, "num_steps": 2}, group_size=3)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    before = env.state
    env.reset(options={"reset_mask": np.array([False, True, True, False, False, True])})
    torch.testing.assert_close(env.state.history[[0, 3, 4]], before.history[[0, 3, 4]])
    alone = ReDiFVectorEnv(6, **TINY | {"teacher": ring, "num_steps": 2})
    alone.reset(options={"index": env.episodes.pair.numpy()})
    torch.testing.assert_close(env.state.history[[1, 2, 5]], alone.state.history[[1, 2, 5]])


def test_finished_samples_cost_no_network_calls(ring):
    """There are exactly num_steps calls per sample in every autoreset mode."""
    rows = []
    ring.network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    for mode in AutoresetMode:
        env = ReDiFVectorEnv(4, **TINY | {"teacher": ring}, num_steps=3, autoreset_mode=mode)
        zero = np.zeros(env.action_space.shape, np.float32)
        rows.clear()
        env.reset(seed=0)
        info = {}
        for _ in range(3):
            info = env.step(zero)[-1]
        finished = info["final_info"] if mode is AutoresetMode.SAME_STEP else info
        assert finished["nfe"].tolist() == [3] * 4
        assert sum(rows) == 4 * 3 + (4 if mode is AutoresetMode.SAME_STEP else 0)


def test_spec_pickle_and_copies(monkeypatch):
    """The spec survives JSON; env and copies go on alike; no network is ever copied by a spec."""
    env = gym.make("ReDiF-v0", **TINY)
    restored = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert restored.spec.kwargs == env.spec.kwargs
    env.reset(seed=1)
    twins = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    actions = random_actions(env, 4)
    expected = [env.step(action)[:3] for action in actions] + [env.reset()[0]]
    for twin in twins:
        for action, step in zip(actions, expected, strict=False):
            for value, other in zip(twin.step(action)[:3], step, strict=True):
                np.testing.assert_array_equal(value, other)
        np.testing.assert_array_equal(twin.reset()[0], expected[-1])

    def refuse(self, memo):
        raise AssertionError("a network was copied")

    live = ReDiFEnv(**TINY | {"teacher": redif_env.load_teacher("digits")})
    monkeypatch.setattr(torch.nn.Module, "__deepcopy__", refuse, raising=False)
    assert copy.deepcopy(live).batch.mdp.teacher is live.batch.mdp.teacher
    assert env.spec is not None
    assert gym.make("ReDiF-v0", **TINY | {"teacher": "digits"}).spec is not None
    assert gym.make_vec("ReDiF-v0", num_envs=2, **TINY).spec is not None


def test_returned_arrays_never_change():
    """Later steps do not modify arrays that were returned earlier."""
    env = ReDiFVectorEnv(3, **TINY)
    kept = [env.reset(seed=0)[0]]
    copies = [kept[0].copy()]
    for actions in random_actions(env, 9):
        observation, rewards, terminated, truncated, _ = env.step(actions)
        kept += [observation, rewards, terminated, truncated]
        copies += [value.copy() for value in kept[-4:]]
    for value, expected in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_strip_shows_the_trajectory():
    """The frame keeps its size, fills from the left, and a finished episode stays until the next one's first step."""
    env = ReDiFVectorEnv(
        2, **TINY | {"teacher": "digits"}, num_steps=2, render_mode="rgb_array", autoreset_mode="SameStep"
    )
    zero = np.zeros(env.action_space.shape, np.float32)
    env.reset(seed=0)
    frames = [env.render()]
    for _ in range(3):
        env.step(zero)
        frames.append(env.render())
    assert {frame.shape for pair in frames for frame in pair} == {(2 * 68 + 4, 3 * 68 + 4, 3)}
    empty = [sum(bool((frame[4:68, 4 + 68 * k : 68 + 68 * k] == 32).all()) for k in range(3)) for frame, _ in frames]
    assert empty == [2, 1, 0, 1]
    finished = ((env_final(env, zero) + 1) * 127.5).round()
    assert abs(int(env.render()[0][4 + 30, 4 + 136 + 30, 0]) - int(finished[0, 0, 3, 3])) <= 1


def env_final(env, zero):
    """Step once more to the end of the running episode, and give the finished samples."""
    env.step(zero)
    return env.last_transition.next_state.x.clamp(-1, 1)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_strip_starts_anew_with_a_reset(mode):
    """After reset() only the initial noise is to be seen, whatever was shown before."""
    env = ReDiFVectorEnv(2, **TINY, num_steps=2, render_mode="rgb_array", autoreset_mode=mode)
    for _ in range(2):
        env.reset(seed=0)
        columns = [bool((env.render()[0][4:36, 4 + 68 * k : 68 + 68 * k] == 32).all()) for k in range(3)]
        assert columns == [False, True, True]
        for _ in range(2):
            env.step(np.zeros(env.action_space.shape, np.float32))


def test_samples_that_are_not_images_are_rendered():
    env = gym.make("ReDiF-v0", **TINY, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (2 * 36 + 4, 5 * 68 + 4, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "no-such-teacher"}, "teacher='no-such-teacher' cannot be loaded"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"action": "jump"}, "action='jump' is unknown: choose one of 'solver', 'step'"),
        ({"observation": "all"}, "observation='all' is unknown"),
        ({"solver": "euler"}, "solver='euler' is unknown: choose one of 'ddim'"),
        ({"solver": "unipc"}, "solver='unipc' is one of diffusers' own, .*: choose one of 'ddim'"),
        ({"grid": "fine"}, "grid='fine' is unknown: choose one of 'time'"),
        ({"reward": "praise"}, "reward='praise' is unknown: choose one of 'endpoint'"),
        ({"reference_size": 0}, "reference_size must be at least 1, got 0"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used here"),
        ({"dtype": "int8"}, "dtype='int8' is unknown: choose one of 'float32', 'float64'"),
        ({"render_mode": "human"}, "render_mode='human' is unknown"),
        ({"autocast": True, "dtype": "float64"}, "autocast=True needs dtype='float32'"),
        (
            {"autocast": True, "action": "noise", "observation": "sample"},
            "autocast=True needs .* whose predictions are the teacher's",
        ),
    ],
)
def test_bad_settings_are_refused(settings, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ReDiFEnv(**TINY | settings)


def test_bad_vector_settings_are_refused():
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        ReDiFVectorEnv(0, **TINY)
    with pytest.raises(ValueError, match="group_size must divide num_envs=6, got 4"):
        ReDiFVectorEnv(6, **TINY, group_size=4)
    with pytest.raises(ValueError, match="autoreset_mode='Never' is unknown"):
        ReDiFVectorEnv(6, **TINY, autoreset_mode="Never")
    env = ReDiFVectorEnv(2, **TINY)
    with pytest.raises(ValueError, match="seed must be an int or 2 of them, got 3"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="must be a bool array of shape"):
        env.reset(options={"reset_mask": np.ones(3, dtype=bool)})
    with pytest.raises(ValueError, match="must choose at least one"):
        env.reset(options={"reset_mask": np.zeros(2, dtype=bool)})


def test_bad_actions_are_refused():
    env, envs = ReDiFEnv(**TINY), ReDiFVectorEnv(2, **TINY)
    with pytest.raises(gym.error.ResetNeeded, match="before reset"):
        env.step(np.zeros(5, np.float32))
    env.reset(seed=0)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must have shape \(5,\), got \(3,\)"):
        env.step(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"actions must have shape \(2, 5\), got \(5,\)"):
        envs.step(np.zeros(5, np.float32))
    actions = np.zeros((2, 5), np.float32)
    actions[1, 3] = np.nan
    with pytest.raises(ValueError, match=r"actions must be finite, but those of sub-environments \[1\] are not"):
        envs.step(actions)
    # A refused action leaves the episode where it was, and one outside the box is clipped.
    first = envs.step(np.full((2, 5), 7.0, np.float32))[0]
    envs.reset(seed=0)
    np.testing.assert_array_equal(envs.step(np.ones((2, 5), np.float32))[0], first)


def test_double_precision():
    env = ReDiFVectorEnv(2, **TINY, dtype="float64")
    observation, _ = env.reset(seed=0)
    env.step(np.zeros(env.action_space.shape, np.float32))
    assert env.last_transition.next_state.x.dtype == torch.float64
    assert observation.dtype == np.float32


def test_autocast_rounds_answers_to_bfloat16_and_nothing_else():
    """The answers are those of the same network under autocast; endpoints, samples and times keep their type."""
    plain, rounded = (ReDiFVectorEnv(4, num_steps=2, autocast=autocast) for autocast in (False, True))
    torch.testing.assert_close(plain.reference.endpoints, rounded.reference.endpoints, rtol=0, atol=0)
    for env in (plain, rounded):
        env.reset(seed=0)
        env.step(np.zeros(env.action_space.shape, np.float32))
    exact, ours = plain.last_transition, rounded.last_transition
    assert ours.next_state.x.dtype == ours.state.x0_history.dtype == torch.float32
    torch.testing.assert_close(ours.next_state.half_logsnr, exact.next_state.half_logsnr, rtol=0, atol=0)
    before = ours.state
    with torch.autocast("cpu", torch.bfloat16):
        asked = rounded.mdp.teacher.predict(before.x, before.half_logsnr, before.timestep).eps
    torch.testing.assert_close(before.eps_history[:, 0], asked, rtol=0, atol=0)
    assert not torch.equal(before.eps_history, exact.state.eps_history)
    torch.testing.assert_close(before.eps_history, exact.state.eps_history, rtol=0, atol=0.05)


def test_the_default_autoreset_is_gymnasiums():
    """The step after an episode's last takes no action; a single environment takes the argument and never resets."""
    env = gym.make_vec("ReDiF-v0", num_envs=3, **TINY, num_steps=2, max_episode_steps=2)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert SyncVectorEnv([lambda: gym.make("ReDiF-v0", **TINY)]).metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    env.reset(seed=0)
    zero = np.zeros(env.action_space.shape, np.float32)
    ends = [env.step(zero)[2].tolist() for _ in range(6)]
    assert ends == [[False] * 3, [True] * 3, [False] * 3] * 2
    for mode in ("SameStep", AutoresetMode.NEXT_STEP):
        single = gym.make("ReDiF-v0", **TINY, num_steps=2, autoreset_mode=mode)
        single.reset(seed=0)
        single.step(zero[0])
        assert single.step(zero[0])[2]
        with pytest.raises(gym.error.ResetNeeded):
            single.step(zero[0])
    with pytest.raises(ValueError, match="autoreset_mode='Never' is unknown"):
        gym.make("ReDiF-v0", **TINY, autoreset_mode="Never")
    with pytest.raises(ValueError, match="max_episode_steps=2 is below num_steps=4"):
        gym.make_vec("ReDiF-v0", num_envs=3, **TINY, max_episode_steps=2)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_specs_are_written_as_json(mode):
    text = gym.make_vec("ReDiF-v0", num_envs=2, **TINY, autoreset_mode=mode).spec.to_json()
    assert f'"autoreset_mode": "{mode.value}"' in text


def test_specs_of_paths_and_numbers_of_numpy_are_written_too():
    given = {**TINY, "teacher": Path(TINY["teacher"]), "num_steps": np.int64(2)}
    for made in (
        gym.make("ReDiF-v0", **given, autoreset_mode=AutoresetMode.DISABLED),
        gym.make_vec("ReDiF-v0", num_envs=2, **given),
    ):
        kwargs = json.loads(made.spec.to_json())["kwargs"]
        assert (kwargs["teacher"], kwargs["num_steps"]) == (TINY["teacher"], 2)


@pytest.mark.parametrize("seed", ["ab", 1.5, [True, False], [1.5, 2], True])
def test_seeds_are_whole_numbers(seed):
    env = gym.make_vec("ReDiF-v0", num_envs=2, **TINY)
    with pytest.raises(TypeError, match="seed must be a whole number"):
        env.reset(seed=seed)
    env.reset(seed=2**100)
    env.reset(seed=np.array([1, 2]))


SAME_STEP_COUNTED = pytest.mark.skipif(
    Version(gym.__version__) < Version("1.4"),
    reason="Gymnasium's statistics leave out a step after a reset in the same",
)


@pytest.mark.parametrize(
    "mode", [AutoresetMode.NEXT_STEP, pytest.param(AutoresetMode.SAME_STEP, marks=SAME_STEP_COUNTED)]
)
def test_gymnasiums_episode_statistics(mode):
    """They are the sums of what was paid, and count the steps that were taken."""
    env = gym.make_vec("ReDiF-v0", num_envs=4, **TINY, reward={"endpoint": 1.0, "step_cost": 0.1}, autoreset_mode=mode)
    env = gym.wrappers.vector.RecordEpisodeStatistics(env)
    env.reset(seed=0)
    zero, total, episodes = np.zeros(env.action_space.shape, np.float32), np.zeros(4), 0
    for _ in range(15):
        _, rewards, terminated, _, infos = env.step(zero)
        total += rewards
        if terminated.any():
            found = infos if mode is AutoresetMode.NEXT_STEP else infos.get("final_info", infos)
            episode = found.get("episode", infos.get("episode"))
            np.testing.assert_allclose(episode["r"], total, rtol=1e-6)
            assert episode["l"].tolist() == [4] * 4
            terms = {key for key in found if key.startswith("reward/")}
            assert terms == {"reward/endpoint", "reward/step_cost"}
            assert found["_reward/endpoint"].all()
            total[:], episodes = 0, episodes + 1
    assert episodes == 3


@pytest.mark.parametrize("name", redif_env.PRESETS)
def test_standard_tasks_are_registered(name):
    """By their own ids, single and batched; what is not of the task may be chosen."""
    arguments = redif_env.PRESETS[name]
    assert gym.spec(f"ReDiF/{name}-v0").kwargs == arguments
    if arguments["teacher"] == "digits":
        env = gym.make(f"ReDiF/{name}-v0", reference_size=32, teacher_steps=20).unwrapped
        assert env.batch.mdp.num_steps == arguments["num_steps"]
        envs = gym.make_vec(f"ReDiF/{name}-v0", num_envs=2, reference_size=32, teacher_steps=20)
        assert envs.unwrapped.mdp.teacher.name == "digits"


def test_the_vector_environment_says_its_seeds():
    env = gym.make_vec("ReDiF-v0", num_envs=3, **TINY)
    env.reset(seed=5)
    assert tuple(env.unwrapped.np_random_seed) == (5, 6, 7)
    env.unwrapped.np_random = [np.random.default_rng(seed) for seed in range(3)]
    assert tuple(env.unwrapped.np_random_seed) == (-1, -1, -1)
