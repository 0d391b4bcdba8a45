"""What a run would cost, before it costs anything: ``--dry-run``."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import torch
from rich.console import Console
from rich.table import Table

from redif_env.judging.evaluation import SCREEN_SIZE, SHORTLIST
from redif_env.storage.cache import cached_file
from redif_env.teachers.references import TEST_SEED, TRAIN_SEED, VALIDATION_SEED, draw_starts, reference_key
from redif_env.teachers.teacher import Teacher

TIMED_SECONDS = 1.0


@dataclass(frozen=True)
class Sizes:
    """Noises to train on, to choose by and to report on, and the predictions that the teacher spends on each."""

    reference: int
    held_out: int
    test: int
    teacher_steps: int


@dataclass(frozen=True)
class Item:
    """One part of a run and the network calls that it makes; none where the result is cached."""

    name: str
    calls: int


def plan(
    teacher: Teacher, num_steps: int, network_calls: int, evaluations: int, sizes: Sizes, solvers: int
) -> list[Item]:
    """The parts of a training run, in the order in which they come; its report compares with so many solvers."""
    references = (
        ("reference set", sizes.reference, TRAIN_SEED),
        ("held-out endpoints, to choose the best student", sizes.held_out, VALIDATION_SEED),
        ("held-out endpoints, for the report", sizes.test, TEST_SEED),
    )
    nfe = num_steps * teacher.calls
    sets = [Item(name, _reference_calls(teacher, size, seed, sizes.teacher_steps)) for name, size, seed in references]
    judged = solvers * sizes.test
    if sizes.test > SCREEN_SIZE and solvers > SHORTLIST:
        judged = solvers * SCREEN_SIZE + SHORTLIST * sizes.test
    return [
        *sets[:2],
        Item("training", network_calls),
        Item(f"{evaluations} evaluations of the student", evaluations * sizes.held_out * nfe),
        sets[2],
        Item(f"report: student and {solvers} solvers", nfe * (sizes.test + judged)),
    ]


def calls_per_second(teacher: Teacher, batch_size: int) -> float:
    """Network calls a second, as batches of ``batch_size`` go through: measured, for about a second."""
    x = torch.zeros(batch_size, *teacher.sample_shape, device=teacher.device)
    middle = torch.full((batch_size,), 0.5, dtype=torch.float64, device="cpu")
    half_logsnr = teacher.schedule.half_logsnr_at(middle)
    timestep = teacher.schedule.timestep(half_logsnr)
    calls, start = -batch_size, time.perf_counter()
    with torch.inference_mode():
        while calls <= 0 or time.perf_counter() - start < TIMED_SECONDS:
            teacher.predict(x, half_logsnr, timestep)
            if calls < 0:  # the first batch warms up
                start = time.perf_counter()
            calls += batch_size if calls < 0 else batch_size * teacher.calls
    if teacher.device.type != "cpu":
        torch.accelerator.synchronize(teacher.device)
    return calls / (time.perf_counter() - start)


def print_plan(items: list[Item], teacher: Teacher, batch_size: int, sizes: Sizes) -> None:
    """The plan with its network calls, its time on this machine, and its memory."""
    speed = calls_per_second(teacher, batch_size)
    table = Table("part", title=f"{teacher.name}: {speed:,.0f} network calls a second, batches of {batch_size}")
    table.add_column("network calls", justify="right")
    table.add_column("at least", justify="right")
    for item in [*items, Item("all", sum(item.calls for item in items))]:
        table.add_row(item.name, f"{item.calls:,}" if item.calls else "cached", _minutes(item.calls / speed))
    Console(width=100).print(table)
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in teacher.network.parameters())
    pairs = 2 * (sizes.reference + sizes.held_out + sizes.test) * torch.Size(teacher.sample_shape).numel() * 4
    if teacher.device.type == "cpu":
        used = psutil.Process().memory_info().rss
    else:
        used = torch.accelerator.max_memory_allocated(teacher.device)
    print(
        f"Memory: network {_megabytes(parameters)}, noises and endpoints {_megabytes(pairs)}; "
        f"{teacher.device}, with one batch through the network, {_megabytes(used)}. Nothing was trained or written."
    )


def _reference_calls(teacher: Teacher, size: int, seed: int, num_steps: int) -> int:
    key = reference_key(teacher, *draw_starts(teacher, size, seed), num_steps)
    return 0 if cached_file(key) else size * num_steps * teacher.calls


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _megabytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MB"
