"""Code and docs use the words of the field: retired words are found by name, line and file."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RETIRED = {
    "astray": "mode switch",
    "begun": "initialised, initial",
    "companion": "component",
    "companions": "components",
    "foresight": "privileged",
    "foretell": "predict",
    "foretold": "predicted error",
    "landing": "target",
    "landings": "targets",
    "sibling": "group member",
    "siblings": "group members",
    "strayed": "mode switch",
    "told": "conditioning timestep",
    "wanted": "requested, target",
    "ways": "trajectories",
}
"""Each retired word and the words to use instead."""
EXEMPT = ("CHANGELOG.md", "tests/test_words.py")
SUFFIXES = (".cff", ".md", ".py", ".toml", ".yaml", ".yml")
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
"""Words of prose and the parts of ``snake_case`` and ``CamelCase`` names."""


def text_files(root):
    """Paths of the repository's text files relative to ``root``; all files below it outside a git checkout."""
    if (root / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=root, capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
    else:
        listed = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    hidden = [name for name in listed if any(part.startswith(".") for part in Path(name).parts[:-1])]
    return sorted(
        name
        for name in set(listed) - set(EXEMPT) - set(hidden)
        if (name.endswith(SUFFIXES) or name == "Makefile") and (root / name).is_file()
    )


def retired_words(root):
    """Every retired word in the text files below ``root``, as ``file:line: word (words to use)``."""
    found = []
    for name in text_files(root):
        lines = [name, *(root / name).read_text(encoding="utf-8").splitlines()]
        for number, line in enumerate(lines):
            words = [word.lower() for word in WORD.findall(line)]
            found += [f"{name}:{number}: {word} ({RETIRED[word]})" for word in words if word in RETIRED]
    return found


def test_no_retired_words():
    assert retired_words(ROOT) == []


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("module.py", "x = 1\nbegun_x = 2\n", "module.py:2: begun"),
        ("module.py", "class LandingGain: ...\n", "module.py:1: landing"),
        ("module.py", '"""The teacher\'s ways."""\n', "module.py:1: ways"),
        ("module.py", "x = 1  # the time told\n", "module.py:1: told"),
        ("docs/page.md", "# Title\n\nSiblings share their noise.\n", "docs/page.md:3: siblings"),
        ("companions.py", "", "companions.py:0: companions"),
    ],
)
def test_planted_words_are_found(tmp_path, name, text, place):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    (found,) = retired_words(tmp_path)
    assert found.startswith(place)


def test_other_words_and_exempt_files_are_not_found(tmp_path):
    (tmp_path / "module.py").write_text("always_x = 'unwanted'  # retold\n")
    (tmp_path / "CHANGELOG.md").write_text("begun\n")
    assert retired_words(tmp_path) == []
