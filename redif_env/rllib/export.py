"""From an RLlib algorithm, or its module, to a student."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from redif_env.envs.environments import ReDiFVectorEnv
from redif_env.rllib.env import made
from redif_env.students.student import Student

CHECKED = 8
"""Episodes in which a student's decisions are compared with the module's."""


def student_of_agent(agent: Any, env: Any | None = None) -> Student:
    """The student of an RLlib algorithm; entry point of ``Student.from_agent``.

    Args:
        agent: PPO with a module of linear layers (RLlib's own, or :class:`~redif_env.rllib.CalmModule`).
        env: a Gymnasium environment of the task; made of the algorithm's ``env_config`` by default.

    Raises:
        ValueError: if the module or a connector is of a kind that a student cannot carry.
    """
    for name in ("_env_to_module_connector", "_module_to_env_connector"):
        if getattr(agent.config, name, None) is not None:
            raise ValueError(
                f"agent has a connector of its own ({name.strip('_')}), which cannot be read: use "
                "Student.from_policy with decide=, observation= and action="
            )
    if env is None:
        settings = made(agent.config.env_config)
        for name in ("tensors", "num_envs", "group_size", "autoreset_mode"):
            settings.pop(name, None)
        env = ReDiFVectorEnv(CHECKED, **settings)
    return student_of_module(agent.get_module(), env)


def student_of_module(module: Any, env: Any) -> Student:
    """The student of a PPO module, held against the module's own inference in ``env``.

    Raises:
        ValueError: if it has layers that a student cannot carry, or decides otherwise.
    """
    encoder = getattr(module.encoder, "actor_encoder", None) or module.encoder.encoder
    size = env.unwrapped.single_action_space.shape[0] if hasattr(env, "num_envs") else env.action_space.shape[0]
    place = next(module.pi.parameters()).device

    def decide(observations: Tensor) -> Tensor:
        means: Tensor = module.forward_inference({Columns.OBS: observations.to(place)})[Columns.ACTION_DIST_INPUTS]
        return means[:, :size].cpu()

    return Student.from_policy(torch.nn.ModuleList([encoder, module.pi]), env, decide=decide)
