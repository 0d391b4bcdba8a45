"""How fast this machine is now, and so how many network calls a budget of seconds pays for."""

from __future__ import annotations

import time
from math import inf

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from experiments.rivals.rival import Task
from redif_env.training.plan import TIMED_SECONDS


def in_time(task: Task, a_step: float, batch_size: int) -> int:
    """Network calls that fit into the budget if a step of one sample takes ``a_step`` seconds, at most those that the
    task allows; at least four batches of whole samples."""
    affordable = min(task.seconds / a_step * task.teacher.calls, task.calls or inf)
    return max(int(affordable), 4 * batch_size * task.nfe)


def environment_seconds(env: VecEnv, num_steps: int) -> float:
    """Seconds that a step of one sub-environment takes, rewards included, by this machine's speed now.

    Measured, for about a second, on whole episodes of the base solver.
    """
    actions = np.zeros((env.num_envs, *env.action_space.shape), np.float32)
    env.reset()
    taken, start = -1, time.perf_counter()
    while taken < 1 or time.perf_counter() - start < TIMED_SECONDS:
        if taken == 0:  # the first episode warms up
            start = time.perf_counter()
        for _ in range(num_steps):
            env.step(actions)
        taken += 1
    return (time.perf_counter() - start) / (taken * num_steps * env.num_envs)
