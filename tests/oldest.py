"""The oldest versions that pyproject.toml admits, as constraints for pip: python tests/oldest.py > oldest.txt

torch is the one that constraints.txt pins: an old one has no wheel for a new Python, and weighs gigabytes.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
BOUND = re.compile(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)")


OF_THEIR_OWN = ("rllib", "torchrl")
"""Extras with an environment and constraints of their own (constraints-ray.txt)."""


def requirements():
    """What pyproject.toml asks for, its extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lists = [project["dependencies"], *(lines for extra, lines in extras.items() if extra not in OF_THEIR_OWN)]
    return [line for lines in lists for line in lines if not line.startswith(project["name"])]


def bounds():
    """The lower bound of every package that pyproject.toml names."""
    return dict(BOUND.match(line).groups() for line in requirements())


def pinned():
    """The exact versions of constraints.txt, by name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


if __name__ == "__main__":
    for name, version in {**bounds(), "torch": pinned()["torch"]}.items():
        print(f"{name}=={version}")
