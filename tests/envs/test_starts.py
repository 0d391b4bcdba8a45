"""What ``reset`` takes: the start of an episode, chosen instead of drawn."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from redif_env import ReDiFEnv, ReDiFVectorEnv
from redif_env.teachers.teacher import load_teacher

TINY = {"teacher": "gaussian-ring", "reference_size": 32, "teacher_steps": 20, "num_steps": 3}


def test_a_pair_of_the_reference_set():
    env = ReDiFEnv(**TINY)
    drawn = env.reset(seed=4)
    chosen = env.reset(seed=9, options={"index": drawn[1]["pair"]})
    np.testing.assert_array_equal(drawn[0], chosen[0])
    assert drawn[1] == chosen[1]
    assert env.reset(seed=9)[1]["pair"] != drawn[1]["pair"]


def test_noise_of_one_s_own():
    """The noise of a pair is what the pair is; its endpoint is made, and no row of the reference set is named."""
    env = ReDiFEnv(**TINY)
    expected, _ = env.reset(options={"index": 7})
    seen, info = env.reset(options={"noise": env.batch.reference.noise[7].numpy()})
    np.testing.assert_array_equal(seen, expected)
    assert info["pair"] == -1
    env.step(np.zeros(5, np.float32))
    torch.testing.assert_close(env.last_transition.endpoint[0], env.batch.reference.endpoints[7])


def test_rows_of_a_vector_environment():
    env = ReDiFVectorEnv(3, **TINY)
    before = env.reset(seed=0)[1]["pair"]
    mask = np.array([False, True, True])
    info = env.reset(options={"reset_mask": mask, "index": np.array([0, 5, 6])})[1]
    assert info["pair"].tolist() == [0, 5, 6]
    assert env.state_dict()["pair"].tolist() == [before[0], 5, 6]
    torch.testing.assert_close(env.episodes.endpoint[0], env.reference.endpoints[before[0]])
    own = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    env.reset(options={"reset_mask": ~mask, "noise": own})
    made = env.mdp.teacher.endpoint(own[:1], 20)
    torch.testing.assert_close(env.episodes.endpoint, torch.cat([made, env.reference.endpoints[[5, 6]]]))
    twin = ReDiFVectorEnv(3, **TINY)
    twin.reset(seed=1)
    twin.load_state_dict(env.state_dict())
    action = np.full((3, 5), 0.3, np.float32)
    for mine, other in zip(env.step(action)[:3], twin.step(action)[:3], strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_condition(labelled):
    """Alone it is one of the reference set's pairs with that label; with noise it is what the teacher is given."""
    env = ReDiFVectorEnv(2, **TINY | {"teacher": load_teacher(labelled)})
    for seed in range(4):
        info = env.reset(seed=seed, options={"condition": [2, 0]})[1]
        assert info["condition"].tolist() == [2, 0]
        assert env.reference.condition[info["pair"]].tolist() == [2, 0]
    assert env.reset(options={"condition": 1, "noise": torch.zeros(2, 3, 8, 8)})[1]["condition"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="condition=9 is not among the 3 that are known"):
        env.reset(options={"condition": 9})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 3}, r"options \['start'\] are unknown: choose among 'index', 'noise', 'condition'"),
        ({"reset_mask": np.ones(1, dtype=bool)}, r"options \['reset_mask'\] are unknown"),
        ({"index": 32}, r"options\['index'\] must be 1 whole numbers from 0 to 31"),
        ({"index": 0.5}, r"options\['index'\] must be 1 whole numbers"),
        ({"noise": np.zeros(3)}, r"options\['noise'\] must be finite numbers of shape \(1, 2\), got shape \(1, 3\)"),
        ({"noise": "x"}, r"options\['noise'\] must be numbers of shape"),
        ({"noise": np.full(2, np.nan)}, r"options\['noise'\] must be finite"),
        ({"index": 1, "noise": np.zeros(2)}, "leave 'noise' and 'condition' out"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ReDiFEnv(**TINY).reset(options=options)


def test_unknown_options_of_vector_environments_are_refused():
    with pytest.raises(ValueError, match=r"options \['mask'\] are unknown: choose among 'reset_mask'"):
        gym.make_vec("ReDiF-v0", num_envs=2, **TINY).reset(options={"mask": np.ones(2, dtype=bool)})


def test_paths_know_the_reference_set_alone():
    env = ReDiFEnv(**TINY, reward="path")
    env.reset(options={"noise": np.zeros(2)})
    with pytest.raises(ValueError, match=r"leave options\['noise'\] out"):
        env.step(np.zeros(5, np.float32))
