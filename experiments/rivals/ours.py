"""The students of this project under the same budget: PPO in three forms, and the cross-entropy search."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from agents import cem, ppo
from experiments.rivals.pace import environment_seconds, in_time
from experiments.rivals.rival import BACKWARD_CALLS, Clock, Fitted, StudentSampler, Task, seen
from redif_env.mdp.policies import Policy
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.sb3.training.networks import NoiseSettings
from redif_env.sb3.training.recipes import SOLVER, settled
from redif_env.students.student import Student
from redif_env.training.gauss_newton import GaussNewton, Rates
from redif_env.training.plan import calls_per_second

MINIBATCH_SECONDS, ROLLOUT_SECONDS, SEARCH_SECONDS = 2.5e-3, 2.5e-3, 1e-5
"""On this project's machine: an update on a minibatch, a step of all sub-environments beside the environment's own
time, and what the search takes a step beside its network calls. They decide only how near a fit comes to its budget:
the table shows what was spent."""
NETWORK_CALLS = 5.5
"""What a step of a network student costs in calls of rollouts' size: its own, its value's, its update's, its reward."""
SELDOM = 10**9
"""Rollouts between two evaluations of compact students: one at the beginning and one at the end. Each costs as many
network calls as four rollouts, and the moving average at the end is the best."""
SHORT_CALLS = 240_000
SHORT: dict[str, Any] = {"hidden": (), "num_envs": 64, "epochs": 2, "learning_rate": 3e-3, "average": 0.97}
"""Settings for budgets below so many calls: linear policies, more updates at a higher rate, a moving average over
fewer rollouts, and exploration in antithetic pairs. Not from linear steps, which are so near the teacher that large
updates lead away from them."""


def redif_ppo(task: Task) -> Fitted:
    """``python -m agents.ppo``, as many network calls as the budget pays for."""
    return compact(task, ppo.Args())


def redif_blind(task: Task) -> Fitted:
    """The same, but the policy sees the steps left alone.

    With hidden layers: linear in a one-hot it would be a bare table, which moves too little in a small budget.
    """
    return compact(task, ppo.Args(observation="steps", hidden=SOLVER.hidden))


def redif_network(task: Task) -> Fitted:
    """``python -m agents.ppo --action noise`` from the warm start: the policy is a whole network."""
    settings = settled(
        ppo.Args(
            action="noise",
            network=NoiseSettings(init=str(task.warm)),
            num_steps=task.nfe,
            seed=task.seed,
            held_out_size=len(task.chooser.noise),
            held_out_every=5,
        )
    )
    speed = calls_per_second(task.teacher, settings.num_envs) / NETWORK_CALLS
    a_step = 1 + 1 / task.nfe + settings.epochs * (1 + BACKWARD_CALLS)
    affordable = min(task.seconds * speed, (task.calls or inf) / a_step)
    steps = max(int(affordable), 2 * settings.num_envs * task.nfe)
    found = _train(task, replace(settings, network_calls=steps), ppo.train)
    return replace(found, network_calls=int(steps * a_step))


def cross_entropy(task: Task) -> Fitted:
    """``python -m agents.cem`` on the reward that suits it, the distance to the endpoint."""
    settings = cem.Args(num_steps=task.num_steps, seed=task.seed, reward=(("endpoint", 1.0),))
    batch_size = settings.population * settings.noises
    a_step = task.teacher.calls / calls_per_second(task.teacher, batch_size) + SEARCH_SECONDS
    return _train(task, replace(settings, network_calls=in_time(task, a_step, batch_size)), cem.train)


def gauss_newton_table(task: Task) -> Fitted:
    """``python -m agents.gauss_newton``; its steps end with the budget."""
    clock = Clock(task.seconds, task.calls)
    mdp = build_mdp(MDPSettings(
        teacher=task.teacher,
        num_steps=task.num_steps,
        observation="steps",
        device=str(task.teacher.device),
        **asdict(task.base),
    ))  # fmt: skip
    found = GaussNewton.at_base(mdp)
    for _ in found.within(lambda: clock.share, mdp, task.reference, Rates(), task.seed):
        clock.network_calls = found.network_calls
    student = Student(mdp, Policy.from_table(found.table.float(), mdp.observation_size))
    return Fitted(StudentSampler(student), clock.spent, found.network_calls)


def affordable(task: Task, settings: ppo.Args) -> int:
    """Network calls of PPO with these settings, none missing, that fit into the budget."""
    start = time.monotonic()
    env = ppo.build(replace(_given(task, settings), network_calls=1)).get_env()
    building = time.monotonic() - start
    a_step = environment_seconds(env, settings.num_steps)
    judgement = settings.held_out_size * settings.num_steps * a_step / made(settings)
    minibatches = settings.epochs * settings.batches / settings.num_steps
    judged = judgement / (settings.held_out_every * settings.num_steps)
    together = ROLLOUT_SECONDS + MINIBATCH_SECONDS * minibatches + judged
    # Training is judged at its beginning and at its end too.
    left = replace(task, seconds=task.seconds - building - 2 * judgement)
    return in_time(left, a_step + together / settings.num_envs, settings.num_envs)


def made(settings: ppo.Args) -> float:
    """Network calls that a rollout's step takes: the first of an episode is one for all members of a group."""
    return 1 - (1 - 1 / settings.group_size) / settings.num_steps


def compact(task: Task, settings: ppo.Args) -> Fitted:
    """PPO on a few numbers a step, with these settings."""
    asked = replace(
        settings,
        observation=settings.observation or seen(task.teacher),
        num_steps=task.num_steps,
        seed=task.seed,
        held_out_size=len(task.chooser.noise),
        held_out_every=SELDOM,
    )
    short = {name: value for name, value in SHORT.items() if getattr(asked, name) is None}
    settings = settled(replace(asked, **short, antithetic=True))
    calls = affordable(task, settings)
    if calls >= SHORT_CALLS or task.base.fixed:
        settings = settled(asked)
        calls = affordable(task, settings)
    found = _train(task, replace(settings, network_calls=calls), ppo.train)
    return replace(found, network_calls=round(found.network_calls * made(settings)))


def _train(task: Task, settings: Any, train: Callable[[Any], tuple[Student, dict[str, Any]]]) -> Fitted:
    """A program's student; its folder is thrown away."""
    clock = Clock(task.seconds)
    with TemporaryDirectory() as folder:
        settings = replace(_given(task, settings), checkpoint_every=10**9, out=Path(folder) / "run")
        student, facts = train(settings)
    return Fitted(StudentSampler(student), clock.spent, facts["environment_steps"] * task.teacher.calls)


def _given(task: Task, settings: Any) -> Any:
    """A program's settings, with what the task has for all rivals."""
    reference = task.reference
    return replace(
        settings,
        teacher=task.teacher.name,
        device=str(task.teacher.device),
        dtype=str(task.teacher.dtype).removeprefix("torch."),
        solver=task.base.solver,
        grid=task.base.grid,
        initial_map=task.base.initial_map,
        reference_size=len(reference),
        teacher_steps=reference.num_steps,
    )
