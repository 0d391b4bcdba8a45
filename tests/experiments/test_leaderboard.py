"""The leaderboard, on a task of seconds, and the projection of more runners."""

from dataclasses import replace

import gymnasium as gym
import pytest

from experiments import leaderboard
from experiments.runners import Machine, simulate

TASK = "ReDiF/Tiny-v0"
pytestmark = [
    pytest.mark.usefixtures("quick_distance"),
    pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning"),
]


@pytest.fixture
def task():
    kwargs = {"teacher": "gaussian-ring", "num_steps": 2, "reference_size": 32, "teacher_steps": 8}
    gym.register(TASK, "redif_env.envs.environments:ReDiFEnv", kwargs=kwargs)
    yield
    del gym.registry[TASK]


def test_each_agent_is_trained_once_under_one_budget(task, tmp_path, capsys, monkeypatch):
    agents = ("PPO, agents.cleanrl_ppo", "A2C")
    args = leaderboard.Args(ids=(TASK,), agents=agents, network_calls=512, seeds=(0, 1), test_size=32, out=tmp_path)
    leaderboard.main(args)
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*agents, leaderboard.BASE, leaderboard.SOLVER))
    monkeypatch.setattr(leaderboard, "import_module", lambda name: pytest.fail(f"{name} was run again"))
    leaderboard.main(args)
    again = capsys.readouterr().out
    assert again[again.rindex(TASK) :] == printed[printed.rindex(TASK) :]
    with pytest.raises(ValueError, match=r"network_calls=1024 \(was 512\)"):
        leaderboard.main(replace(args, network_calls=1024))
    with pytest.raises(ValueError, match=r"device='auto' \(was 'cpu'\)"):
        leaderboard.main(replace(args, device="auto"))
    with pytest.raises(ValueError, match=r"agents=.'DQN',. must be among"):
        leaderboard.main(replace(args, agents=("DQN",)))


def test_ratios_are_to_agents_ppo():
    def row(method, distance):
        return {"method": method, "fd_teacher": distance, "mse_teacher": 0.0}

    rows = [row(leaderboard.FIRST, 0.2), row("A2C", 0.1), row("A2C", 0.3), row("A2C", 0.5)]
    first, second = leaderboard.lines(rows)
    assert (first[0], first[3]) == (leaderboard.FIRST, "1.00")
    assert second[:4] == ["A2C", "", "0.300 (0.100 to 0.500)", "1.50"]


def test_runners_gain_what_the_assumptions_leave():
    """Without anything but sampling, as many times as there are runners; a wait, or an update, costs."""
    free = Machine(launch=0, jitter=0, message=0, learn=0)

    def gain(machine):
        return simulate(machine, 1.0, 1, 50) / simulate(machine, 1.0, 4, 50)

    assert gain(free) == pytest.approx(4)
    assert gain(replace(free, jitter=0.1)) < 3.9
    assert gain(replace(free, learn=1.0)) < 3.5
    assert gain(replace(free, learn=1e6)) == pytest.approx(1, abs=1e-3)
