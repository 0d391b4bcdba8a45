"""Train a few-step student with TorchRL's PPO, and export it: the environment's tensors never leave torch.

    python -m agents.torchrl_ppo --teacher digits --num-steps 4 --out runs/torchrl

Needs the extra ``redif-env[torchrl]``. Read ``train`` from top to bottom.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.modules import IndependentNormal, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from redif_env import Student
from redif_env.envs.task import Task
from redif_env.judging.baselines import Which, baselines_of
from redif_env.judging.evaluation import Evaluator
from redif_env.torchrl import ReDiFEnv
from redif_env.training.command import DEFAULT_REWARD, run, with_sizes
from redif_env.training.options import arguments_of, options_of
from redif_env.training.report import report
from redif_env.training.runs import begin, settings_json, unfinished

PROGRAM = "torchrl_ppo"
TaskOptions: Any = options_of(Task, reward=DEFAULT_REWARD)


@dataclass(frozen=True)
class Args(TaskOptions):
    """Settings of the environment and of the run."""

    seed: int = 0
    """Of the agent, and of all that is drawn."""
    out: Path = Path("runs/torchrl")
    """Folder for config.json, student/, result.json and samples.png."""
    network_calls: int = 60_000
    """Budget: as many episodes as it pays for."""
    num_envs: int = 128
    """Episodes that run together."""
    group_size: int = 8
    """Sub-environments that share their initial noise; 1 turns the group-relative reward off."""
    epochs: int = 4
    """Passes of an update over its rollout."""
    batches: int = 4
    """Minibatches a rollout."""
    learning_rate: float = 1e-3
    """Falls linearly to zero."""
    exploration: tuple[float, float] = (0.8, 0.25)
    """Standard deviation of the actions at the start and at the end, divided by the number of steps."""
    test_size: int | None = None
    """Noises of the report."""
    baselines: Which = "quick"
    """Training-free solvers in the report."""
    resume: bool = False
    """Start the run in out again, if it did not end; a finished one is left alone."""


class Actor(nn.Module):
    """Means of a small network that starts at the base solver, and deviations that are set from outside."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mean = network(inputs, outputs)
        self.std = 1.0
        with torch.no_grad():
            self.mean[-1].weight.mul_(0.01)
            self.mean[-1].bias.zero_()

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self.mean(observation)
        return mean, torch.full_like(mean, self.std)


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))


def train(args: Args) -> tuple[Student, dict[str, Any]]:
    """The student of the last policy, and what it cost."""
    torch.manual_seed(args.seed)
    env = ReDiFEnv(args.num_envs, group_size=args.group_size, seed=args.seed, **arguments_of(args, Task))
    begin(args, PROGRAM)
    size = env.mdp.observation_size
    net = Actor(size, env.mdp.action_size).to(env.device)
    actor = ProbabilisticActor(
        TensorDictModule(net, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )
    critic = ValueOperator(network(size, 1).to(env.device), in_keys=["observation"])
    loss = ClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_bonus=False, normalize_advantage=True)
    advantage = GAE(gamma=1.0, lmbda=1.0, value_network=critic)
    optimizer = torch.optim.Adam(loss.parameters(), args.learning_rate, eps=1e-5)
    frames = args.num_envs * args.num_steps
    rollouts = max(1, args.network_calls // (frames * env.mdp.calls))
    collector = Collector(env, actor, frames_per_batch=frames, total_frames=frames * rollouts)
    start, (first, last) = time.monotonic(), (std / args.num_steps for std in args.exploration)
    net.std = first
    for index, data in enumerate(collector):
        for _ in range(args.epochs):
            with torch.no_grad():
                advantage(data)
            flat = data.reshape(-1)
            for rows in torch.randperm(len(flat)).chunk(args.batches):
                losses = loss(flat[rows])
                optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"]).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
        done = (index + 1) / rollouts
        net.std = first * (last / first) ** done
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - done)
        if index % 20 == 0:
            mean = data["next", "task_reward"].sum(1).mean().item()
            print(f"{(index + 1) * frames:>9,} steps: return {mean:.4f}")
    collector.shutdown(close_env=False)
    facts = {"train_seconds": round(time.monotonic() - start, 1), "environment_steps": frames * rollouts}
    return Student.from_policy(net.mean, env), facts


def main(args: Args) -> None:
    if unfinished(args, PROGRAM):
        student, facts = train(args)
        sizes = {"teacher_steps": args.teacher_steps, "train_size": args.reference_size}
        evaluator = Evaluator(student.mdp.teacher, args.test_size, **sizes)
        report(
            "redif-torchrl",
            student,
            settings_json(args),
            facts,
            args.out,
            evaluator,
            baselines_of(args.baselines, evaluator.teacher),
        )


if __name__ == "__main__":
    run(main, Args, with_sizes)
