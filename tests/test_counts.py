"""What a step asks of a device outside the network cannot creep up: operations launched, copies sent, host waits.

The counts are exact. A change that raises one has to be meant, and its line is in the message.
"""

import copy

import numpy as np
import pytest
import torch

from experiments.bench_env import Args, counted, main, print_counts
from experiments.pretended_device import NAME, PretendedDevice
from redif_env import ReDiFVectorEnv
from redif_env.diffusion.solvers import SOLVERS
from redif_env.mdp.actions import ACTION_MAPS
from redif_env.rewards.names import REWARDS
from redif_env.teachers.teacher import load_teacher
from tests.models import unet

SMALL = {"reference_size": 16, "teacher_steps": 4, "num_steps": 3}
NOISE = {"action": "noise", "observation": "sample"}

STEPS = {
    "solver": ((24, 5, 1), (34, 6, 2)),
    "step": ((17, 3, 1), (27, 4, 2)),
    "noise": ((8, 3, 1), (18, 4, 2)),
}
"""By action map: operations, sends and waits of a step on the digits, and of the one that ends every episode."""

PAID = {
    "endpoint": ((17, 3, 1), (27, 4, 2)),
    "endpoint_squared": ((17, 3, 1), (27, 4, 2)),
    "endpoint_ssim": ((17, 3, 1), (73, 4, 2)),
    "feature": ((17, 3, 1), (38, 4, 2)),
    "trajectory": ((27, 4, 2), (32, 5, 2)),
    "path": ((26, 5, 2), (31, 6, 2)),
    # Without float64 on the device their features are compared on the host.
    "mmd": ((17, 3, 1), (42, 4, 3)),
    "energy": ((17, 3, 1), (42, 4, 3)),
    "step_cost": ((17, 3, 1), (22, 4, 1)),
    "price": ((17, 3, 1), (22, 4, 1)),
}
"""By reward, with ``action="step"``; what a reward's own networks do is counted, but for the teacher's."""


def digits():
    """The digits' teacher with a smaller network, at which no count looks."""
    teacher = copy.copy(load_teacher("digits"))
    torch.manual_seed(0)
    teacher.network = unet(samples=1).eval().requires_grad_(False)
    return teacher


def counts(settings, num_envs=8):
    """Of a step that ends no episode, and of one that ends all, with the lines that cause them."""
    with PretendedDevice(float64=False) as device:
        teacher = load_teacher(settings.pop("teacher")) if "teacher" in settings else digits()
        placed = {"teacher": teacher, "device": NAME, "autoreset_mode": "SameStep"}
        env = ReDiFVectorEnv(num_envs, **placed, **SMALL | settings)
        actions = np.full(env.action_space.shape, 0.1, np.float32)
        with device.not_counting(teacher.network):
            env.reset(seed=0)
            for _ in range(SMALL["num_steps"] + 1):  # what is computed once and stored
                env.step(actions)
            found, lines = [], {}
            for _ in range(2):
                device.forget()
                env.step(actions)
                found.append(device.totals)
                lines[len(found)] = (dict(device.operations), dict(device.waits))
    return tuple(found), lines


@pytest.mark.parametrize("num_envs", [8, 256])
@pytest.mark.parametrize("action", list(ACTION_MAPS))
def test_action_maps(action, num_envs):
    found, lines = counts(NOISE if action == "noise" else {"action": action}, num_envs)
    assert found == STEPS[action], lines
    mean = ((SMALL["num_steps"]) * found[0][0] + found[1][0]) / 4
    assert mean <= {"solver": 40, "step": 20, "noise": 20}[action]
    assert max(waits for _, _, waits in found) <= 2


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_solvers(solver):
    found, lines = counts({"solver": solver})
    assert found == STEPS["solver"], lines


@pytest.mark.usefixtures("small_fits")
def test_linear_steps():
    """Matrices of what is fitted to two dimensions; nothing that is fitted is sent again."""
    found, lines = counts({"solver": "linear", "grid": "time@4", "initial_map": "linear", "teacher": "gaussian-ring"})
    assert found == ((19, 6, 1), (32, 10, 2)), lines


@pytest.mark.parametrize("reward", list(REWARDS))
def test_rewards(reward):
    prices = {"prices": (0.01, 0.1)} if reward == "price" else {}
    found, lines = counts({"action": "step", "reward": reward} | prices)
    assert found == PAID[reward], lines


def test_blind_policies_make_nobody_wait():
    found, _ = counts({"observation": "steps"})
    assert [waits for _, _, waits in found] == [0, 1]


def test_the_program_prints_what_causes_them(pipeline_folder, capsys):
    legs = counted(Args(str(pipeline_folder), num_steps=2, counted_envs=2))
    print_counts(legs)
    printed = capsys.readouterr().out
    for name, (device, _) in legs.items():
        assert f"{name}: " in printed
        assert device.totals[0] > 0
        for line in device.waits:
            assert line in printed
    operations, _, waits = legs["environment"][0].totals
    assert operations / 2 <= 40
    assert waits / 2 <= 2


def test_counts_are_of_no_device_at_hand():
    with pytest.raises(ValueError, match="counts are of a pretended device, not of device='cuda'"):
        main(Args(counts=True, device="cuda"))
