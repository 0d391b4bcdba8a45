"""The shape of the code: imports point one way, the package is light, the names are there."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import redif_env

ROOT = Path(__file__).parent.parent
ORDER = [
    "types", "schedules", "predictions", "grids", "solvers", "files", "mixtures", "noise_schedulers", "mixture_model",
    "conditions", "networks", "pruning", "adapters", "companions", "pipelines", "teachers", "cache", "references",
    "regression", "starts", "linear_solver", "bands", "actions", "observations", "mdp", "sensitivities", "cloning",
    "distances", "kernels", "features", "refinement", "rewards", "rendering", "settings", "spaces", "siblings", "draws",
    "envs", "wrappers", "policies", "sampling", "records", "export", "students", "checkpoints", "data", "metrics",
    "baselines", "evaluation", "tables", "cli", "sb3",
]  # fmt: skip
PACKAGES = ("export", "sb3")
NO_RL = ("gymnasium", "stable_baselines3", "tensorboard")
"""What nobody needs who takes a student home."""


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
        if first == "diffusers":  # where the classes are diffusers' own by base class
            assert own in ("mixture_model", "export", "baselines", "cli")
        if first in ("tyro", "rich"):
            assert own in ("tables", "cli")
        assert first not in ("sklearn", "matplotlib")
        if first == "redif_env" and own not in ("__init__", *PACKAGES):
            assert ORDER.index(rest[0]) < ORDER.index(own), f"{path.name} imports {name}"
        if first == "redif_env" and own in PACKAGES:
            assert ORDER.index(rest[0]) <= ORDER.index(own), f"{path.name} imports {name}"


def test_every_file_is_in_the_reading_order():
    found = {path.stem for path in (ROOT / "redif_env").glob("*.py")} | set(PACKAGES)
    assert found == {*ORDER, "__init__"}


def test_agents_do_not_import_experiments():
    for path in (ROOT / "agents").glob("*.py"):
        assert not [name for name in imported(path) if name.startswith("experiments")]


def loaded(statement, names):
    """Which of ``names`` a fresh interpreter has loaded after ``statement``."""
    script = f"import sys\n{statement}\nprint([name for name in {names!r} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return ast.literal_eval(output.stdout.splitlines()[-1])


def test_importing_the_package_is_light():
    assert loaded("import redif_env", ("torch", "diffusers", *NO_RL)) == []


@pytest.mark.parametrize(
    "statement", ["from redif_env import Student", "import redif_env.students.export, redif_env.cli"]
)
def test_a_student_needs_no_rl_library(statement):
    assert loaded(statement, NO_RL) == []


@pytest.mark.parametrize("order", ["import gymnasium, redif_env", "import redif_env, gymnasium"])
def test_the_environment_is_registered_whatever_is_imported_first(order):
    assert loaded(f"{order}\nassert 'ReDiF-v0' in gymnasium.registry", ("gymnasium",)) == ["gymnasium"]


def test_public_names():
    for name in redif_env.__all__:
        assert getattr(redif_env, name).__name__ == name
        assert getattr(redif_env, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = redif_env.Nonsense
