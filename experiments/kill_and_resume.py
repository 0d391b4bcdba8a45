"""Fault test: kill training runs at random moments, resume each, and hold what they end with against an unbroken run.

    python -m experiments.kill_and_resume --kills 20 --out runs/kill-and-resume

SIGKILL leaves a process no chance to tidy up. Every run must finish with the same student, byte for byte, and the same
table; the program exits with 1 if one does not.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from redif_env.storage.checkpoints import checkpoints
from redif_env.storage.files import sha256
from redif_env.training.command import run
from redif_env.training.runs import RESULT, prepare_folder

RUN = (
    "--teacher", "gaussian-ring", "--num-steps", "3", "--num-envs", "16", "--group-size", "4",
    "--reward", "endpoint", "1", "energy", "0.1", "--held-out-size", "64", "--held-out-every", "20",
)  # fmt: skip


@dataclass(frozen=True)
class Args:
    kills: int = 20
    seed: int = 0
    """Of the moments; the runs themselves all have seed 0."""
    network_calls: int = 9_600
    checkpoint_every: int = 480
    jobs: int = 2
    out: Path = Path("runs/kill-and-resume")


@dataclass(frozen=True)
class Trial:
    """What became of one run: killed after ``seconds`` in ``phase``, and whether its end is the unbroken one's."""

    seconds: float
    phase: str
    resumed: int
    identical: bool


def command(args: Args, out: Path) -> list[str]:
    """The training run in ``out``, begun or gone on with."""
    settings = ("--network-calls", str(args.network_calls), "--checkpoint-every", str(args.checkpoint_every))
    return [sys.executable, "-m", "agents.ppo", *RUN, *settings, "--resume", "--out", str(out)]


def start(args: Args, out: Path) -> subprocess.Popen[str]:
    """The run as a process of one thread, so that several beside each other do not slow down."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(args, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(args: Args, out: Path) -> None:
    """Run to the end."""
    process = start(args, out)
    errors = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f"the run in {out} did not finish: {errors[-2000:]}")


def outcome(out: Path) -> dict[str, str]:
    """What a run ended with: digests of the student's files, and the table."""
    files = {str(path.relative_to(out)): sha256(path) for path in (out / "student").rglob("*") if path.is_file()}
    return {**files, "rows": json.dumps(json.loads((out / RESULT).read_text())["rows"])}


def phase_of(out: Path) -> str:
    """How far a killed run had come, by what it left."""
    if (out / RESULT).exists():
        return "finished"
    if (out / "student").exists():
        return "judging"
    kept = checkpoints(out / "checkpoints")
    if kept:
        return f"training, {int(kept[-1].name):,} calls saved"
    return "before the first checkpoint" if (out / "config.json").exists() else "starting"


def kill_and_resume(args: Args, number: int, seconds: float, expected: dict[str, str]) -> Trial:
    """One run, killed after ``seconds`` and resumed to its end."""
    out = args.out / f"killed-{number}"
    shutil.rmtree(out, ignore_errors=True)
    process = start(args, out)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    phase = phase_of(out)
    kept = checkpoints(out / "checkpoints")
    finish(args, out)
    return Trial(seconds, phase, int(kept[-1].name) if kept else 0, outcome(out) == expected)


def main(args: Args) -> None:
    prepare_folder(args.out)
    unbroken = args.out / "unbroken"
    shutil.rmtree(unbroken, ignore_errors=True)
    begin = time.monotonic()
    with ThreadPoolExecutor(args.jobs) as pool:
        # As many unbroken runs beside each other as there will be killed ones: they last as long, and must agree too.
        folders = [unbroken, *(args.out / f"unbroken-{index}" for index in range(1, args.jobs))]
        for folder in folders[1:]:
            shutil.rmtree(folder, ignore_errors=True)
        list(pool.map(lambda folder: finish(args, folder), folders))
        lasted = time.monotonic() - begin
        expected = outcome(unbroken)
        moments = random.Random(args.seed)
        seconds = [moments.uniform(0, lasted) for _ in range(args.kills)]
        jobs = pool.map(lambda item: kill_and_resume(args, *item, expected), enumerate(seconds))
        trials = list(tqdm(jobs, total=args.kills, desc="kills"))
    agreed = all(outcome(folder) == expected for folder in folders)
    table = Table("killed after", "in", "resumed from", "same end", title=f"unbroken runs last {lasted:.1f} s")
    for trial in sorted(trials, key=lambda trial: trial.seconds):
        table.add_row(f"{trial.seconds:.1f} s", trial.phase, f"{trial.resumed:,}", "yes" if trial.identical else "NO")
    Console(width=100).print(table)
    same = sum(trial.identical for trial in trials)
    print(f"{same} of {len(trials)} killed runs ended as the unbroken one, which {'repeats' if agreed else 'DIFFERS'}")
    if same < len(trials) or not agreed:
        sys.exit(1)


if __name__ == "__main__":
    run(main, Args)
