"""Students that are networks: their architecture, the steps they start from, and their warm start."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from redif_env.diffusion.noise_schedulers import action_parameterization
from redif_env.diffusion.types import PredictionType
from redif_env.fitted.linear_solver import LinearSolver
from redif_env.mdp.actions import NoiseMap, SolverMap
from redif_env.mdp.process import DenoisingMDP
from redif_env.mdp.settings import LINEAR, MDPSettings, build_mdp
from redif_env.sb3.student_policy import Reduction, StudentPolicy, student_kwargs
from redif_env.students.network.cloning import CloningPlan, clone
from redif_env.students.network.pruning import prunable, pruned_weights
from redif_env.students.network.refinement import ROLLOUTS, RefinementPlan, refine
from redif_env.students.network.sensitivities import sensitivity_calls
from redif_env.students.student import Student
from redif_env.teachers.networks import narrowed
from redif_env.teachers.teacher import Teacher, config_of
from redif_env.training.plan import Item


@dataclass(frozen=True)
class NoiseSettings:
    """Settings of action "noise"."""

    base_student: str | None = None
    """Student (folder or hub id) of --action solver, at whose mean steps the network starts."""
    init: str | None = None
    """Student (folder or hub id) of agents.clone or of an earlier run, with whose network to start. Cloning continues
    only if clone_updates is given."""
    copy: bool = False
    """Start as a copy of the teacher with its prediction type, without cloning: exactly as the base solver or
    base_student. If the network predicts the noise, choose a grid with a late start, because an error of the first step
    is multiplied by sigma / alpha."""
    config: str | None = None
    """JSON file with the network's diffusers config; the teacher's if not given."""
    width: float = 1.0
    """Channels of the network, as a multiple of the config's (UNet2DModel). A narrower network starts with the
    channels of the teacher that have the largest weights."""
    time_embedding_dim: int | None = None
    """Channels of the time embedding (UNet2DModel); the config's if not given. A student sees few timesteps, so few
    channels suffice."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank on a copy of the teacher; 0 trains all weights."""
    clone_updates: int | None = None
    """Minibatches of behaviour cloning before training; 1,000 if not given, none after init or copy."""
    clone_batch_size: int = 128
    """States per minibatch; rollouts have four times as many."""
    clone_rate: float = 1e-3
    """Learning rate of cloning."""
    clone_by_sensitivity: bool = False
    """Weight the errors of each step by how far they move the finished sample; for small networks."""
    refine_updates: int = 0
    """Minibatches of refinement after cloning or init: backpropagation through the steps, towards the distribution of
    the teacher's samples."""
    refine_rate: float = 1e-4
    """Learning rate of refinement."""
    refine_num_steps: int = 8
    """Steps of the base solver that make the endpoints of refinement. Eight are near enough to the teacher's for linear
    steps; other solvers need more."""
    refine_grid: str | None = None
    """Grid of these steps; that of the student's steps if not given."""
    reduction: Reduction = Reduction.MEAN
    """Reduction of the log-probabilities over the numbers of an action."""
    step_exploration: float = 0.1
    """Standard deviation of the step size's shift, in logits, divided by the exploration of the next sample."""
    autocast: bool = False
    """Run the network in bfloat16."""


def noise_map(settings: NoiseSettings) -> NoiseMap:
    """The action map, with its initial steps.

    Raises:
        ValueError: if those are of a student with an adaptive number of steps, or with another action map.
    """
    if settings.base_student is None:
        return NoiseMap()
    student = Student.from_pretrained(settings.base_student)
    if not isinstance(student.mdp.action_map, SolverMap) or student.mdp.learn_guidance:
        raise ValueError(
            f"network.base_student='{settings.base_student}' was not trained with --action solver alone: choose another"
        )
    actions = student.frozen().mean_actions
    assert actions is not None
    return NoiseMap(initial_actions=tuple(map(tuple, actions.tolist())))


def network_config(settings: NoiseSettings, teacher: Teacher) -> dict[str, Any]:
    """The config of the student's network.

    Raises:
        ValueError: if the file holds none.
    """
    config: Mapping[str, Any] = config_of(teacher)
    if settings.config is not None:
        config = read_config(Path(settings.config))
    if (settings.width, settings.time_embedding_dim) == (1, None):
        return dict(config)
    return narrowed(config, settings.width, settings.time_embedding_dim)


def read_config(path: Path) -> dict[str, Any]:
    """A network's config from a JSON file."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"network.config='{path}' is no JSON ({error}): give the config.json of a diffusers model"
        ) from error
    if not isinstance(config, dict) or "_class_name" not in config:
        raise ValueError(f"network.config='{path}' names no _class_name: give the config.json of a diffusers model")
    return config


def policy_kwargs(settings: NoiseSettings, mdp: DenoisingMDP) -> dict[str, Any]:
    """Of the :class:`~redif_env.sb3.StudentPolicy`."""
    return {
        **student_kwargs(mdp, network_config(settings, mdp.teacher)),
        "predicts_noise": initial_prediction_type(settings, mdp)
        != action_parameterization(mdp.teacher.parameterization).prediction_type,
        "reduction": settings.reduction,
        "lora_rank": settings.lora_rank,
        "autocast": settings.autocast,
    }


def initial_prediction_type(settings: NoiseSettings, mdp: DenoisingMDP) -> PredictionType:
    """The prediction type of the initial network.

    Raises:
        ValueError: if two initial networks are given.
    """
    if settings.init is not None and settings.copy:
        raise ValueError(f"network.copy and network.init='{settings.init}' exclude each other: leave one of them out")
    if settings.init is not None:
        return Student.from_pretrained(settings.init).mdp.teacher.prediction_type
    return (
        mdp.teacher.prediction_type
        if settings.copy
        else action_parameterization(mdp.teacher.parameterization).prediction_type
    )


def warm_start(settings: NoiseSettings, mdp: DenoisingMDP, policy: StudentPolicy, seed: int) -> dict[str, Any]:
    """Initialise ``policy`` in place: a student's network, a copy of the teacher, or a clone. Returns what it cost."""
    start = time.monotonic()
    if settings.init is not None:
        load_plain(
            policy.unet, Student.from_pretrained(settings.init).network.state_dict(), f"network.init='{settings.init}'"
        )
    elif settings.copy:
        load_plain(policy.unet, mdp.teacher.network.state_dict(), "the teacher")
    else:
        copy_teacher(settings, mdp.teacher, policy.unet)
    if cloning_plan(settings, seed).updates:
        clone_teacher(settings, mdp, policy.unet, seed)
    if settings.refine_updates:
        refine_clone(settings, mdp, policy.unet, seed)
    return {"clone_seconds": round(time.monotonic() - start, 1)}


def copy_teacher(settings: NoiseSettings, teacher: Teacher, network: nn.Module) -> None:
    """Copy the teacher's weights where the two networks are alike, or a part of them where that can be."""
    own, config = config_of(teacher), network_config(settings, teacher)
    if config == own:
        load_plain(network, teacher.network.state_dict(), "the teacher")
    elif prunable(own, config):
        load_plain(network, pruned_weights(teacher.network, config), "the teacher's part")


def clone_teacher(settings: NoiseSettings, mdp: DenoisingMDP, network: nn.Module, seed: int) -> None:
    """Clone the teacher into ``network``."""
    check_clone(settings, mdp)
    plan = cloning_plan(settings, seed)
    with updates_shown(plan.updates, "cloning the teacher") as progress:
        clone(mdp, network, plan, progress)


def check_clone(settings: NoiseSettings, mdp: DenoisingMDP) -> None:
    """Refuse an initial network whose prediction type is not that of clones.

    Raises:
        ValueError: if it is the teacher's.
    """
    if initial_prediction_type(settings, mdp) != action_parameterization(mdp.teacher.parameterization).prediction_type:
        raise ValueError(
            f"network.clone_updates={settings.clone_updates} and network.refine_updates={settings.refine_updates} are "
            "for clones, and a copy of the teacher has another prediction type: leave both or network.copy out, or "
            "start with network.init from agents.clone"
        )


def refine_clone(settings: NoiseSettings, mdp: DenoisingMDP, network: nn.Module, seed: int) -> None:
    """Refine ``network``, a clone, by the gradient through its steps."""
    check_clone(settings, mdp)
    plan = refinement_plan(settings, seed)
    finer = build_mdp(
        MDPSettings(
            teacher=mdp.teacher,
            num_steps=settings.refine_num_steps,
            action=NoiseMap(),
            observation="sample",
            solver=LINEAR if isinstance(mdp.solver, LinearSolver) else mdp.solver,
            grid=settings.refine_grid or mdp.grid,
            device=str(mdp.teacher.device),
            initial_map=None if mdp.initial_map is None else "linear",
        )
    )
    with updates_shown(plan.updates, "refining the clone") as progress:
        refine(mdp, network, plan, finer, progress)


@contextmanager
def updates_shown(updates: int, name: str) -> Iterator[Callable[[float], None]]:
    """A progress bar: to be called with the loss of each update."""
    with tqdm(total=updates, desc=name) as bar:

        def progress(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()

        yield progress


def cloning_plan(settings: NoiseSettings, seed: int) -> CloningPlan:
    """How the teacher is cloned: by default not at all where the initial network is another."""
    updates = 0 if settings.init or settings.copy else CloningPlan.updates
    return CloningPlan(
        updates=updates if settings.clone_updates is None else settings.clone_updates,
        batch_size=settings.clone_batch_size,
        rollouts=4 * settings.clone_batch_size,
        learning_rate=settings.clone_rate,
        by_sensitivity=settings.clone_by_sensitivity,
        seed=seed,
    )


def refinement_plan(settings: NoiseSettings, seed: int) -> RefinementPlan:
    """How the clone is refined."""
    return RefinementPlan(
        updates=settings.refine_updates,
        learning_rate=settings.refine_rate,
        by_sensitivity=settings.clone_by_sensitivity,
        seed=seed,
    )


def network_items(args: Any) -> list[Item]:
    """Further parts of a run with settings ``args`` whose student is a network, each call of which counts as one of the
    teacher's, and a backward pass as two."""
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
        items.append(Item("the teacher's trajectories, for the path reward", args.reference_size * args.teacher_steps))
    return items


def load_plain(network: nn.Module, weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Load the weights of a plain network into one that may have adapters, which are left as they are.

    Raises:
        ValueError: if it is another network.
    """
    own = network.state_dict()
    places = {key.replace(".base_layer.", "."): key for key in own if ".lora_" not in key}
    wrong = [key for key, place in places.items() if key not in weights or weights[key].shape != own[place].shape]
    if wrong or set(weights) - set(places):
        raise ValueError(
            f"{name} has another network than this student: first of {len(wrong)} differences, {wrong[:1]}"
        )
    network.load_state_dict({**own, **{place: weights[key] for key, place in places.items()}})
