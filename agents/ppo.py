"""Train a few-step student with stock Stable-Baselines3 PPO, judge it, export it.

python -m agents.ppo --teacher digits --num-steps 4 --seed 0 --out runs/digits-4
python -m agents.ppo --resume --out runs/digits-4                               # after whatever stopped it
python -m agents.ppo --action noise --out runs/digits-4-noise                   # the network itself is the student
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from agents.callbacks import (
    AnnealedExploration,
    HeldOutCallback,
    Stopwatch,
    linear_to_zero,
    tensorboard_logger,
)
from agents.command import prepare_folder, run, teacher_of, wanted
from agents.evaluate import RESULT, report
from agents.networks import NoiseSettings, cloning_plan, noise_map, policy_kwargs, refinement_plan, warm_start
from agents.plan import Item, Sizes, plan, print_plan
from agents.recipes import settled
from agents.runs import RunStoppedError, begin, check, settings_json
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.actions import ActionMap
from redif_env.mdp.process import DenoisingMDP
from redif_env.mdp.settings import DEFAULT_GRID, DEFAULT_SOLVER
from redif_env.sb3 import (
    AnalyticKLStop,
    Checkpointer,
    GroupRelativeReturns,
    HealthCheck,
    LevelNormalisedAdvantages,
    PrivilegedBaseline,
    StudentPolicy,
    UnhealthyRunError,
    check_privileged,
    clip_range_of,
    make_vec_env,
    student_exploration,
)
from redif_env.students.network.refinement import ROLLOUTS
from redif_env.students.network.sensitivities import sensitivity_calls
from redif_env.students.student import Student
from redif_env.teachers.references import VALIDATION_SEED

PROGRAM = "agents.ppo"
VALUE = (64, 64)
"""Hidden layers of the value, however the policy is made."""


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
    reward: tuple[tuple[str, float], ...] | None = None
    """Reward terms and their weights, as in --reward endpoint 1 feature 0.5. This and what else is None here is by
    default what agents/recipes.py has for the action map."""
    seed: int = 0
    out: Path = Path("runs/ppo")
    """Folder for config.json, checkpoints/, student/, result.json, samples.png and TensorBoard logs."""
    network_calls: int | None = None
    """Budget: as many episodes as it pays for."""
    action: str = "solver"
    """Or "step"; or "noise": the policy is a network of its own, which predicts in the teacher's place."""
    observation: str | None = None
    """Or "features+condition": the policy sees what it is asked for; "steps": it sees the steps left alone."""
    solver: str = DEFAULT_SOLVER
    """Base solver, which the zero action reproduces; "linear": matrices, fitted to the teacher's ways first."""
    grid: str = DEFAULT_GRID
    initial_map: str | None = None
    """Or "linear": the way begins where a linear map, fitted to the teacher's ways, takes the noise, without a network
    call. Needs a grid that begins late, such as "time^1.25@2.5"."""
    hidden: tuple[int, ...] | None = None
    """Sizes of the policy's hidden layers; with none, its actions are linear in what it sees. Not of action "noise"."""
    num_envs: int | None = None
    group_size: int = 8
    """Sub-environments that share their initial noise; 1 turns the group-relative reward off."""
    batches: int | None = None
    """Minibatches a rollout, which is one episode of every sub-environment: many small updates go further than few."""
    epochs: int | None = None
    learning_rate: float | None = None
    """Falls linearly to zero."""
    gamma: float | None = None
    """Discount, and the advantage's lambda where it is 0."""
    clip_range: float | None = None
    """PPO's, for the ratio of whole actions; scaled where log-probabilities are means."""
    exploration: tuple[float, float] | None = None
    """Standard deviation of the actions at the start and at the end. By default 0.8 and 0.25, divided by the number of
    steps: with more steps the base solver is nearer the teacher, and each action should stray less from it. With
    --action noise, of where a step lands: by default 0.15 and 0.05."""
    average: float | None = None
    """Decay of the policy's moving average over rollouts, which is what is judged and shipped."""
    level_advantages: bool | None = None
    """Normalise advantages at each step of the episode by itself (action "noise")."""
    privileged_baseline: bool = False
    """Take from advantages what the distance to the endpoint foretold (redif_env.sb3.PrivilegedBaseline). Not of action
    "noise", nor where the policy chooses the number of steps."""
    network: NoiseSettings = field(default_factory=NoiseSettings)
    """Of action "noise" alone."""
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
    """Or "auto": the machine's accelerator, if it has one."""
    autocast: bool = False
    """Ask the teacher in bfloat16 while training, which some processors do twice as fast. Endpoints and judgements are
    made in its own type."""
    resume: bool = False
    """Go on with the run in out, with its settings; start it if there is none."""
    dry_run: bool = False
    """Print what the run would cost, and stop."""


def network_items(args: Args) -> list[Item]:
    """What a network student costs besides; a backward pass counts as two calls, any network's as the teacher's."""
    cloning = cloning_plan(args.network, args.seed)
    visits = math.ceil(cloning.updates / cloning.refresh) * cloning.rollouts * args.num_steps * 2
    visits += sensitivity_calls(args.num_steps) if cloning.updates and cloning.by_sensitivity else 0
    items = [
        Item("cloning the teacher", visits + 3 * cloning.updates * cloning.batch_size),
        Item("updates of the network, forward and back", 3 * args.network_calls * args.epochs),
    ]
    refining = refinement_plan(args.network, args.seed)
    if refining.updates:
        visits = math.ceil(refining.updates / refining.refresh) * ROLLOUTS * refining.batch_size * args.num_steps * 2
        visits += sensitivity_calls(args.num_steps) if refining.by_sensitivity else 0
        each = 3 * (args.num_steps + 1) + args.network.refine_num_steps
        items.append(Item("refining the clone", visits + refining.updates * refining.batch_size * each))
    if "path" in dict(args.reward):
        items.append(Item("the teacher's ways, for the path reward", args.reference_size * args.teacher_steps))
    return items


def judge_of(args: Args, mdp: DenoisingMDP) -> Evaluator:
    """By whom the best student is chosen."""
    return Evaluator(mdp.teacher, args.held_out_size, VALIDATION_SEED, args.teacher_steps)


def build(args: Args, action: ActionMap | None = None) -> PPO:
    """The agent with its environment; ``action`` in the place of the action map that ``args`` name."""
    args = settled(args)
    network = args.action == "noise"
    named: ActionMap | str = noise_map(args.network) if network else args.action
    env = make_vec_env(
        args.num_envs,
        teacher=args.teacher,
        num_steps=args.num_steps,
        action=action or named,
        observation=args.observation,
        conditions=wanted(args.conditions),
        null_label=args.null_label,
        guidance_scale=args.guidance_scale,
        learn_guidance=args.learn_guidance,
        solver=args.solver,
        grid=args.grid,
        initial_map=args.initial_map,
        reward=dict(args.reward),
        min_steps=args.min_steps,
        prices=args.prices,
        group_size=args.group_size,
        reference_size=args.reference_size,
        teacher_steps=args.teacher_steps,
        device=args.device,
        autocast=args.autocast,
    )
    mdp = env.unwrapped.mdp
    if args.privileged_baseline:
        check_privileged(mdp)
    return PPO(
        StudentPolicy if network else "MlpPolicy",
        env,
        n_steps=args.num_steps,
        batch_size=max(2, args.num_envs * args.num_steps // args.batches),
        n_epochs=args.epochs,
        learning_rate=linear_to_zero(args.learning_rate),
        gamma=args.gamma,
        gae_lambda=1.0,
        clip_range=clip_range_of(args.clip_range, mdp.action_size, args.network.reduction)
        if network
        else args.clip_range,
        normalize_advantage=not args.level_advantages,
        policy_kwargs=policy_kwargs(args.network, mdp) if network else {"net_arch": {"pi": args.hidden, "vf": VALUE}},
        seed=args.seed,
        device=mdp.teacher.device if network else "cpu",
    )


def components_of(args: Args, agent: PPO) -> dict[str, Any]:
    """What is trained with, beside the agent, and goes into its checkpoints."""
    mdp = agent.get_env().unwrapped.mdp
    decay = args.average
    components: dict[str, Any] = {
        "held_out": HeldOutCallback(judge_of(args, mdp), mdp, agent.policy, args.held_out_every, decay),
        "stopwatch": Stopwatch(),
    }
    if mdp.adaptive and args.group_size > 1:
        components["groups"] = GroupRelativeReturns()
    if args.privileged_baseline:
        components["baseline"] = PrivilegedBaseline()
    return components


def callbacks_of(args: Args, agent: PPO) -> list[BaseCallback]:
    """What is trained with and remembers nothing."""
    if args.action != "noise":
        return [AnnealedExploration(*(args.exploration or (0.8 / args.num_steps, 0.25 / args.num_steps)))]
    mdp = agent.get_env().unwrapped.mdp
    chosen = args.network
    stds = [
        student_exploration(mdp, landing, landing * chosen.step_exploration)
        for landing in args.exploration or (0.15, 0.05)
    ]
    callbacks: list[BaseCallback] = [HealthCheck(args.held_out_every), AnnealedExploration(*stds)]
    if args.level_advantages:
        callbacks.append(LevelNormalisedAdvantages())
    if chosen.target_kl is not None:
        callbacks.append(AnalyticKLStop(chosen.target_kl))
    return callbacks


def train(args: Args, action: ActionMap | None = None) -> tuple[Student, dict[str, Any]]:
    """The best student on held-out noise, and what it cost; ``args.resume`` goes on from the newest checkpoint.

    ``action`` is an action map of one's own, in the place of the one that ``args`` name.

    Raises:
        RunStoppedError: if the run was asked to stop; it has left a checkpoint.
        UnhealthyRunError: if it cannot go on; the last good student is in ``args.out``.
    """
    args = settled(args)
    agent = build(args, action)
    begin(args, PROGRAM)
    mdp = agent.get_env().unwrapped.mdp
    steps = args.network_calls // mdp.calls
    components = components_of(args, agent)
    held_out = components["held_out"]
    checkpointer = Checkpointer(args.out / "checkpoints", args.checkpoint_every, components)
    resumed = args.resume and checkpointer.resume(agent)
    facts: dict[str, Any] = {}
    if args.action == "noise" and not resumed:
        facts = warm_start(args.network, mdp, agent.policy, args.seed)
    if agent.num_timesteps < steps:
        agent.set_logger(tensorboard_logger(args.out / "tensorboard", agent.num_timesteps))
        try:
            with checkpointer.stopping_on_signals():
                agent.learn(
                    steps - agent.num_timesteps,
                    callback=[*callbacks_of(args, agent), checkpointer, *components.values()],
                    reset_num_timesteps=agent.num_timesteps == 0,
                    progress_bar=True,
                )
        except UnhealthyRunError as error:
            raise UnhealthyRunError(f"{error}. {kept(held_out.best, args.out)}") from error
        if checkpointer.stopped_by is not None and agent.num_timesteps < steps:
            raise RunStoppedError(
                f"stopped after {agent.num_timesteps:,} of {steps:,} steps: go on with --resume --out {args.out}",
                checkpointer.stopped_by,
            )
        checkpointer.save()
    return held_out.best, {
        "train_seconds": round(components["stopwatch"].seconds, 1),
        "environment_steps": agent.num_timesteps,
        **facts,
    }


def kept(student: Student | None, out: Path) -> str:
    """Save the last good student, if there is one, and say so."""
    if student is None:
        return "It was never judged, so there is no student"
    student.save_pretrained(out / "student")
    return f"The last good student is in {out / 'student'}"


def main(args: Args) -> None:
    args = settled(args)
    if args.dry_run:
        teacher = teacher_of(args)
        calls = 1 if args.action == "noise" else teacher.calls
        rollouts = math.ceil(args.network_calls / (args.num_envs * args.num_steps * calls))
        judgements = math.ceil(rollouts / args.held_out_every) + 1
        sizes = Sizes(args.reference_size, args.held_out_size, args.test_size, args.teacher_steps)
        items = plan(teacher, args.num_steps, args.network_calls, judgements, sizes)
        if args.action == "noise":
            items += network_items(args)
        print_plan(items, teacher, args.num_envs, sizes)
        return
    prepare_folder(args.out)
    check(args, PROGRAM)
    if (args.out / RESULT).exists():
        print(f"{args.out} is finished: {args.out / RESULT} holds its table, {args.out / 'student'} its student")
        return
    student, facts = train(args)
    evaluator = Evaluator(
        teacher_of(args), args.test_size, teacher_steps=args.teacher_steps, train_size=args.reference_size
    )
    report("redif-ppo", student, settings_json(args), facts, args.out, evaluator)


if __name__ == "__main__":
    run(main, Args)
