"""What a training run leaves: the student, its table, a picture, and the numbers as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from redif_env.judging.baselines import AnyBaseline, all_baselines, baselines_of
from redif_env.judging.evaluation import Evaluator, Row, evaluate
from redif_env.judging.stock import StockBaseline
from redif_env.judging.tables import print_table
from redif_env.mdp.settings import OWN
from redif_env.measures.rendering import tile, to_pixels, write_png
from redif_env.storage.files import write_json
from redif_env.students.record import Record, installed_versions
from redif_env.students.student import Student
from redif_env.teachers.pipelines import BUILT_IN
from redif_env.training.command import teacher_of
from redif_env.training.runs import RESULT, settings_json

PICTURED = 12
BEST = 3
"""Solvers that a student's own table names."""


def judge(method: str, student: Student, settings: Any, facts: dict[str, Any]) -> None:
    """Export a student, evaluate it beside training-free solvers at the same NFE, and write all of it to its folder.

    The student is saved before it is evaluated, so that nothing that happens meanwhile can lose it.

    Args:
        method: the student's name in the table.
        student: the student.
        settings: of the program (a dataclass): its folder, test noises, solvers and features. Of several features each
            has a table; the first are the report's.
        facts: what it cost: ``train_seconds``, ``environment_steps``, ...
    """
    sizes = {
        "teacher_steps": settings.teacher_steps,
        "train_size": getattr(settings, "reference_size", settings.test_size),
        "data": getattr(settings, "data", None),
    }
    teacher, features = teacher_of(settings), getattr(settings, "features", None) or (None,)
    evaluator, *others = [Evaluator(teacher, settings.test_size, features=name, **sizes) for name in features]
    baselines, out, stored = baselines_of(settings.baselines, teacher), settings.out, settings_json(settings)
    student.save_pretrained(out / "student")
    print(f"student saved in {out / 'student'}; now it is evaluated beside {len(baselines)} solvers", flush=True)
    rows = evaluate(evaluator, student, method, baselines)
    nfe = math.ceil(max(row.nfe for row in rows if row.method == method))
    title = f"{student.mdp.teacher.name}, {nfe} NFE, {evaluator.description}"
    recorded(student, method, stored, rows, title).save_pretrained(out / "student")
    save_samples(out / "samples.png", student, rows, evaluator, baselines)
    described = {"features": evaluator.feature_name, "samples": len(evaluator.noise)}
    result = {"settings": stored, "versions": installed_versions(), **facts, **described}
    write_json(out / RESULT, {**result, "rows": [asdict(row) for row in rows]})
    print_table(rows, title)
    print(f"Trained in {facts['train_seconds']} s, {facts['environment_steps']} environment steps. Results: {out}")
    for other in others:
        print_table(evaluate(other, student, method, baselines), other.description)


def save_samples(
    path: Path, student: Student, rows: Sequence[Row], evaluator: Evaluator, baselines: Sequence[AnyBaseline]
) -> None:
    """Picture of the same noises down the rows: best solver, if any, student (at its smallest price), teacher.

    Of a pipeline that is driven, its own scheduler comes first.
    """
    teacher, noise, condition = evaluator.teacher, evaluator.noise[:PICTURED], evaluator.condition[:PICTURED]
    lines = [student.trajectory(noise, condition=condition)[-1].x, evaluator.endpoints[:PICTURED]]
    best = min(solvers_of(rows), key=lambda row: row.fd_teacher, default=None)
    for baseline in reversed(baselines):
        own = baseline is baselines[0] and isinstance(baseline, StockBaseline)
        if best is not None and (own or (baseline.method, baseline.grid) == (best.method, best.grid)):
            lines.insert(0, baseline(teacher, noise, math.ceil(best.nfe) // teacher.calls, condition))
    samples = torch.stack([teacher.images(line) for line in lines])
    if samples.ndim != 5:
        samples = samples.reshape(*samples.shape[:2], 1, 1, -1)
    write_png(path, tile(to_pixels(samples)))


def recorded(student: Student, method: str, settings: dict[str, Any], rows: Sequence[Row], judged: str) -> Student:
    """``student`` with its record: how it was trained, and its table, with the best of the solvers alone."""
    shown = [row for row in rows if row.method == method] + solvers_of(rows)[:BEST]
    shown += [row for row in rows if row not in shown and row.method.startswith("teacher")]
    training = {key: value for key, value in settings.items() if key not in ("out", "license")}
    license = settings.get("license") or ("mit" if settings["teacher"] in BUILT_IN else "unknown")
    record = Record(training, judged, [asdict(row) for row in shown], installed_versions(), license)
    return Student(student.mdp, student.policy, record)


def solvers_of(rows: Sequence[Row]) -> list[Row]:
    """The rows of training-free solvers, in their order."""
    names = {(baseline.method, baseline.grid) for baseline in all_baselines()}
    return [row for row in rows if (row.method, row.grid) in names or row.grid == OWN]
