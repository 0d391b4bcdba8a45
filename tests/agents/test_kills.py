"""Fault test: runs that are killed at random moments and resumed end as an unbroken one, byte for byte.

python -m pytest -n 0 -s -m slow tests/agents/test_kills.py
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest

from redif_env.storage.files import sha256

KILLS = 20
RUN = (
    "--num-steps", "3", "--num-envs", "16", "--group-size", "4",
    "--reward", "endpoint", "1", "energy", "0.1", "--held-out-size", "64", "--held-out-every", "20", "--resume",
)  # fmt: skip
TEACHERS = {
    "mixture": ("--teacher", "gaussian-ring", "--network-calls", "9600", "--checkpoint-every", "480"),
    "pipeline": (
        "--teacher", "digits", "--driven", "True", "--run-size", "64", "--test-size", "64", "--baselines", "none",
        "--network-calls", "2400", "--checkpoint-every", "240",
    ),
}  # fmt: skip


def start(out, teacher):
    command = [sys.executable, "-m", "agents.ppo", *TEACHERS[teacher], *RUN, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def finish(out, teacher):
    process = start(out, teacher)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors[-2000:]


def outcome(out):
    """Digests of the student's files, and the table."""
    files = {str(path.relative_to(out)): sha256(path) for path in (out / "student").rglob("*") if path.is_file()}
    return files, json.loads((out / "result.json").read_text())["rows"]


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_killed_runs_end_as_an_unbroken_one(tmp_path, teacher):
    """SIGKILL leaves a process no chance to tidy up, at any moment: before training, in it, or while judging."""
    began = time.monotonic()
    finish(tmp_path / "unbroken", teacher)
    lasted, expected = time.monotonic() - began, outcome(tmp_path / "unbroken")
    moments = random.Random(0)
    for number in range(KILLS):
        out, seconds = tmp_path / "killed", moments.uniform(0, lasted)
        shutil.rmtree(out, ignore_errors=True)
        process = start(out, teacher)
        time.sleep(seconds)
        process.kill()
        process.communicate()
        finish(out, teacher)
        assert outcome(out) == expected, f"killed after {seconds:.1f} s"
        print(
            f"{number + 1} of {KILLS}: killed after {seconds:.1f} of {lasted:.1f} s, ends as the unbroken one",
            flush=True,
        )
