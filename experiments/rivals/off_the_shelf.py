"""Other agents of Stable-Baselines3 on the same environment, with stock policies and the settings that suit them."""

from __future__ import annotations

from typing import Any

from stable_baselines3 import A2C, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm

from experiments.rivals.pace import environment_seconds, in_time
from experiments.rivals.rival import Clock, Fitted, StudentSampler, Task
from redif_env.sb3 import make_vec_env
from redif_env.sb3.training.callbacks import linear_to_zero
from redif_env.students.student import Student
from redif_env.training.command import DEFAULT_REWARD

NUM_ENVS = 64
GROUP = 8
SECONDS = {A2C: 1e-4, SAC: 3e-4, TD3: 3e-4}
"""What a step of one sub-environment costs besides the environment's own time."""
SETTINGS: dict[type[BaseAlgorithm], dict[str, Any]] = {
    A2C: {
        "learning_rate": linear_to_zero(3e-3),
        "gamma": 1.0,
        "gae_lambda": 1.0,
        "normalize_advantage": True,
        "policy_kwargs": {"log_std_init": -1.6},
    },
    SAC: {"learning_rate": 1e-3, "gamma": 1.0, "batch_size": 256, "gradient_steps": 4, "learning_starts": 1000},
    TD3: {"learning_rate": 1e-3, "gamma": 1.0, "batch_size": 256, "gradient_steps": 4, "learning_starts": 1000},
}


def off_the_shelf(kind: type[BaseAlgorithm], task: Task) -> Fitted:
    """The agent's last policy, for as many network calls as the budget pays for."""
    clock, settings = Clock(task.seconds), dict(SETTINGS[kind])
    env = make_vec_env(
        NUM_ENVS,
        teacher=task.teacher.name,
        num_steps=task.num_steps,
        solver=task.base.solver,
        grid=task.base.grid,
        initial_map=task.base.initial_map,
        reward=dict(DEFAULT_REWARD),
        group_size=GROUP,
        reference_size=len(task.reference),
        teacher_steps=task.reference.num_steps,
    )
    if kind is A2C:
        settings["n_steps"] = task.num_steps
    calls = in_time(task, environment_seconds(env, task.num_steps) + SECONDS[kind], NUM_ENVS)
    agent = kind("MlpPolicy", env, seed=task.seed, device="cpu", **settings)
    agent.learn(calls // task.teacher.calls)
    sampler = StudentSampler(Student.from_agent(agent))
    spent = agent.num_timesteps * task.teacher.calls
    return Fitted(sampler, clock.spent, spent, levels=sampler.levels(task.chooser))
