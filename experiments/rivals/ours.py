"""The students of this project, under the same budget: PPO in its forms, and the search that sees no state."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from agents import cem, ppo
from experiments.rivals.base import Base
from experiments.rivals.pace import environment_seconds, in_time
from experiments.rivals.rival import BACKWARD_CALLS, Clock, Fitted, StudentSampler, Task, seen
from redif_env.judging.evaluation import prices_of
from redif_env.mdp.actions import ActionMap
from redif_env.mdp.settings import DEFAULT_SOLVER
from redif_env.sb3.training.networks import NoiseSettings
from redif_env.sb3.training.recipes import SOLVER, settled
from redif_env.students.student import Student
from redif_env.training.command import DEFAULT_REWARD
from redif_env.training.plan import calls_per_second

MINIBATCH_SECONDS, ROLLOUT_SECONDS, SEARCH_SECONDS = 2.5e-3, 2.5e-3, 1e-5
"""On this project's machine: an update on a minibatch, a step of all sub-environments beside the environment's own
time, and what the search takes a step beside its network calls. Only how near a fit comes to its budget depends on
them, and on :func:`environment_seconds`: the table shows what was spent."""
ADAPTIVE = 1.6
"""As many times the environment's time where the policy chooses the number of steps: part of the batch is idle."""
NETWORK_CALLS = 5.5
"""What a step of a network student costs in calls of rollouts' size: its own, its value's, its update's, its reward."""
SHORT_CALLS = 240_000
SHORT: dict[str, Any] = {"hidden": (), "num_envs": 64, "epochs": 2, "learning_rate": 3e-3, "average": 0.97}
"""Settings for budgets below so many calls. Linear policies: as good in half a minute, nearer in a whole one (4 NFE).
Half the environments make twice the updates, at a rate that a longer run has no use for; the policy's average forgets
sooner what was before it. Not from linear steps, which are so near that large updates lead away from them."""
PRICES = (0.1, 2.0)
"""Of a network call, for the student that chooses their number; dear enough that it does so within a small budget."""
BOTH_SHARE = 0.5
"""Of the time, for the compact student that a network begins as."""


def redif_ppo(task: Task) -> Fitted:
    """``python -m agents.ppo``, as many network calls as the budget pays for."""
    return compact(task, ppo.Args())


def redif_blind(task: Task) -> Fitted:
    """The same, but the policy sees the steps left alone.

    With hidden layers: linear in a one-hot it would be a bare table, which moves too little in a small budget.
    """
    return compact(task, ppo.Args(observation="steps", hidden=SOLVER.hidden))


def redif_adaptive(task: Task) -> Fitted:
    """The policy chooses the number of steps, up to two less or more, at the price that buys as many on average.

    Chosen on validation noise; where no price buys so few, the highest is taken, and the table says what was spent.
    With hidden layers: linear in the price, the number of steps stays at its most. Bases that are fitted to one number
    of steps are left for iPNDM.
    """
    steps = task.num_steps
    if task.base.fixed:
        task = replace(task, base=Base())
    settings = ppo.Args(
        min_steps=max(1, steps - 2), prices=PRICES, reward=(*DEFAULT_REWARD, ("price", 1.0)), hidden=SOLVER.hidden
    )
    found = compact(replace(task, num_steps=steps + 2), settings)
    assert isinstance(found.sampler, StudentSampler)
    student, chooser = found.sampler.student, task.chooser

    def spent(price: float) -> float:
        last = student.trajectory(chooser.noise, price, chooser.condition)[-1]
        return float(last.nfe.double().mean())

    prices = [price for price in prices_of(student, 9) if price is not None]
    price = next((price for price in prices if spent(price) <= task.nfe), prices[-1])
    return replace(found, sampler=StudentSampler(student, price), described=f"price {price:.3g}", spent=spent(price))


def redif_network(task: Task) -> Fitted:
    """``python -m agents.ppo --action noise`` from the warm start: every weight of a network is the policy's."""
    return _network(task, NoiseSettings(init=str(task.warm)), Clock(task.seconds), 1.0)


def redif_both(task: Task) -> Fitted:
    """A compact student first; then a copy of the teacher that takes its mean steps, and PPO on all weights of that."""
    clock = Clock(task.seconds)
    with TemporaryDirectory() as folder:
        first = compact(replace(task, seconds=task.seconds * BOTH_SHARE), ppo.Args())
        assert isinstance(first.sampler, StudentSampler)
        first.sampler.student.save_pretrained(Path(folder) / "compact")
        settings = NoiseSettings(base_student=str(Path(folder) / "compact"), copy=True)
        found = _network(task, settings, clock, 1 - BOTH_SHARE)
    return replace(found, network_calls=found.network_calls + first.network_calls)


def cross_entropy(task: Task) -> Fitted:
    """``python -m agents.cem`` on the reward that suits it, the distance to the endpoint."""
    settings = cem.Args(num_steps=task.num_steps, seed=task.seed, reward=(("endpoint", 1.0),))
    batch_size = settings.population * settings.noises
    a_step = task.teacher.calls / calls_per_second(task.teacher, batch_size) + SEARCH_SECONDS
    return _train(task, replace(settings, network_calls=in_time(task, a_step, batch_size)), cem.train)


def affordable(task: Task, settings: ppo.Args) -> int:
    """Network calls of PPO with these settings, none missing, that fit into the budget."""
    start = time.monotonic()
    env = ppo.build(replace(_given(task, settings), network_calls=1)).get_env()
    building = time.monotonic() - start
    a_step = environment_seconds(env, settings.num_steps) * (1 if settings.min_steps is None else ADAPTIVE)
    judgement = settings.held_out_size * settings.num_steps * a_step
    minibatches = settings.epochs * settings.batches / settings.num_steps
    judged = judgement / (settings.held_out_every * settings.num_steps)
    together = ROLLOUT_SECONDS + MINIBATCH_SECONDS * minibatches + judged
    # Training is judged at its beginning and at its end too.
    left = replace(task, seconds=task.seconds - building - 2 * judgement)
    return in_time(left, a_step + together / settings.num_envs, settings.num_envs)


def compact(task: Task, settings: ppo.Args, action: ActionMap | None = None) -> Fitted:
    """PPO on a few numbers a step, with these settings; ``action`` as in :func:`agents.ppo.train`."""
    asked = replace(
        settings,
        observation=settings.observation or seen(task.teacher),
        num_steps=task.num_steps,
        seed=task.seed,
        held_out_size=len(task.chooser.noise),
    )
    settings = settled(replace(asked, **{name: value for name, value in SHORT.items() if getattr(asked, name) is None}))
    calls = affordable(task, settings)
    if calls >= SHORT_CALLS or task.base.fixed:
        settings = settled(asked)
        calls = affordable(task, settings)
    found = _train(task, replace(settings, network_calls=calls), partial(ppo.train, action=action))
    assert isinstance(found.sampler, StudentSampler)
    if found.sampler.student.mdp.adaptive:
        return found
    return replace(found, levels=found.sampler.levels(task.chooser))


def _network(task: Task, network: NoiseSettings, clock: Clock, share: float) -> Fitted:
    """PPO on a whole network for a share of the task's time."""
    settings = settled(
        ppo.Args(
            action="noise",
            network=network,
            num_steps=task.nfe,
            seed=task.seed,
            held_out_size=len(task.chooser.noise),
            held_out_every=5,
        )
    )
    speed = calls_per_second(task.teacher, settings.num_envs) / NETWORK_CALLS
    steps = max(int(task.seconds * share * speed), 2 * settings.num_envs * task.nfe)
    found = _train(task, replace(settings, network_calls=steps), ppo.train)
    calls = steps + steps // task.nfe + steps * settings.epochs * (1 + BACKWARD_CALLS)
    return replace(found, seconds=clock.spent, network_calls=calls)


def _train(task: Task, settings: Any, train: Callable[[Any], tuple[Student, dict[str, Any]]]) -> Fitted:
    """A program's student; its folder is thrown away."""
    clock = Clock(task.seconds)
    with TemporaryDirectory() as folder:
        settings = replace(_given(task, settings), checkpoint_every=10**9, out=Path(folder) / "run")
        student, facts = train(settings)
    return Fitted(StudentSampler(student), clock.spent, facts["environment_steps"] * task.teacher.calls)


def _given(task: Task, settings: Any) -> Any:
    """A program's settings, with what the task has for all rivals; a base solver of its own stays."""
    reference = task.reference
    return replace(
        settings,
        teacher=task.teacher.name,
        solver=task.base.solver if settings.solver == DEFAULT_SOLVER else settings.solver,
        grid=task.base.grid,
        initial_map=task.base.initial_map,
        reference_size=len(reference),
        teacher_steps=reference.num_steps,
    )
