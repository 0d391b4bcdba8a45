"""Train a few-step student with skrl's PPO, and export it.

    python -m agents.skrl_ppo --teacher digits --num-steps 4 --out runs/skrl

Needs ``pip install skrl``. Read ``train`` from top to bottom.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from skrl.agents.torch.ppo import PPO
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
from skrl.trainers.torch import SequentialTrainer
from torch import nn

import redif_env  # noqa: F401  (registers the environment)
from agents.program import Settings, finish
from redif_env import Student
from redif_env.envs.wrappers import GroupRelativeReward
from redif_env.training.command import run, with_sizes
from redif_env.training.runs import begin

PROGRAM = "skrl"


@dataclass(frozen=True)
class Args(Settings):
    """Settings of the environment and of the run."""

    out: Path = Path("runs/skrl")
    """Folder for config.json, student/, result.json and samples.png."""


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))


class Policy(GaussianMixin, Model):
    """Means of a small network that starts at the base solver, and a deviation that is set from outside."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        GaussianMixin.__init__(self)
        self.net, self.std = network(self.num_observations, self.num_actions), 1.0
        with torch.no_grad():
            self.net[-1].weight.mul_(0.01)
            self.net[-1].bias.zero_()

    def compute(self, inputs: Any, role: str) -> Any:
        mean = self.net(inputs["observations"])
        return mean, {"log_std": torch.full_like(mean, math.log(self.std))}


class Value(DeterministicMixin, Model):
    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)
        self.net = network(self.num_observations, 1)

    def compute(self, inputs: Any, role: str) -> Any:
        return self.net(inputs["observations"]), {}


class AnnealedPPO(PPO):
    """skrl's PPO; after each update exploration and learning rate are those of what is left of the budget."""

    args: Args

    def update(self, *, timestep: int, timesteps: int) -> None:
        super().update(timestep=timestep, timesteps=timesteps)
        done = (timestep + 1) / timesteps
        self.policy.std = self.args.std(done)
        self.optimizer.param_groups[0]["lr"] = self.args.learning_rate * (1 - done)


def train(args: Args) -> tuple[Student, dict[str, Any]]:
    """The student of the last policy, and what it cost."""
    torch.manual_seed(args.seed)
    # In SAME_STEP every step of every row is a decision, so a rollout of num_steps is one whole episode a row.
    core = gym.make_vec("ReDiF-v0", args.num_envs, group_size=args.group_size, autoreset_mode="SameStep", **args.task)
    core.reset(seed=args.seed)
    env = wrap_env(GroupRelativeReward(core) if args.group_size > 1 else core, wrapper="gymnasium", verbose=False)
    begin(args, PROGRAM)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space, "device": env.device}
    policy = Policy(**spaces)
    policy.std = args.std(0)
    agent = AnnealedPPO(
        models={"policy": policy, "value": Value(**spaces)},
        memory=RandomMemory(memory_size=args.num_steps, num_envs=args.num_envs, device=env.device),
        cfg={
            "rollouts": args.num_steps,
            "learning_epochs": args.epochs,
            "mini_batches": args.batches,
            "discount_factor": 1.0,
            "gae_lambda": 1.0,
            "learning_rate": args.learning_rate,
            "value_clip": 0.0,
            "value_loss_scale": 0.5,
            "experiment": {"write_interval": 0, "checkpoint_interval": 0},
        },
        **spaces,
    )
    agent.args = args
    steps = args.rollouts(core.unwrapped.mdp.calls) * args.num_steps
    start = time.monotonic()
    SequentialTrainer(env=env, agents=agent, cfg={"timesteps": steps, "headless": True}).train()
    facts = {"train_seconds": round(time.monotonic() - start, 1), "environment_steps": steps * args.num_envs}
    return Student.from_policy(policy.net, core), facts


def main(args: Args) -> None:
    finish(args, PROGRAM, train)


if __name__ == "__main__":
    run(main, Args, with_sizes)
