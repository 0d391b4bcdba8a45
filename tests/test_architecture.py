"""The shape of the code: rooms are imported one way, no files import each other in a circle, the package is light."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import redif_env
from redif_env import Student
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.settings import MDPSettings, build_mdp

ROOT = Path(__file__).parent.parent
PACKAGE = "redif_env"
ROOMS = (
    "storage", "diffusion", "measures", "teachers", "fitted", "mdp", "rewards", "envs", "students", "judging",
    "showing", "training", "sb3", "torchrl", "rllib", "cli",
)  # fmt: skip
"""From the ground up: a room imports from itself and from those before it."""
PROGRAMS = ("agents", "experiments", "tests")
ALLOWED = {
    "stable_baselines3": ("sb3",),
    "tensorboard": ("sb3",),
    "torchrl": ("torchrl",),
    "tensordict": ("torchrl",),
    "ray": ("rllib",),
    "gymnasium": ("envs", "sb3", "rllib"),
    "rich": ("judging/tables.py", "training", "cli.py"),
    "tyro": ("training", "cli.py"),
    # Where the classes are diffusers' own by base class; elsewhere it is imported when it is used.
    "diffusers": ("teachers/mixture_model.py", "students/export", "judging/baselines.py", "cli.py"),
    "sklearn": (),
    "matplotlib": (),
}
"""Where a library may be imported as soon as the file is."""
NO_RL = ("gymnasium", "stable_baselines3", "tensorboard")
"""What nobody needs who takes a student home."""


def imported(path, lazily):
    """Modules that a file imports: when it is imported itself, or ``lazily``, inside functions too. Not types."""
    return imported_by(path.read_text(), lazily)


@cache
def imported_by(text, lazily):
    names = []

    def visit(node):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.extend([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        types_alone = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if types_alone or (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazily):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(text))
    return tuple(names)


def modules(root):
    """The library's files under ``root``, by the names they are imported by; the package's own file left out."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del found[PACKAGE]
    return found


def dependencies(root):
    """Which modules of the library each module imports, at any time."""
    known = modules(root)
    return {
        name: {target for target in imported(path, lazily=True) if target in known and target != name}
        for name, path in known.items()
    }


def room_of(module):
    return module.split(".")[1]


def against_the_order(root):
    """Imports from a room that comes later."""
    return [
        f"{name} imports {target}"
        for name, targets in dependencies(root).items()
        for target in sorted(targets)
        if ROOMS.index(room_of(target)) > ROOMS.index(room_of(name))
    ]


def circle(root):
    """The files of a circle of imports, if there is one."""
    # A package's own file gathers names; to import it is to import what it gathers.
    try:
        TopologicalSorter(dependencies(root)).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_rooms_are_imported_one_way():
    assert against_the_order(ROOT) == []


def test_no_files_import_each_other():
    assert circle(ROOT) == []


def test_every_file_stands_in_a_room():
    found = {
        path.stem for path in (ROOT / PACKAGE).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert found == {*ROOMS, "__init__"}


def test_every_room_has_a_docstring():
    for name, path in modules(ROOT).items():
        assert ast.get_docstring(ast.parse(path.read_text())), name


@pytest.fixture
def house(tmp_path):
    """A small library of the same rooms, in which all is well."""
    for room in ROOMS:
        (tmp_path / PACKAGE / room).mkdir(parents=True)
        (tmp_path / PACKAGE / room / "__init__.py").touch()
    (tmp_path / PACKAGE / "__init__.py").touch()
    (tmp_path / PACKAGE / "mdp" / "process.py").write_text("from redif_env.diffusion import types\n")
    (tmp_path / PACKAGE / "diffusion" / "types.py").write_text("import torch\n")
    assert against_the_order(tmp_path) == []
    assert circle(tmp_path) == []
    return tmp_path


PLANTED = ("import redif_env.mdp.process\n", "def late():\n    from redif_env.mdp.process import DenoisingMDP\n")


@pytest.mark.parametrize("text", PLANTED)
def test_a_planted_import_against_the_order_is_found(house, text):
    (house / PACKAGE / "diffusion" / "grids.py").write_text(text)
    assert against_the_order(house) == ["redif_env.diffusion.grids imports redif_env.mdp.process"]


@pytest.mark.parametrize("text", ["from redif_env.mdp import process\n", PLANTED[1]])
def test_a_planted_circle_is_found(house, text):
    (house / PACKAGE / "mdp" / "actions.py").write_text(text)
    assert circle(house) == []
    (house / PACKAGE / "mdp" / "process.py").write_text("from redif_env.mdp.actions import ActionMap\n")
    assert set(circle(house)) == {"redif_env.mdp.actions", "redif_env.mdp.process"}


def test_types_alone_are_no_import(house):
    text = "if TYPE_CHECKING:\n    from redif_env.mdp.process import DenoisingMDP\n"
    (house / PACKAGE / "diffusion" / "grids.py").write_text(text)
    assert against_the_order(house) == []


@pytest.mark.parametrize("path", sorted((ROOT / PACKAGE).rglob("*.py")), ids=lambda path: path.stem)
def test_libraries_are_imported_where_they_belong(path):
    place = path.relative_to(ROOT / PACKAGE).as_posix()
    for name in imported(path, lazily=False):
        library = name.split(".")[0]
        assert library not in PROGRAMS
        assert place.startswith(ALLOWED.get(library, ("",))), f"{place} imports {library}"


def test_agents_do_not_import_experiments():
    for path in (ROOT / "agents").glob("*.py"):
        assert not [name for name in imported(path, lazily=True) if name.startswith("experiments")]


def loaded(statement, names):
    """Which of ``names`` a fresh interpreter has loaded after ``statement``."""
    script = f"import sys\n{statement}\nprint([name for name in {names!r} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return ast.literal_eval(output.stdout.splitlines()[-1])


def test_importing_the_package_is_light():
    """And the environment is registered whatever is imported first."""
    light = f"heavy = [name for name in {('torch', 'diffusers', *NO_RL)} if name in sys.modules]"
    registered = "import gymnasium\nassert not heavy and 'ReDiF-v0' in gymnasium.registry"
    assert loaded(f"import redif_env\n{light}\n{registered}", NO_RL) == ["gymnasium"]
    assert loaded("import gymnasium, redif_env\nassert 'ReDiF-v0' in gymnasium.registry", NO_RL) == ["gymnasium"]


def test_a_student_needs_no_rl_library(tmp_path):
    """To be loaded, to make samples, to be exported; nor does the command."""
    mdp = build_mdp(MDPSettings(teacher="gaussian-ring", num_steps=3, solver="dpm++3m", grid="time^1.5"))
    Student(mdp, Policy(PolicyConfig((mdp.observation_size, 16, mdp.action_size)))).save_pretrained(tmp_path / "s")
    sampling = f"assert Student.from_pretrained({str(tmp_path / 's')!r})(num_samples=2).shape == (2, 2)"
    statement = f"import redif_env.students.export, redif_env.cli\nfrom redif_env import Student\n{sampling}"
    assert loaded(statement, NO_RL) == []


def test_public_names():
    for name in redif_env.__all__:
        assert getattr(redif_env, name).__name__ == name
        assert getattr(redif_env, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = redif_env.Nonsense
