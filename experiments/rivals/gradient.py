"""The same actions by the gradient through the sampler, not by reinforcement learning (LD3, S4S: Tong et al. 2024,
Frankel et al. 2025): one table for all samples, or the same policy network that PPO trains.

It needs what reinforcement learning does not: a reward, a network and solver steps that can all be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.rivals.rival import BACKWARD_CALLS, Clock, Fitted, Task, distance, sampler_of
from redif_env.features import default_features, load_features
from redif_env.mdp import DenoisingMDP
from redif_env.policies import Policy, PolicyConfig
from redif_env.sampling import trajectory
from redif_env.settings import DEFAULT_GRID, DEFAULT_SOLVER, build_mdp
from redif_env.students import Student

BATCH = 64
JUDGEMENTS = 12
"""Times that the student is judged on validation noise during a run, at even distances in time."""
EMA = 0.98


class Table(nn.Module):
    """One action a step, whatever the sample: ``(num_steps, A)``, looked up by the one-hot of the steps left."""

    def __init__(self, num_steps: int, actions: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(num_steps, actions))

    def forward(self, observations: Tensor) -> Tensor:
        """Actions ``(B, A)``; beyond [-1, 1] the gradient passes, so that nothing gets stuck at the border."""
        left = observations[:, : len(self.values)]
        return _clamp(left @ self.values.flip(0))


class Network(nn.Module):
    """The policy that PPO trains, from zero actions."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.policy = Policy(config)
        nn.init.zeros_(self.policy.linears[-1].weight)
        nn.init.zeros_(self.policy.linears[-1].bias)

    def forward(self, observations: Tensor) -> Tensor:
        """Actions ``(B, A)``."""
        return _clamp(self.policy.layers(observations))


def gradient_table(task: Task) -> Fitted:
    """Without states: LD3 and S4S, on our actions."""
    mdp = _mdp(task)
    module = Table(task.num_steps, mdp.action_size)

    def student_of(averaged: nn.Module) -> Student:
        return Student(mdp, Policy.from_table(averaged.values.detach().clamp(-1, 1), mdp.observation_size))

    return _fit(task, mdp, module, student_of, 3e-2)


def gradient_policy(task: Task) -> Fitted:
    """With states: our student, trained by gradient."""
    mdp = _mdp(task)
    config = PolicyConfig((mdp.observation_size, 64, 64, mdp.action_size))
    module = Network(config)

    def student_of(averaged: nn.Module) -> Student:
        policy = Policy(config)
        policy.load_state_dict(averaged.policy.state_dict())
        return Student(mdp, policy)

    return _fit(task, mdp, module, student_of, 3e-3)


def loss_of(task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean distance in the features that PPO's reward sees: the reward's main term, differentiated."""
    teacher = task.teacher
    features = load_features(default_features(teacher.image_shape), teacher.image_shape).to(teacher.device)

    def loss(samples: Tensor, endpoints: Tensor) -> Tensor:
        # Clipping would stop the gradient of what lies outside.
        apart = F.mse_loss(features(samples), features(endpoints), reduction="none").flatten(1).mean(dim=1)
        return (apart + 1e-12).sqrt().mean()

    return loss


def _mdp(task: Task) -> DenoisingMDP:
    return build_mdp(
        task.teacher, task.num_steps, "solver", "features", DEFAULT_SOLVER, DEFAULT_GRID, str(task.teacher.device),
        "float32",
    )  # fmt: skip


def _fit(
    task: Task, mdp: DenoisingMDP, module: nn.Module, student_of: Callable[[nn.Module], Student], rate: float
) -> Fitted:
    """Adam on batches of the reference set, the rate falling to zero with the budget; the best average is kept."""
    generator = torch.Generator().manual_seed(task.seed)
    torch.manual_seed(task.seed)
    device, loss = task.teacher.device, loss_of(task)
    module.to(device)
    average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA))
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    clock, best, judged = Clock(task.seconds), (float("inf"), student_of(module)), 0
    while clock.share < 1:
        chosen = torch.randint(len(task.reference), (BATCH,), generator=generator)
        noise, condition = (part[chosen].to(device) for part in (task.reference.noise, task.reference.condition))
        *_, last = trajectory(mdp, module, noise, mdp.constant_price(BATCH), condition)
        optimizer.zero_grad()
        loss(last.x, task.reference.endpoints[chosen].to(device)).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - clock.share)
        optimizer.step()
        average.update_parameters(module)
        clock.network_calls += BATCH * task.nfe * (1 + BACKWARD_CALLS)
        if clock.share * JUDGEMENTS >= judged + 1 or clock.share == 1:
            judged += 1
            student = student_of(average.module)
            best = min(best, (distance(task.chooser, sampler_of(student)), student), key=lambda pair: pair[0])
    return Fitted(sampler_of(best[1]), clock.spent, clock.network_calls)


def _clamp(actions: Tensor) -> Tensor:
    """Clipped to [-1, 1] going forward, untouched going back."""
    return actions + (actions.clamp(-1, 1) - actions).detach()
