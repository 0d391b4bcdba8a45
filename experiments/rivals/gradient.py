"""The same actions by the gradient through the sampler, not by reinforcement learning (LD3, S4S: Tong et al. 2024,
Frankel et al. 2025): one table for all samples, or the same policy network that PPO trains.

It needs what reinforcement learning does not: a reward, a network and solver steps that can all be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from experiments.rivals.descent import descend, through_sampler
from experiments.rivals.rival import Fitted, StudentSampler, Task, seen
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.process import DenoisingMDP
from redif_env.mdp.sampling import trajectory
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.students.network.refinement import straight_through
from redif_env.students.student import Student

EMA = 0.98


class Table(nn.Module):
    """One action a step, whatever the sample: ``(num_steps, A)``, looked up by the one-hot of the steps left."""

    def __init__(self, num_steps: int, actions: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(num_steps, actions))

    def forward(self, observations: Tensor) -> Tensor:
        """Actions ``(B, A)``."""
        left = observations[:, : len(self.values)]
        actions = left @ self.values.flip(0)
        return straight_through(actions, actions.clamp(-1, 1))


class Network(nn.Module):
    """The policy that PPO trains, from zero actions."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.policy = Policy(config)
        nn.init.zeros_(self.policy.linears[-1].weight)
        nn.init.zeros_(self.policy.linears[-1].bias)

    def forward(self, observations: Tensor) -> Tensor:
        """Actions ``(B, A)``."""
        actions = self.policy.layers(observations)
        return straight_through(actions, actions.clamp(-1, 1))


def gradient_table(task: Task) -> Fitted:
    """Without states: LD3 and S4S, on our actions."""
    mdp = _mdp(task)

    def student_of(averaged: nn.Module) -> Student:
        return Student(mdp, Policy.from_table(averaged.values.detach().clamp(-1, 1), mdp.observation_size))

    return _fit(task, mdp, Table(task.num_steps, mdp.action_size), student_of, 3e-2)


def gradient_policy(task: Task) -> Fitted:
    """With states: our student, trained by gradient."""
    mdp = _mdp(task)
    config = PolicyConfig((mdp.observation_size, 64, 64, mdp.action_size))
    torch.manual_seed(task.seed)

    def student_of(averaged: nn.Module) -> Student:
        policy = Policy(config)
        policy.load_state_dict(averaged.policy.state_dict())
        return Student(mdp, policy)

    return _fit(task, mdp, Network(config), student_of, 3e-3)


def _mdp(task: Task) -> DenoisingMDP:
    return build_mdp(
        MDPSettings(
            teacher=task.teacher,
            num_steps=task.num_steps,
            observation=seen(task.teacher),
            solver=task.base.solver,
            grid=task.base.grid,
            device=str(task.teacher.device),
            initial_map=task.base.initial_map,
        )
    )


def _fit(
    task: Task, mdp: DenoisingMDP, module: nn.Module, student_of: Callable[[nn.Module], Student], rate: float
) -> Fitted:
    module.to(task.teacher.device)

    def make(noise: Tensor, condition: Tensor) -> Tensor:
        *_, last = trajectory(mdp, module, noise, mdp.constant_price(len(noise)), condition)
        return last.x

    descent = through_sampler(task, make, rate, EMA)
    found = descend(task, module, descent, lambda averaged: StudentSampler(student_of(averaged)))
    assert isinstance(found.sampler, StudentSampler)
    return replace(found, levels=found.sampler.levels(task.chooser))
