"""Nothing half-written ever loads, whatever fails and whenever the process is killed (``tests/storage/faults.py``)."""

import os

import pytest

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="each fault has a forked process"),
    # Of Python 3.12: a child has none of the other threads. It only writes small files.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


@pytest.fixture
def faults(monkeypatch):
    from tests.storage.faults import main  # nothing for Windows

    monkeypatch.setenv("REDIF_CACHE", os.environ["REDIF_CACHE"])  # set by each trial, and set back in the end
    return main


def test_some_faults(faults):
    counts = faults(7)
    assert {name: count["tried"] > 0 for name, count in counts.items()} == dict.fromkeys(counts, True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_fault(faults):
    counts = faults(1)
    assert all(count["tried"] == 2 * count["operations"] for count in counts.values())
    assert counts["student"]["operations"] >= 30
