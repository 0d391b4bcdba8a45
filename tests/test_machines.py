"""Every machine that users have: other systems, other devices, other versions of what we depend on."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import PurePosixPath
from types import SimpleNamespace

import gymnasium as gym
import pytest
import torch
import yaml
from packaging.requirements import Requirement

import redif_env  # noqa: F401 -- registers the environment
from experiments import compare
from experiments.stored import file_name
from redif_env.diffusion.grids import GRIDS
from redif_env.mdp.settings import parse_device
from redif_env.sb3.checkpoints import accelerator_random_states, set_accelerator_random_states
from tests.oldest import ROOT, bounds, pinned, requirements

OURS = ("redif_env", "agents", "experiments")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TINY = ["--teacher", "gaussian-ring", "--num-steps", "2", "--network-calls", "384"]
COMMANDS = [
    ["agents.ppo", *TINY, "--dry-run"],
    ["agents.ppo", *TINY, "--num-envs", "16", "--group-size", "4", "--held-out-size", "32", "--held-out-every", "2",
     "--grid", "time^1.5@20", "--test-size", "64", "--reference-size", "64", "--device", "auto", "--out", "run"],
    ["redif", "info", "run/student"],
    ["redif", "sample", "run/student", "--device", "auto", "--out", "samples.png"],
    ["experiments.compare", *TINY[:2], "--nfe", "2", "--methods", "dpm++3m", "ddim, uniform time", "--seeds", "1",
     "--jobs", "1", "--reference-size", "64", "--test-size", "64", "--choosing-size", "64", "--held-out-size", "64",
     "--out", "compare"],
]  # fmt: skip


def pretend(root, commands, folder):
    """Run commands of the programs under ``root`` in ``folder``, on a pretended Windows."""
    own = {
        "PYTHONPATH": str(root),
        "PYTHONIOENCODING": "cp1252",
        "USERNAME": "user",
        "REDIF_CACHE": str(folder / "cache"),
    }
    options = ["-X", "warn_default_encoding", "-W", "ignore::EncodingWarning"]
    return subprocess.run(
        [sys.executable, *options, root / "tests" / "pretended_windows.py"],
        input=json.dumps(commands),
        env={**os.environ, **own},
        cwd=folder,
        capture_output=True,
        encoding="cp1252",
        check=False,
    )


@pytest.fixture(scope="module")
def pretended(tmp_path_factory):
    """The folder in which the programs ran, and what they printed."""
    folder = tmp_path_factory.mktemp("windows")
    process = pretend(ROOT, COMMANDS, folder)
    assert process.returncode == 0, process.stderr[-4000:]
    return folder, process.stdout


def test_programs_need_no_posix(pretended):
    """All files are imported; training, a plan, an experiment, and a student's way home."""
    folder, printed = pretended
    assert (folder / "run" / "result.json").exists()
    assert (folder / "compare" / "rows.json").exists()
    assert (folder / "samples.png").exists()
    assert printed.count(f"device: {parse_device('auto')}") == 2
    assert b"\r\n" in (folder / "run" / "config.json").read_bytes(), "control: line ends were others"


@pytest.mark.parametrize(
    "planted",
    [
        "import resource",
        "from fcntl import flock",
        "import os; os.fork",
        "open('x', 'w')",
        "import signal; signal.SIGKILL",
    ],
)
def test_what_is_not_there_on_windows_is_found(planted, tmp_path):
    """The control: a planted use of POSIX ends the pretended run."""
    for package in ("agents", "tests"):
        (tmp_path / package).mkdir()
    (tmp_path / "agents" / "planted.py").write_text(planted)
    shutil.copy(ROOT / "tests" / "pretended_windows.py", tmp_path / "tests")
    process = pretend(tmp_path, [["agents.planted"]], tmp_path)
    assert process.returncode == 1
    assert re.search("not there on Windows|has no attribute|EncodingWarning", process.stderr)


RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d)(\..*)?", re.IGNORECASE)


def illegal(paths):
    """Relative paths that some system refuses, or takes for another of them."""
    paths = {part.as_posix() for path in paths for part in (PurePosixPath(path), *PurePosixPath(path).parents)} - {"."}
    alike = Counter(path.casefold() for path in paths)
    return sorted(
        path
        for path in paths
        if alike[path.casefold()] > 1
        or RESERVED.fullmatch(PurePosixPath(path).name)
        or re.search(r'[<>:"\\|?*\x00-\x1f]|[. ]$', PurePosixPath(path).name)
    )


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["time^1.5@20.json", "a/b (x2)+c.png", ".writable", "console"], []),
        (["a:b/c", "d?"], ["a:b", "d?"]),
        (["nul", "x/Aux.txt", "dot.", "space /x"], ["dot.", "nul", "space ", "x/Aux.txt"]),
        (["Run/a", "run/b", "a/X.png", "a/x.png"], ["Run", "a/X.png", "a/x.png", "run"]),
    ],
)
def test_illegal_names_are_found(paths, found):
    assert illegal(paths) == found


def test_all_that_is_written_has_names_that_every_system_takes(pretended):
    """Run, checkpoints, student, TensorBoard, figures, cache."""
    folder, _ = pretended
    written = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    assert {"run/tensorboard", "run/checkpoints", "cache", "compare/quality-gaussian-ring.png"} <= set(written)
    assert illegal(written) == []


def test_tables_and_their_rows_are_files_with_legal_names():
    """Grids, methods, and teachers by hub id or path."""
    cells = compare.cells_of(compare.Args(), compare.FIELD)
    names = [*(f"{cell.name}.json" for cell in cells), *map(file_name, GRIDS)]
    assert illegal(names) == []
    assert len({*names}) == len(names)
    assert illegal([file_name('C:\\models/my: "net"|<x>?*, (x2)')]) == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_repository_has_legal_names_and_keeps_its_bytes():
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout

    tracked = git("ls-files").splitlines()
    assert illegal(tracked) == []
    assets = [name for name in tracked if name.endswith((".safetensors", ".png", ".npz"))]
    assert len(assets) > 10
    kept = git("check-attr", "text", "--", *assets).splitlines()
    assert {line.rsplit(": ", 1)[1] for line in kept} == {"unset"}
    lines = git("check-attr", "eol", "--", "redif_env/assets/mnist/training.json", "README.md", "Makefile").splitlines()
    assert {line.rsplit(": ", 1)[1] for line in lines} == {"lf"}


def test_auto_is_the_accelerator_or_the_cpu(monkeypatch):
    """Whatever torch finds; where it finds none, or one that it cannot use, the CPU."""
    for found, usable, chosen in (
        (None, False, "cpu"),
        ("mps", False, "cpu"),
        ("mps", True, "mps"),
        ("xpu", True, "xpu"),
    ):
        device = None if found is None else torch.device(found)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda device=device: device)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda usable=usable: usable)
        assert parse_device("auto") == torch.device(chosen)
    with pytest.raises(ValueError, match="device='cuda:99' cannot be used here"):
        parse_device("cuda:99")


def test_the_environment_takes_auto():
    env = gym.make("ReDiF-v0", teacher="gaussian-ring", reference_size=4, teacher_steps=4, device="auto")
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)


def test_random_states_of_every_accelerator_go_into_a_checkpoint(monkeypatch):
    """Of all its devices; left alone where there are more or fewer of them."""
    states = [torch.tensor([1]), torch.tensor([2])]
    module = SimpleNamespace(
        get_rng_state=states.__getitem__, set_rng_state=lambda state, i: states.__setitem__(i, state)
    )
    monkeypatch.setattr(torch, "get_device_module", lambda: module)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    stored = accelerator_random_states()
    states[:] = [torch.tensor([8]), torch.tensor([9])]
    set_accelerator_random_states(stored[:1])
    assert [state.item() for state in states] == [8, 9]
    set_accelerator_random_states(stored)
    assert [state.item() for state in states] == [1, 2]


def devices_named(source):
    """Names of devices in code: ``torch.cuda``, ``"mps"``."""
    names = ("cuda", "mps", "xpu")
    nodes = list(ast.walk(ast.parse(source)))
    constants = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    attributes = [node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch"]
    return [name for name in (*constants, *attributes) if name.split(":")[0] in names]


def test_no_device_is_asked_for_by_name():
    """What is done for one accelerator is done for all."""
    planted = 'if x.device.type == "cuda": torch.mps.synchronize(); y.to("xpu:0"); torch.accelerator.synchronize()'
    assert sorted(devices_named(planted)) == ["cuda", "mps", "xpu:0"]
    for path in (path for package in OURS for path in (ROOT / package).rglob("*.py")):
        assert devices_named(path.read_text(encoding="utf-8")) == [], path


def test_constraints_satisfy_what_is_required():
    """Every package that pyproject.toml names has a lower bound, is pinned, and the pin is admitted."""
    versions = {name.lower().replace("_", "-"): version for name, version in pinned().items()}
    assert len(bounds()) == len({Requirement(line).name for line in requirements()}) > 20
    for line in requirements():
        requirement = Requirement(line)
        assert requirement.specifier.contains(versions[requirement.name]), line


def test_workflows_are_valid(tmp_path):
    """By the schema that check-jsonschema brings; a misspelt key is found."""
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text(encoding="utf-8").replace("steps:", "stepps:"), encoding="utf-8")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", "-vv"]
    command += ["--output-format", "json", *WORKFLOWS, broken]
    process = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    found = json.loads(process.stdout)
    assert sorted(found["successes"]) == sorted(map(str, WORKFLOWS))
    assert {error["filename"] for error in found["errors"]} == {str(broken)}
    assert found["parse_errors"] == []


def test_workflows_run_what_the_quickstart_and_the_makefile_say():
    """No step has a command of its own; every system and Python is there."""
    loaded = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in WORKFLOWS]
    jobs = {name: job for workflow in loaded for name, job in workflow["jobs"].items()}
    quickstart = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8").splitlines()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for job in jobs.values():
        makes = [f"make {target}" for target in job.get("strategy", {}).get("matrix", {}).get("target", [])]
        for line in (step["run"] for step in job["steps"] if "run" in step):
            for command in makes if line == "make ${{ matrix.target }}" else [line]:
                made = command.startswith("make ") and command.removeprefix("make ") in targets
                assert made or command in quickstart, command
    matrix = jobs["every-system"]["strategy"]["matrix"]
    assert [name.split("-")[0] for name in matrix["os"]] == ["ubuntu", "macos", "windows"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
