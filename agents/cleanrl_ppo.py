"""PPO in one file, with nothing between you and the numbers, in the manner of CleanRL. The environment is Gymnasium's.

    python -m agents.cleanrl_ppo --teacher digits --num-steps 4 --out runs/cleanrl

A start for algorithms of your own: ``train`` is the whole of it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from redif_env import Student
from redif_env.envs.task import Task
from redif_env.envs.wrappers import GroupRelativeReward
from redif_env.judging.baselines import Which, baselines_of
from redif_env.judging.evaluation import Evaluator
from redif_env.training.command import DEFAULT_REWARD, run, with_sizes
from redif_env.training.options import arguments_of, options_of
from redif_env.training.report import report
from redif_env.training.runs import begin, settings_json, unfinished

PROGRAM = "cleanrl_ppo"
TaskOptions: Any = options_of(Task, reward=DEFAULT_REWARD)


@dataclass(frozen=True)
class Args(TaskOptions):
    """Settings of the environment and of the run."""

    seed: int = 0
    """Of the agent, and of all that is drawn."""
    out: Path = Path("runs/cleanrl")
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
    clip: float = 0.2
    """PPO's, of the ratio of probabilities."""
    test_size: int | None = None
    """Noises of the report."""
    baselines: Which = "quick"
    """Training-free solvers in the report."""
    resume: bool = False
    """Start the run in out again, if it did not end; a finished one is left alone."""


def network(inputs: int, outputs: int, last: float) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))
    for layer, gain in zip(layers[::2], (2**0.5, 2**0.5, last), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return layers


def train(args: Args) -> tuple[Student, dict[str, Any]]:
    """The student of the last policy, and what it cost."""
    torch.manual_seed(args.seed)
    arguments = arguments_of(args, Task)
    # In SAME_STEP every row of every step is a decision, so a rollout of num_steps is one whole episode a row.
    core = gym.make_vec("ReDiF-v0", args.num_envs, group_size=args.group_size, autoreset_mode="SameStep", **arguments)
    envs = GroupRelativeReward(core) if args.group_size > 1 else core
    begin(args, PROGRAM)
    inputs, outputs = core.single_observation_space.shape[0], core.single_action_space.shape[0]
    actor, critic = network(inputs, outputs, 0.01), network(inputs, 1, 1.0)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, args.learning_rate, eps=1e-5)
    frames = args.num_envs * args.num_steps
    updates = max(1, args.network_calls // (frames * core.unwrapped.mdp.calls))
    seen = torch.from_numpy(envs.reset(seed=args.seed)[0])
    start, (first, last) = time.monotonic(), (std / args.num_steps for std in args.exploration)
    for update in range(updates):
        done = update / updates
        std = first * (last / first) ** done
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - done)
        rollout: list[list[Tensor]] = []
        for _ in range(args.num_steps):
            with torch.no_grad():
                policy = torch.distributions.Normal(actor(seen), std)
                action = policy.sample()
                logp = policy.log_prob(action).sum(1)
            after, reward, terminated, _, _ = envs.step(action.numpy())
            rollout.append([seen, action, logp, torch.from_numpy(reward).float(), torch.from_numpy(terminated)])
            seen = torch.from_numpy(after)
        observations, actions, logps, rewards, ends = (torch.stack(part) for part in zip(*rollout, strict=True))
        # No bootstrapping and no discount: the return to the episode's end is the target itself.
        returns, ahead = torch.zeros_like(rewards), torch.zeros(args.num_envs)
        for step in reversed(range(args.num_steps)):
            ahead = rewards[step] + torch.where(ends[step], 0.0, ahead)
            returns[step] = ahead
        o, a, p, r = observations.flatten(0, 1), actions.flatten(0, 1), logps.flatten(), returns.flatten()
        with torch.no_grad():
            advantages = r - critic(o)[:, 0]
        for _ in range(args.epochs):
            for i in torch.randperm(frames).chunk(args.batches):
                ratio = (torch.distributions.Normal(actor(o[i]), std).log_prob(a[i]).sum(1) - p[i]).exp()
                advantage = (advantages[i] - advantages[i].mean()) / (advantages[i].std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
                loss = -torch.min(advantage * ratio, advantage * clipped).mean()
                loss = loss + 0.5 * (critic(o[i])[:, 0] - r[i]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()
    facts = {"train_seconds": round(time.monotonic() - start, 1), "environment_steps": updates * frames}
    return Student.from_policy(actor, core), facts


def main(args: Args) -> None:
    if unfinished(args, PROGRAM):
        student, facts = train(args)
        sizes = {"teacher_steps": args.teacher_steps, "train_size": args.reference_size}
        evaluator = Evaluator(student.mdp.teacher, args.test_size, **sizes)
        report(
            "redif-cleanrl",
            student,
            settings_json(args),
            facts,
            args.out,
            evaluator,
            baselines_of(args.baselines, evaluator.teacher),
        )


if __name__ == "__main__":
    run(main, Args, with_sizes)
