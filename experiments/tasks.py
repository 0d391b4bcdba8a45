"""Training runs that an experiment needs: some at a time, each kept once finished."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from agents import cem, ppo
from experiments.stored import once
from redif_env.judging.evaluation import Evaluator, prices_of
from redif_env.mdp.settings import shared_teacher
from redif_env.training.command import teacher_of

ROWS = "rows.json"


@dataclass(frozen=True)
class Task:
    """One training run, kept in ``settings.out``: the student, and ``rows.json`` with how good it is at each price."""

    method: str
    settings: ppo.Args | cem.Args


def finish(task: Task, threads: int) -> list[dict[str, Any]]:
    """Train (or go on), export and judge one student, unless that is done; a row for each price that it knows."""
    found: list[dict[str, Any]] = once(task.settings.out / ROWS, partial(rows_of, task, threads))
    return found


def rows_of(task: Task, threads: int) -> list[dict[str, Any]]:
    """What :func:`finish` keeps."""
    torch.set_num_threads(threads)
    settings = replace(task.settings, resume=True)
    student, facts = ppo.train(settings) if isinstance(settings, ppo.Args) else cem.train(settings)
    student.save_pretrained(task.settings.out / "student")
    # A student with a network of its own is no teacher.
    own = student.mdp.teacher.own_network
    evaluator = Evaluator(teacher_of(task.settings) if own else student.mdp.teacher)
    rows = []
    for price in prices_of(student):
        last = student.trajectory(evaluator.noise, price, evaluator.condition)[-1]
        row = evaluator.row(task.method, "learned", last.nfe.double().mean().item(), last.x)
        facts_of_row = {"price": price, "seed": task.settings.seed, "budget": student.num_steps, **facts}
        rows.append({**asdict(row), **evaluator.set_measures(evaluator.teacher.clip(last.x)), **facts_of_row})
    return rows


def finish_all(tasks: Sequence[Task], teacher: str, jobs: int) -> list[list[dict[str, Any]]]:
    """The rows of every task, in order; ``jobs`` runs at a time, each with its share of the cores."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    # The judge's reference set is computed once here, not by every process.
    Evaluator(shared_teacher(teacher, torch.device("cpu"), torch.float32))
    if jobs == 1:
        return [finish(task, threads) for task in tasks]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(finish, tasks, [threads] * len(tasks)))
