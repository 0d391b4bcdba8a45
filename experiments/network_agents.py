"""Off-the-shelf agents on a whole noise prediction: which train a network student, and which fall over.

    python -m experiments.network_agents --out results/agents

First on digits, 65 numbers an action: every agent for the same number of environment steps, the return of its
deterministic policy on held-out episodes before and after (path reward: the base solver returns -1, the teacher 0).
Then on a random network of 3x32x32 samples, 3,073 numbers: what one update does to the policy, and what a step costs in
memory.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import obs_as_tensor

from experiments.stored import write_json
from redif_env.sb3 import ReDiFVecEnv, Reduction, StudentPolicy, clip_range_of, make_vec_env, student_kwargs
from redif_env.students.network.cloning import CloningPlan, clone
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder

Make = Callable[[ReDiFVecEnv], BaseAlgorithm]


@dataclass(frozen=True)
class Args:
    steps: int = 20_000
    """Environment steps of each agent on digits."""
    solver: str = "dpm++3m"
    grid: str = "time^1.5"
    """Of the base solver: without a late start, as when the tables of the docs were made."""
    num_envs: int = 128
    clone_updates: int = 400
    reference_size: int = 4096
    teacher_steps: int = 30
    out: Path = Path("results/agents")


def student_agent(kind: type[BaseAlgorithm], reduction: Reduction, **settings: Any) -> Make:
    """An on-policy agent with the network as its policy."""

    def make(env: ReDiFVecEnv) -> BaseAlgorithm:
        kwargs = {**student_kwargs(env.unwrapped.mdp), "reduction": reduction, "exploration": (0.25, 0.01)}
        if kind is PPO:
            settings["clip_range"] = clip_range_of(0.2, env.unwrapped.mdp.action_size, reduction)
        return kind(StudentPolicy, env, n_steps=4, gamma=0.0, policy_kwargs=kwargs, seed=0, **settings)

    return make


def stock(kind: type[BaseAlgorithm], **settings: Any) -> Make:
    """An agent with SB3's own policy for dict observations: multilayer perceptrons of 64 or 256."""

    def make(env: ReDiFVecEnv) -> BaseAlgorithm:
        size = env.unwrapped.mdp.action_size
        if kind is TD3:
            settings["action_noise"] = NormalActionNoise(np.zeros(size), 0.1 * np.ones(size))
        return kind("MultiInputPolicy", env, gamma=0.0, seed=0, **settings)

    return make


ROLLOUT = {"batch_size": 128, "n_epochs": 1, "learning_rate": 1e-4}
OFF_POLICY = {"buffer_size": 20_000, "learning_starts": 1_000, "batch_size": 128}
AGENTS: dict[str, Make] = {
    "PPO, student, mean": student_agent(PPO, Reduction.MEAN, **ROLLOUT),
    "PPO, student, sum": student_agent(PPO, Reduction.SUM, **ROLLOUT),
    "A2C, student, mean": student_agent(A2C, Reduction.MEAN, learning_rate=1e-4, normalize_advantage=True),
    "PPO, stock": stock(PPO, n_steps=4, **ROLLOUT),
    "SAC, stock": stock(SAC, **OFF_POLICY),
    "TD3, stock": stock(TD3, **OFF_POLICY),
}
"""How each is made; nothing of ours is changed for any."""


def held_out_return(agent: BaseAlgorithm, env: ReDiFVecEnv) -> float:
    """Mean return of the deterministic policy over one episode of every sub-environment, from a seed of its own."""
    env.seed(10_000)
    observation, finished = env.reset(), []
    for _ in range(env.unwrapped.mdp.num_steps):
        action, _ = agent.predict(observation, deterministic=True)
        observation, _, _, infos = env.step(action)
        finished += [info["episode"]["r"] for info in infos if "episode" in info]
    return float(np.mean(finished))


def digits_row(args: Args, name: str, make: Make, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return before and after, from the same warm start where the policy can take it."""
    options: dict[str, Any] = {"action": "noise", "observation": "sample", "reward": "path", "grid": args.grid}
    options |= {"reference_size": args.reference_size, "teacher_steps": args.teacher_steps}
    agent = make(make_vec_env(args.num_envs, group_size=8, **options))
    if isinstance(agent.policy, StudentPolicy):
        agent.policy.unet.load_state_dict(weights)
    judge = make_vec_env(512, **options)
    before = held_out_return(agent, judge)
    try:
        agent.learn(args.steps)
        after = held_out_return(agent, judge)
    except ValueError as error:  # what is not finite is refused by distributions and by the environment
        after, name = float("nan"), f"{name} ({str(error).split(':')[0][:40]})"
    parameters = sum(parameter.numel() for parameter in agent.policy.parameters())
    return {"agent": name, "parameters": parameters, "return before": before, "return after": after}


def clone_weights(args: Args) -> dict[str, torch.Tensor]:
    """The warm start."""
    env = make_vec_env(
        8,
        action="noise",
        observation="sample",
        solver=args.solver,
        grid=args.grid,
        reference_size=args.reference_size,
        teacher_steps=args.teacher_steps,
    )
    agent = AGENTS["PPO, student, mean"](env)
    network = agent.policy.unet
    network.load_state_dict(env.unwrapped.mdp.teacher.network.state_dict())
    clone(env.unwrapped.mdp, network, CloningPlan(updates=args.clone_updates), lambda loss: None)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def large_row(name: str, make: Make, folder: Path) -> dict[str, Any]:
    """One update of an on-policy agent, or a step of another, at 3,073 numbers."""
    env = make_vec_env(
        32, teacher=str(folder), num_steps=4, action="noise", observation="sample", reward="endpoint",
        reference_size=32, teacher_steps=4, group_size=8,
    )  # fmt: skip
    agent = make(env)
    env.seed(0)
    seen = env.reset()
    before = agent.predict(seen, deterministic=True)[0]
    agent.learn(128 if hasattr(agent, "rollout_buffer") else 1_100)
    moved = float(np.abs(agent.predict(seen, deterministic=True)[0] - before).mean())
    observation = sum(values[0].nbytes for values in seen.values())
    # Replay keeps the next observation beside the observation.
    kept = before[0].nbytes + observation * (1 if hasattr(agent, "rollout_buffer") else 2)
    facts = {"mean shift of an action": moved, "bytes a step": kept}
    facts["parameters"] = sum(parameter.numel() for parameter in agent.policy.parameters())
    if isinstance(agent.policy, StudentPolicy):
        facts["ratio off 1"] = rounding(agent.policy, seen)
    if hasattr(agent, "target_entropy"):
        facts["target entropy"] = float(agent.target_entropy)
    return {"agent": name, **facts}


@torch.no_grad()
def rounding(policy: StudentPolicy, seen: dict[str, np.ndarray]) -> float:
    """How far rounding alone takes the importance ratio from 1: the same actions in one batch, and one by one."""
    batch = obs_as_tensor(seen, torch.device("cpu"))
    actions, _, together = policy(batch)
    alone = [
        policy.evaluate_actions({name: values[i : i + 1] for name, values in batch.items()}, actions[i : i + 1])[1]
        for i in range(len(actions))
    ]
    return float(((torch.cat(alone) - together).exp() - 1).abs().max())


def random_teacher(folder: Path) -> None:
    """A small UNet of 3x32x32 samples with random weights: its numbers are of the size that matters here."""
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(folder)


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """All that the rows hold, a dash where one holds nothing."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names, title=title)
    for row in rows:
        cells = [row.get(name, "-") for name in names]
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(width=150).print(table)


def main(args: Args) -> None:
    prepare_folder(args.out)
    # SB3 advises against images and minibatches of other shapes than it knows.
    warnings.filterwarnings("ignore", category=UserWarning, module="stable_baselines3")
    weights = clone_weights(args)
    small = [digits_row(args, name, make, weights) for name, make in AGENTS.items()]
    with tempfile.TemporaryDirectory() as folder:
        random_teacher(Path(folder))
        large = [large_row(name, make, Path(folder)) for name, make in AGENTS.items()]
    write_json(args.out / "rows.json", {"digits": small, "3x32x32": large})
    print_rows(f"digits, 4 NFE, 65 numbers an action, {args.steps:,} steps, 512 held-out episodes", small)
    print_rows("3x32x32, random weights, 3,073 numbers an action, one update", large)


if __name__ == "__main__":
    run(main, Args)
