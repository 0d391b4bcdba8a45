"""The shape of the code: imports point one way, the package is light, the names are there."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import redif_env

ROOT = Path(__file__).parent.parent
ORDER = [
    "types", "schedules", "grids", "solvers", "files", "mixtures", "pipelines", "teachers", "bands", "actions",
    "observations", "mdp", "cache", "distances", "kernels", "features", "references", "rewards", "rendering",
    "settings", "draws", "envs", "wrappers", "policies", "students", "data", "metrics", "sb3",
]  # fmt: skip


def imported(path):
    """Modules that a file imports when it is imported itself: not inside functions, not for types alone."""
    names = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "redif_env").rglob("*.py")), ids=lambda path: path.stem)
def test_imports_point_one_way(path):
    """A file imports only from files above it in the reading order, and never from programs."""
    inside = path.relative_to(ROOT / "redif_env").parts
    own = inside[0].removesuffix(".py")
    for name in imported(path):
        first, *rest = name.split(".")
        assert first not in ("agents", "experiments", "tests")
        if first in ("stable_baselines3", "tensorboard"):
            assert own == "sb3"
        assert first not in ("diffusers", "sklearn", "tyro", "rich", "matplotlib")
        if first == "redif_env" and own not in ("__init__", "sb3"):
            assert ORDER.index(rest[0]) < ORDER.index(own), f"{path.name} imports {name}"


def test_every_file_is_in_the_reading_order():
    found = {path.stem for path in (ROOT / "redif_env").glob("*.py")} | {"sb3"}
    assert found == {*ORDER, "__init__"}


def test_agents_do_not_import_experiments():
    for path in (ROOT / "agents").glob("*.py"):
        assert not [name for name in imported(path) if name.startswith("experiments")]


def test_importing_the_package_is_light():
    script = (
        "import sys, redif_env\nprint([n for n in ('torch', 'diffusers', 'stable_baselines3') if n in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_public_names():
    for name in redif_env.__all__:
        assert getattr(redif_env, name).__name__ == name
        assert getattr(redif_env, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = redif_env.Nonsense
