"""Nothing half-written ever loads, whatever fails and whenever the process is killed (``tests/storage/faults.py``)."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each fault has a forked process")


def faults(stride):
    command = [sys.executable, "-m", "tests.storage.faults", str(stride)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    print(counts)
    return counts


def test_some_faults():
    counts = faults(7)
    assert {name: count["tried"] > 0 for name, count in counts.items()} == dict.fromkeys(counts, True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_fault():
    counts = faults(1)
    assert all(count["tried"] == 2 * count["operations"] for count in counts.values())
    assert counts["student"]["operations"] >= 30
