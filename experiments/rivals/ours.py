"""The students of this project, under the same budget: PPO, and the cross-entropy search that sees no state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from agents import cem, ppo
from agents.plan import calls_per_second
from agents.recipes import settled
from experiments.rivals.rival import Clock, Fitted, Task, sampler_of

PPO_SECONDS, SEARCH_SECONDS = 2.4e-4, 1e-5
"""What a step costs besides its network calls: PPO's updates, rewards and judging, and the search's; on this project's
machine. Only how near a fit comes to its budget depends on them: the table shows what was spent."""


def redif_ppo(task: Task) -> Fitted:
    """``python -m agents.ppo`` with its defaults, and as many network calls as the budget pays for."""
    settings = settled(ppo.Args(num_steps=task.num_steps, seed=task.seed, held_out_size=len(task.chooser.noise)))
    calls = affordable(task, settings.num_envs, PPO_SECONDS)
    return _train(task, replace(settings, network_calls=calls))


def cross_entropy(task: Task) -> Fitted:
    """``python -m agents.cem`` on the reward that suits it, the distance to the endpoint."""
    settings = cem.Args(num_steps=task.num_steps, seed=task.seed, reward=(("endpoint", 1.0),))
    calls = affordable(task, settings.population * settings.noises, SEARCH_SECONDS)
    return _train(task, replace(settings, network_calls=calls))


def affordable(task: Task, batch_size: int, besides: float) -> int:
    """Network calls that fit into the budget, by this machine's speed now: at least a few rollouts.

    ``besides`` are the seconds that a step of one sample costs beside its network calls.
    """
    a_step = task.teacher.calls / calls_per_second(task.teacher, batch_size) + besides
    return max(int(task.seconds / a_step) * task.teacher.calls, 4 * batch_size * task.nfe)


def _train(task: Task, settings: ppo.Args | cem.Args) -> Fitted:
    program = ppo if isinstance(settings, ppo.Args) else cem
    clock = Clock(task.seconds)
    with TemporaryDirectory() as folder:
        settings = replace(
            settings,
            teacher=task.teacher.name,
            reference_size=len(task.reference),
            checkpoint_every=10**9,
            out=Path(folder) / "run",
        )
        student, facts = program.train(settings)
    return Fitted(sampler_of(student), clock.spent, facts["environment_steps"] * task.teacher.calls)
