"""Faults at every file operation of the cache, the student's folder and the checkpoints, each in a process of its own.

    python -m tests.storage.faults [stride [cache] [student] [checkpoint]]

Each operation (open for writing, rename, mkdir, chmod, remove) fails once in turn, and the process is killed before
each; a limit on file sizes makes writes fail, and kills in the middle of them. ``stride`` takes only every so many.
"""

import errno
import json
import os
import pickle
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from redif_env import Student
from redif_env.mdp.policies import Policy
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.storage.cache import cached, cached_file, read_tensor
from redif_env.storage.checkpoints import add_state, newest_state
from redif_env.storage.files import CorruptFileError

MDP = build_mdp(MDPSettings(teacher="gaussian-ring", num_steps=2))
EVENTS = {"os.rename": 2, "os.mkdir": 1, "os.chmod": 1, "os.remove": 1, "os.rmdir": 1}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Cache:
    """A new tensor."""

    name = "cache"

    def write(self, root, value):
        os.environ["REDIF_CACHE"] = str(root / "cache")
        assert cached("key", lambda: torch.full((3000,), float(value))).eq(value).all()

    def read(self, root):
        os.environ["REDIF_CACHE"] = str(root / "cache")
        found = cached_file("key")
        return None if found is None else int(read_tensor(found)[0])

    prepare = staticmethod(lambda root: None)
    place = "key.safetensors"


class Folder:
    """A student in the place of an older one."""

    name = "student"
    place = "student"

    def prepare(self, root):
        self.write(root, 1)

    def write(self, root, value):
        table = torch.full((2, MDP.action_size), value / 10)
        Student(MDP, Policy.from_table(table, MDP.observation_size)).save_pretrained(root / "student")

    def read(self, root):
        try:
            return round(10 * Student.from_pretrained(root / "student").mean_actions[0, 0].item())
        except FileNotFoundError:
            return None


class Checkpoint:
    """A checkpoint after an older one, which is removed."""

    name = "checkpoint"
    place = "runs"

    def prepare(self, root):
        self.write(root, 1)

    def write(self, root, value):
        add_state(root / "runs", value, {"value": torch.full((2000,), float(value))}, keep=1)

    def read(self, root):
        state = newest_state(root / "runs")
        return None if state is None else int(state["value"][0])


def in_child(root, what, point=None, mode=None, limit=None):
    """What became of writing 2: events, error and warnings of a forked process; None if it was killed."""
    inlet, outlet = os.pipe()
    child = os.fork()
    if child:
        os.close(outlet)
        with os.fdopen(inlet, "rb") as stream:
            content = stream.read()
        os.waitpid(child, 0)
        return pickle.loads(content) if content else None
    count, error = 0, None

    def hook(event, arguments):
        nonlocal count
        counted = event in EVENTS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES)
        path = arguments[0] if counted else None
        if not counted or (isinstance(path, str) and os.path.isabs(path) and not path.startswith(str(root))):
            return
        count += 1
        if count - 1 == point and armed:
            if mode == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, "No space left on device")

    armed = True
    sys.addaudithook(hook)
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if mode == "kill" else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            what.write(root, 2)
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
    armed = False
    os.write(outlet, pickle.dumps((count, error, [str(warning.message) for warning in caught])))
    os._exit(0)


def check(root, what, outcome, old):
    """Raise if something half-written loads, something whole is lost, or a message does not name the file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = what.read(root)
        except CorruptFileError as error:
            raise AssertionError(f"{what.name}: something half-written was there: {error}") from error
    if any("left out" in str(warning.message) for warning in caught):
        raise AssertionError(f"{what.name}: {caught[0].message}")
    if outcome is None:
        assert found in (old, 2, None), (what.name, found)
        return
    _, error, warned = outcome
    if error is not None:
        assert what.place in error, (what.name, error)
        assert found in (old, 2), (what.name, found, error)
    elif found != 2:
        assert any(what.place in message for message in warned), (what.name, warned)


def main(stride=1, *names):
    """How many operations each had, and how many faults were tried; an AssertionError if one did harm."""
    counts = {}
    home = Path(tempfile.mkdtemp())
    for what in (what for what in (Cache(), Folder(), Checkpoint()) if what.name in (names or what.name)):
        template = home / what.name
        template.mkdir()
        what.prepare(template)
        old = what.read(template)

        def run(what=what, template=template, old=old, **fault):
            root = home / "trial"
            shutil.copytree(template, root)
            outcome = in_child(root, what, **fault)
            check(root, what, outcome, old)
            files = {path.stat().st_size for path in root.rglob("*") if path.is_file() and path.stat().st_size > 1}
            shutil.rmtree(root)
            return outcome, files

        (outcome, files) = run()
        points = range(0, outcome[0], stride)
        for point in points:
            for mode in ("fail", "kill"):
                run(point=point, mode=mode)
        limits = sorted({limit for size in files for limit in (size // 2, size - 1)})[::stride]
        for limit in limits:
            for mode in ("fail", "kill"):
                run(limit=limit, mode=mode)
        counts[what.name] = {"operations": outcome[0], "tried": 2 * len(points), "writes": 2 * len(limits)}
    shutil.rmtree(home)
    return counts


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if sys.argv[1:] else 1, *sys.argv[2:])))
