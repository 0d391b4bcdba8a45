"""Training runs of ``agents.ppo`` that an experiment needs, and how good their students are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from agents import ppo
from experiments.parallel import in_parallel
from experiments.stored import once
from redif_env.judging.evaluation import Evaluator, prices_of
from redif_env.mdp.actions import ActionMap
from redif_env.teachers.teacher import Teacher
from redif_env.training.command import teacher_of


@dataclass(frozen=True)
class Task:
    """One run, stored in ``settings.out``: the student, and ``rows.json`` with how good it is at each price.

    ``action`` replaces the action map that the settings name.
    """

    method: str
    settings: ppo.Args
    action: ActionMap | None = None


def finish(task: Task) -> list[dict[str, Any]]:
    """Train (or resume), save and judge one student, unless that is done; a row for each price that it knows."""
    found: list[dict[str, Any]] = once(task.settings.out / "rows.json", partial(_rows_of, task))
    return found


def finish_all(tasks: Sequence[Task], jobs: int) -> list[list[dict[str, Any]]]:
    """The rows of every task, in order, all of one teacher; ``jobs`` runs at a time."""
    # The reference set of the evaluator is computed once here, not by every process.
    evaluator_of(tasks[0].settings, teacher_of(tasks[0].settings))
    return in_parallel(finish, tasks, jobs)


def _rows_of(task: Task) -> list[dict[str, Any]]:
    student, facts = ppo.train(replace(task.settings, resume=True), task.action)
    if task.action is None:  # only named action maps can be written to a student's folder
        student.save_pretrained(task.settings.out / "student")
    # A student with a network of its own is no teacher.
    own = student.mdp.teacher.own_network
    evaluator = evaluator_of(task.settings, teacher_of(task.settings) if own else student.mdp.teacher)
    rows = []
    for price in prices_of(student):
        last = student.trajectory(evaluator.noise, price, evaluator.condition)[-1]
        row = evaluator.row(task.method, "learned", last.nfe.double().mean().item(), last.x)
        facts_of_row = {"price": price, "seed": task.settings.seed, "budget": student.num_steps, **facts}
        rows.append({**asdict(row), **evaluator.set_measures(last.x), **facts_of_row})
    return rows


def evaluator_of(settings: ppo.Args, teacher: Teacher) -> Evaluator:
    """With the test noises of a run."""
    return Evaluator(teacher, settings.test_size, data=settings.data)
