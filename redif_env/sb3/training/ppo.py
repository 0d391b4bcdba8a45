"""Train a few-step student with stock Stable-Baselines3 PPO, evaluate it, export it: ``redif train``.

:func:`main` is the whole program, :func:`train` its training; read them first.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from redif_env.envs.episodes import check_groups
from redif_env.envs.task import Task
from redif_env.judging.baselines import baselines_of
from redif_env.judging.bases import AUTO, Base, bases_of, evaluated_samples, nearest_base
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.actions import ActionMap, SolverMap
from redif_env.mdp.process import DenoisingMDP
from redif_env.mdp.settings import DEFAULT_GRID, DEFAULT_SOLVER, LINEAR, MDPSettings, build_mdp, look_up
from redif_env.measures.features import load_features
from redif_env.rewards.names import REWARDS
from redif_env.sb3.antithetic_policy import AntitheticPolicy
from redif_env.sb3.checkpoints import Checkpointer
from redif_env.sb3.exploration import student_exploration
from redif_env.sb3.groups import GroupRelativeReturns
from redif_env.sb3.health import HealthCheck
from redif_env.sb3.levels import LevelNormalisedAdvantages
from redif_env.sb3.student_policy import StudentPolicy, clip_range_of
from redif_env.sb3.training.callbacks import (
    AnnealedExploration,
    HeldOutCallback,
    Stopwatch,
    linear_to_zero,
    tensorboard_logger,
)
from redif_env.sb3.training.networks import NoiseSettings, network_items, policy_kwargs, warm_start
from redif_env.sb3.training.recipes import Recipe, settled
from redif_env.sb3.vec_env import make_vec_env
from redif_env.storage.checks import check_argument
from redif_env.students.student import Student
from redif_env.teachers.references import VALIDATION_SEED, SetSizes, reference_set
from redif_env.teachers.teacher import Teacher
from redif_env.training.command import teacher_of
from redif_env.training.gauss_newton import Rates, fitted_table
from redif_env.training.options import RunOptions, arguments_of, options_of
from redif_env.training.plan import Item, Sizes, plan, print_plan
from redif_env.training.report import judge
from redif_env.training.runs import (
    CONFIG_FILE,
    RunStoppedError,
    UnhealthyRunError,
    begin,
    read_settings,
    unfinished,
)

PROGRAM = "ppo"
VALUE = (64, 64)
"""Hidden layers of the value function, whatever the policy."""
TaskOptions: Any = options_of(Task, observation=None, reward=None)
OF_TASK = ("reference_size", "teacher_steps", "base_size")
"""Sizes that are arguments of the task, or not for users to set."""
SizeOptions: Any = options_of(SetSizes, without=OF_TASK, held_out_size=None, test_size=None)
RecipeOptions: Any = options_of(Recipe, without=("observation", "reward"))


@dataclass(frozen=True)
class Args(RecipeOptions, SizeOptions, RunOptions, TaskOptions):
    """Settings of the environment, of training and of the run. Some defaults depend on ``--action``."""

    solver: str = DEFAULT_SOLVER
    """The base solver, which the zero action reproduces: "ddim", "dpm++2m", "dpm++3m", "ipndm1" to "ipndm4", "ipndm" or
    "linear". "auto" chooses the solver, grid and initial map that are best on validation noises at the start of the
    run. It tries linear steps or, for samples of more than 256 numbers, iPNDM of order 2 and 3 on all grids. For a
    driven pipeline it also tries these and DPM-Solver++ 2M on the pipeline's own timesteps."""
    out: Path = Path("runs/ppo")
    """Folder for config.json, checkpoints/, student/, result.json, samples.png and TensorBoard logs."""
    group_size: int = 8
    """Sub-environments that share their initial noise; 1 turns the group-relative reward off."""
    antithetic: bool = False
    """Explore in pairs of opposite sign within a group; better in very short runs. Not for action "noise"."""
    table_calls: int = 0
    """Network calls of the Gauss-Newton method, before training and in addition to `network_calls`. It finds the table
    of actions that the policy begins with and explores around; 0 begins with the base solver. Only for action
    "solver"."""
    network: NoiseSettings = field(default_factory=NoiseSettings)
    """Only for action "noise"."""
    held_out_every: int = 50
    """Rollouts between two evaluations on the held-out noises."""
    features: tuple[str, ...] = ()
    """Feature networks of the report: names of `redif_env.measures.features.load_features`, or folders or hub ids of
    vision models. Each one after the first prints another table. By default a classifier of such images, or the
    pipeline's VAE."""
    checkpoint_every: int = 50_000
    """Environment steps between two checkpoints; SIGINT and SIGTERM also write one."""
    dry_run: bool = False
    """Only print what the run would cost."""


def main(args: Args) -> None:
    """Train, export, evaluate."""
    args = settled(args)
    teacher = teacher_of(args)
    for name in args.features:  # refused now, rather than at the report
        load_features(name, teacher.image_shape, teacher.vae)
    if args.dry_run:
        print_cost(args)
        return
    args = with_base(args)
    if unfinished(args, PROGRAM):
        student, facts = train(args)
        judge("redif-ppo", student, args, facts)


def train(args: Args, action: ActionMap | None = None) -> tuple[Student, dict[str, Any]]:
    """The best student on held-out noise, and what it cost; ``args.resume`` goes on from the newest checkpoint.

    ``action`` is an action map of one's own, in the place of the one that ``args`` name.

    Raises:
        RunStoppedError: if the run was stopped by a signal; it has left a checkpoint.
        UnhealthyRunError: if it cannot go on; the last good student is in ``args.out``.
    """
    args = with_base(settled(args))
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
            raise UnhealthyRunError(f"{error}. {rescued(held_out.best, args.out)}") from error
        if checkpointer.stopped_by is not None and agent.num_timesteps < steps:
            raise RunStoppedError(
                f"stopped after {agent.num_timesteps:,} of {steps:,} steps: go on with --resume --out {args.out}",
                checkpointer.stopped_by,
            )
        checkpointer.save()
    seconds = round(components["stopwatch"].seconds, 1)
    return held_out.best, {"train_seconds": seconds, "environment_steps": agent.num_timesteps, **facts}


def with_base(args: Args) -> Args:
    """``args`` with the base solver that they name; of ``solver="auto"`` the one that validation noises prefer.

    A run that is resumed has the base that it was started with.

    Raises:
        ValueError: if ``solver="auto"`` comes with a grid or an initial map.
    """
    if args.solver != AUTO:
        return args
    if (args.out / CONFIG_FILE).exists():  # chosen when the run was started, or to be refused for the run that is there
        stored = asdict(read_settings(args.out, args))
        return replace(args, **{name: stored[name] for name in ("solver", "grid", "initial_map")})
    bases = candidates(args)
    evaluator = Evaluator(teacher_of(args), args.held_out_size, VALIDATION_SEED, args.teacher_steps)
    base = nearest_base(evaluator, bases, args.num_steps)
    print(f"base solver, the nearest of {len(bases)} on {args.held_out_size} validation noises: {base}", flush=True)
    return replace(args, **asdict(base))


def candidates(args: Args) -> list[Base]:
    """The base solvers that ``solver="auto"`` chooses among."""
    if (args.grid, args.initial_map) != (DEFAULT_GRID, None):
        raise ValueError(
            f"grid={args.grid!r} and initial_map={args.initial_map!r} belong to a solver that is named, and "
            f"solver={AUTO!r} chooses all three: leave them out"
        )
    return bases_of(teacher_of(args), args.num_steps, adaptive=args.min_steps is not None)


def build(args: Args, action: ActionMap | None = None) -> PPO:
    """The agent with its environment; ``action`` in the place of the action map that ``args`` name."""
    args = settled(args)
    network = args.action == "noise"
    check_pairs(args)
    arguments = arguments_of(args, Task)
    given = {} if action is None else {"action": action}
    arguments |= given
    if args.table_calls:
        arguments["action"] = centered(args, MDPSettings(**arguments_of(args, MDPSettings) | given))
    env = make_vec_env(args.num_envs, group_size=args.group_size, **arguments)
    mdp = env.unwrapped.mdp
    clip_range = clip_range_of(args.clip_range, mdp.action_size) if network else args.clip_range
    compact = AntitheticPolicy if args.antithetic else "MlpPolicy"
    return PPO(
        StudentPolicy if network else compact,
        env,
        n_steps=args.num_steps,
        batch_size=max(2, args.num_envs * args.num_steps // args.batches),
        n_epochs=args.epochs,
        learning_rate=linear_to_zero(args.learning_rate),
        gamma=args.gamma,
        gae_lambda=1.0,
        clip_range=clip_range,
        normalize_advantage=not args.level_advantages,
        policy_kwargs=policy_kwargs(args.network, mdp) if network else {"net_arch": {"pi": args.hidden, "vf": VALUE}},
        seed=args.seed,
        device=mdp.teacher.device if network else "cpu",
    )


def centered(args: Args, process: MDPSettings) -> SolverMap:
    """The action map of ``process``, around the table that the Gauss-Newton method finds.

    Raises:
        ValueError: if the task has no such table.
    """
    mdp = build_mdp(process)
    check_table(args, mdp)
    assert isinstance(mdp.action_map, SolverMap)
    reference = reference_set(mdp.teacher, args.reference_size, num_steps=args.teacher_steps)
    table = fitted_table(mdp, reference, args.table_calls, Rates(), args.seed)
    return replace(mdp.action_map, center=tuple(map(tuple, table.tolist())))


def check_table(args: Args, mdp: DenoisingMDP) -> None:
    """Refuse a table for actions that cannot be around one."""
    refused = {
        "learn_guidance=True": mdp.learn_guidance,
        f"min_steps={mdp.min_steps}": mdp.adaptive,
        f"action={args.action!r}": not isinstance(mdp.action_map, SolverMap),
    }
    given = [name for name, present in refused.items() if present]
    if args.table_calls and given:
        raise ValueError(f"table_calls={args.table_calls} cannot be had with {given[0]}: leave one of them out")


def check_pairs(args: Args) -> None:
    """Refuse settings with which no sub-environments explore in pairs, though they were asked to."""
    if args.antithetic and (args.action == "noise" or args.group_size % 2):
        raise ValueError(
            f"antithetic=True with action={args.action!r} and group_size={args.group_size} makes no pairs: "
            'choose an even group_size and another action than "noise", or leave it out'
        )


def components_of(args: Args, agent: PPO) -> dict[str, Any]:
    """The callbacks whose state goes into checkpoints, beside the agent's."""
    mdp = agent.get_env().unwrapped.mdp
    # By which the best student is chosen.
    evaluator = Evaluator(mdp.teacher, args.held_out_size, VALIDATION_SEED, args.teacher_steps)
    components: dict[str, Any] = {
        "held_out": HeldOutCallback(evaluator, mdp, agent.policy, args.held_out_every, args.average),
        "stopwatch": Stopwatch(),
    }
    if mdp.adaptive and args.group_size > 1:
        components["groups"] = GroupRelativeReturns()
    return components


def callbacks_of(args: Args, agent: PPO) -> list[BaseCallback]:
    """The callbacks without a state."""
    if args.action != "noise":
        return [AnnealedExploration(*(std / args.num_steps for std in args.exploration))]
    mdp = agent.get_env().unwrapped.mdp
    shift = args.network.step_exploration
    stds = [student_exploration(mdp, target, target * shift) for target in args.exploration]
    callbacks: list[BaseCallback] = [HealthCheck(args.held_out_every), AnnealedExploration(*stds)]
    return [*callbacks, LevelNormalisedAdvantages()] if args.level_advantages else callbacks


def rescued(student: Student | None, out: Path) -> str:
    """Save the last good student, if there is one, and say so."""
    if student is None:
        return "It was never evaluated, so there is no student"
    student.save_pretrained(out / "student")
    return f"The last good student is in {out / 'student'}"


def print_cost(args: Args) -> None:
    """Print what a run with these settings would cost."""
    for name, weight in args.reward:
        look_up("reward", name, REWARDS)
        check_argument(f"reward[{name!r}]", weight, float)
    check_groups(args.num_envs, args.group_size)
    check_pairs(args)
    # What the run would refuse is refused, without what is fitted to the teacher's trajectories first.
    arguments = arguments_of(args, MDPSettings)
    if args.solver in (AUTO, LINEAR):
        arguments["solver"] = DEFAULT_SOLVER
    if args.initial_map == LINEAR:
        arguments["initial_map"] = None
    mdp = build_mdp(MDPSettings(**arguments))
    check_table(args, mdp)
    teacher = mdp.teacher
    calls = 1 if args.action == "noise" else teacher.calls
    rollouts = math.ceil(args.network_calls / (args.num_envs * args.num_steps * calls))
    evaluations = math.ceil(rollouts / args.held_out_every) + 1
    assert args.test_size is not None  # settled
    sizes = Sizes(args.reference_size, args.held_out_size, args.test_size, args.teacher_steps)
    solvers = len(baselines_of(args.baselines, teacher))
    items = plan(teacher, args.num_steps, args.network_calls, evaluations, sizes, solvers)
    if args.solver == AUTO:
        items.insert(0, choice_item(args, teacher))
    if args.action == "noise":
        items += network_items(args)
    if args.table_calls:
        items.insert(2, Item("table of actions", args.table_calls))
    print_plan(items, teacher, args.num_envs, sizes)


def choice_item(args: Args, teacher: Teacher) -> Item:
    """The choice of the base solver; fits to the teacher's trajectories, if linear steps are tried, come before it."""
    bases = candidates(args)
    calls = evaluated_samples(len(bases), args.held_out_size) * args.num_steps * teacher.calls
    return Item(f"choice among {len(bases)} base solvers, without their fits", calls)
