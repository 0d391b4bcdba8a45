"""Train a few-step student with stock Stable-Baselines3 PPO, judge it, export it.

python -m agents.ppo --teacher digits --num-steps 4 --seed 0 --out runs/digits-4
python -m agents.ppo --resume --out runs/digits-4                               # after whatever stopped it
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO

from agents.callbacks import AnnealedExploration, HeldOutCallback, Stopwatch, linear_to_zero, tensorboard_logger
from agents.command import DEFAULT_REWARD, prepare_folder, run, wanted
from agents.evaluate import RESULT, report
from agents.plan import Sizes, plan, print_plan
from agents.runs import RunStoppedError, begin, check, settings_json
from redif_env.evaluation import Evaluator
from redif_env.mdp import DenoisingMDP
from redif_env.references import VALIDATION_SEED
from redif_env.sb3 import Checkpointer, GroupRelativeReturns, make_vec_env
from redif_env.settings import DEFAULT_GRID, DEFAULT_SOLVER, parse_device, shared_teacher
from redif_env.students import Student

PROGRAM = "agents.ppo"


@dataclass(frozen=True)
class Args:
    """Settings; the defaults are those of the README's table."""

    teacher: str = "digits"
    """A built-in name, a diffusers folder, or a hub id."""
    conditions: tuple[str, ...] | None = None
    """Class labels or prompts to train for; all labels if not given."""
    null_label: int | None = None
    """The label that a class-conditional UNet2DModel was trained with for none."""
    guidance_scale: float | None = None
    """Of classifier-free guidance, which makes each prediction two network calls."""
    learn_guidance: bool = False
    """Let the policy choose the guidance scale."""
    num_steps: int = 4
    """Steps a sample: as many network calls, or twice as many with guidance."""
    min_steps: int | None = None
    """Steps a sample at least; below num_steps, the policy chooses how many."""
    prices: tuple[float, float] | None = None
    """Range of what a call costs, which the policy sees; add the reward term "price" to charge it."""
    reward: tuple[tuple[str, float], ...] = DEFAULT_REWARD
    """Reward terms and their weights, as in --reward endpoint 1 feature 0.5."""
    seed: int = 0
    out: Path = Path("runs/ppo")
    """Folder for config.json, checkpoints/, student/, result.json, samples.png and TensorBoard logs."""
    network_calls: int = 480_000
    """Budget: as many episodes as it pays for."""
    action: str = "solver"
    observation: str = "features"
    """Or "features+condition": the policy sees what it is asked for."""
    solver: str = DEFAULT_SOLVER
    """Base solver, which the zero action reproduces."""
    grid: str = DEFAULT_GRID
    num_envs: int = 128
    group_size: int = 8
    """Sub-environments that share their initial noise; 1 turns the group-relative reward off."""
    batches: int = 4
    """Minibatches a rollout, which is one episode of every sub-environment: many small updates go further than few."""
    epochs: int = 4
    learning_rate: float = 3e-3
    """Falls linearly to zero."""
    exploration: tuple[float, float] | None = None
    """Standard deviation of the actions at the start and at the end. By default 0.8 and 0.25, divided by the number of
    steps: with more steps the base solver is nearer the teacher, and each action should stray less from it."""
    reference_size: int = 4096
    """Noises to train on, of each of which the teacher makes an endpoint first."""
    teacher_steps: int = 100
    """Predictions that the teacher spends on an endpoint."""
    test_size: int = 2000
    """Noises that the report is made on."""
    held_out_size: int = 512
    held_out_every: int = 50
    """Rollouts between two judgements on held-out noise."""
    checkpoint_every: int = 50_000
    """Network calls between two checkpoints; SIGINT and SIGTERM leave one too."""
    license: str | None = None
    """Of the teacher's weights, for the model card; by default that of a built-in teacher, else unknown."""
    device: str = "cpu"
    resume: bool = False
    """Go on with the run in out, with its settings; start it if there is none."""
    dry_run: bool = False
    """Print what the run would cost, and stop."""


def judge_of(args: Args, mdp: DenoisingMDP) -> Evaluator:
    """By whom the best student is chosen."""
    return Evaluator(mdp.teacher, args.held_out_size, VALIDATION_SEED, args.teacher_steps)


def build(args: Args) -> PPO:
    """The agent with its environment."""
    env = make_vec_env(
        args.num_envs,
        teacher=args.teacher,
        num_steps=args.num_steps,
        action=args.action,
        observation=args.observation,
        conditions=wanted(args.conditions),
        null_label=args.null_label,
        guidance_scale=args.guidance_scale,
        learn_guidance=args.learn_guidance,
        solver=args.solver,
        grid=args.grid,
        reward=dict(args.reward),
        min_steps=args.min_steps,
        prices=args.prices,
        group_size=args.group_size,
        reference_size=args.reference_size,
        teacher_steps=args.teacher_steps,
        device=args.device,
    )
    return PPO(
        "MlpPolicy",
        env,
        n_steps=args.num_steps,
        batch_size=max(2, args.num_envs * args.num_steps // args.batches),
        n_epochs=args.epochs,
        learning_rate=linear_to_zero(args.learning_rate),
        gamma=1.0,
        # One number at the end of a few steps: no bootstrapping, the return itself is the target.
        gae_lambda=1.0,
        seed=args.seed,
        device="cpu",
    )


def train(args: Args) -> tuple[Student, dict[str, Any]]:
    """The best student on held-out noise, and what it cost; ``args.resume`` goes on from the newest checkpoint.

    Raises:
        RunStoppedError: if the run was asked to stop; it has left a checkpoint.
    """
    agent = build(args)
    begin(args, PROGRAM)
    mdp = agent.get_env().unwrapped.mdp
    steps = args.network_calls // mdp.teacher.calls
    held_out = HeldOutCallback(judge_of(args, mdp), mdp, args.held_out_every)
    exploration = AnnealedExploration(*(args.exploration or (0.8 / args.num_steps, 0.25 / args.num_steps)))
    companions: dict[str, Any] = {"held_out": held_out, "stopwatch": Stopwatch()}
    if mdp.adaptive and args.group_size > 1:
        companions["groups"] = GroupRelativeReturns()
    checkpointer = Checkpointer(args.out / "checkpoints", args.checkpoint_every, companions)
    if args.resume:
        checkpointer.resume(agent)
    if agent.num_timesteps < steps:
        agent.set_logger(tensorboard_logger(args.out / "tensorboard", agent.num_timesteps))
        with checkpointer.stopping_on_signals():
            agent.learn(
                steps - agent.num_timesteps,
                callback=[checkpointer, exploration, *companions.values()],
                reset_num_timesteps=agent.num_timesteps == 0,
                progress_bar=True,
            )
        if checkpointer.stopped_by is not None and agent.num_timesteps < steps:
            raise RunStoppedError(
                f"stopped after {agent.num_timesteps:,} of {steps:,} steps: go on with --resume --out {args.out}",
                checkpointer.stopped_by,
            )
        checkpointer.save()
    return held_out.best, {
        "train_seconds": round(companions["stopwatch"].seconds, 1),
        "environment_steps": agent.num_timesteps,
    }


def main(args: Args) -> None:
    if args.dry_run:
        teacher = shared_teacher(
            args.teacher,
            parse_device(args.device),
            torch.float32,
            conditions=wanted(args.conditions),
            null_label=args.null_label,
            guidance_scale=args.guidance_scale,
        )
        rollouts = math.ceil(args.network_calls / (args.num_envs * args.num_steps * teacher.calls))
        judgements = math.ceil(rollouts / args.held_out_every) + 1
        sizes = Sizes(args.reference_size, args.held_out_size, args.test_size, args.teacher_steps)
        items = plan(teacher, args.num_steps, args.network_calls, judgements, sizes)
        print_plan(items, teacher, args.num_envs, sizes)
        return
    prepare_folder(args.out)
    check(args, PROGRAM)
    if (args.out / RESULT).exists():
        print(f"{args.out} is finished: {args.out / RESULT} holds its table, {args.out / 'student'} its student")
        return
    student, facts = train(args)
    evaluator = Evaluator(
        student.mdp.teacher, args.test_size, teacher_steps=args.teacher_steps, train_size=args.reference_size
    )
    report("redif-ppo", student, settings_json(args), facts, args.out, evaluator)


if __name__ == "__main__":
    run(main, Args)
