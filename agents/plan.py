"""What a run would cost, before it costs anything: ``--dry-run``."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from redif_env.baselines import all_baselines
from redif_env.cache import kept_file
from redif_env.evaluation import TEST_SIZE
from redif_env.references import TEST_SEED, TRAIN_SEED, VALIDATION_SEED, draw_noise, reference_key
from redif_env.teachers import Teacher

TEACHER_STEPS = 100
REFERENCE_SIZE = 4096
TIMED_SECONDS = 1.0


@dataclass(frozen=True)
class Item:
    """One part of a run and the network calls that it makes; none where the result is cached."""

    name: str
    calls: int


def plan(teacher: Teacher, num_steps: int, network_calls: int, judgements: int, held_out_size: int) -> list[Item]:
    """The parts of a training run, in the order in which they come."""
    references = (
        ("reference set", REFERENCE_SIZE, TRAIN_SEED),
        ("held-out endpoints, to choose the best student", held_out_size, VALIDATION_SEED),
        ("held-out endpoints, for the report", TEST_SIZE, TEST_SEED),
    )
    sets = [Item(name, _reference_calls(teacher, size, seed)) for name, size, seed in references]
    return [
        *sets[:2],
        Item("training", network_calls),
        Item(f"{judgements} judgements of the student", judgements * held_out_size * num_steps),
        sets[2],
        Item(f"report: student and {len(all_baselines())} rivals", TEST_SIZE * num_steps * (1 + len(all_baselines()))),
    ]


def calls_per_second(teacher: Teacher, batch_size: int) -> float:
    """Network calls a second, as batches of ``batch_size`` go through: measured, for about a second."""
    x = torch.zeros(batch_size, *teacher.sample_shape, device=teacher.device)
    timestep = torch.full((batch_size,), teacher.schedule.max_timestep / 2, device=teacher.device)
    half_logsnr = teacher.schedule.half_logsnr(timestep)
    calls, start = -batch_size, time.perf_counter()
    with torch.inference_mode():
        while calls <= 0 or time.perf_counter() - start < TIMED_SECONDS:
            teacher.predict(x, half_logsnr, timestep)
            if calls < 0:  # the first batch warms up
                start = time.perf_counter()
            calls += batch_size
    if teacher.device.type == "cuda":
        torch.cuda.synchronize()
    return calls / (time.perf_counter() - start)


def print_plan(items: list[Item], teacher: Teacher, batch_size: int, held_out_size: int) -> None:
    """The plan with its network calls, its time on this machine, and its memory."""
    speed = calls_per_second(teacher, batch_size)
    table = Table("part", title=f"{teacher.name}: {speed:,.0f} network calls a second, batches of {batch_size}")
    table.add_column("network calls", justify="right")
    table.add_column("at least", justify="right")
    for item in [*items, Item("all", sum(item.calls for item in items))]:
        table.add_row(item.name, f"{item.calls:,}" if item.calls else "cached", _minutes(item.calls / speed))
    Console(width=100).print(table)
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in teacher.network.parameters())
    pairs = 2 * (REFERENCE_SIZE + held_out_size + TEST_SIZE) * torch.Size(teacher.sample_shape).numel() * 4
    # Linux counts in kilobytes, macOS in bytes.
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(
        f"Memory: network {_megabytes(parameters)}, noises and endpoints {_megabytes(pairs)}; "
        f"this process, with one batch through the network, {_megabytes(used)}. Nothing was trained or written."
    )


def _reference_calls(teacher: Teacher, size: int, seed: int) -> int:
    key = reference_key(teacher, draw_noise(size, teacher.sample_shape, seed), TEACHER_STEPS)
    return 0 if kept_file(key) else size * TEACHER_STEPS


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _megabytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MB"
