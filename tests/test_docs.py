"""What the README and the documentation tell users to type, typed; and what they link to, there."""

import json
import re
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest
import tyro

import redif_env
from redif_env import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {
    "agents.md": "by make test-ray: tests/agents/test_other_libraries.py",
    "pipelines.md": "on pipelines that are built there: tests/teachers",
}
"""Pages whose Python blocks are run by other tests."""
SLOW = {"networks.md"}
LEFT_OUT = re.compile(r"runs/|sys\.argv")
"""In blocks that need a long training run, or are whole programs, which tests/students/test_own_parts.py runs."""
SHORTER = {
    "20_000": "256",
    "2_000": "256",
    "1_000": "256",
    "reference_size=256": "reference_size=16",
    "make_vec_env(256": "make_vec_env(64",
    "batch_size=256": "batch_size=64",
    "(512, action": "(64, action",
    "(64, num_steps=4, group": '(64, teacher="path/or/hub-id", reference_size=16, teacher_steps=8, num_steps=2, group',
    "num_inference_steps=4": "num_inference_steps=2",
    "torch.randn(4, 1, 8, 8)": "torch.randn(4, 3, 8, 8)",
    "batch_size=512": "batch_size=64",
    '"path": 4.0, ': "",
}
"""Numbers and teachers of examples that would take long, and what the tests put in their place."""


FENCE = re.compile(r"^ *```(\S*)[^\n]*\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)


def fenced(text, *languages):
    """The blocks of code in a page that are in one of ``languages``."""
    return [block for language, block in FENCE.findall(text) if language in languages]


def with_blocks():
    for page in PAGES:
        blocks = [block for block in fenced(page.read_text(encoding="utf-8"), "python") if not LEFT_OUT.search(block)]
        if blocks and page.name not in ELSEWHERE:
            marks = [pytest.mark.slow] if page.name in SLOW else []
            yield pytest.param(page, blocks, id=page.name, marks=marks)


@pytest.mark.parametrize(("page", "blocks"), list(with_blocks()))
def test_examples_run(page, blocks, tmp_path, monkeypatch, pipeline_folder):
    """Every Python block, from the top in one session, but those of ``LEFT_OUT``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    shutil.copytree(pipeline_folder, tmp_path / "path" / "or" / "hub-id")
    session = ModuleType("session")
    monkeypatch.setitem(sys.modules, "session", session)  # what is defined there can be imported, as from a script
    names = vars(session)
    for block in blocks:
        for number, fewer in SHORTER.items():
            block = block.replace(number, fewer)
        exec(compile(block, page.name, "exec"), names)
    for name in {"env", "envs"} & names.keys():
        environment = names[name]
        environment.reset()
        environment.step(environment.action_space.sample() if name == "envs" else sample_for(environment))


def sample_for(environment):
    """An action for the last ``env``: a single environment's, or one a sub-environment for Stable-Baselines3."""
    action = environment.action_space.sample()
    return action if not hasattr(environment, "num_envs") else [action] * environment.num_envs


def test_the_environment_s_own_page_runs():
    (block,) = fenced(re.sub(r"^    ", "", redif_env.ReDiFEnv.__doc__, flags=re.MULTILINE), "python")
    names = {}
    exec(block, names)
    names["env"].reset(seed=0)


NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    """The site has the outputs; git has the source alone."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None]
    for cell in code:
        compile("".join(cell["source"]), path.name, "exec")


def commands():
    """Every complete command of our programs in a shell block, as its words."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in fenced(text, "bash", ""):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                line = line.strip()
                if line.startswith(("redif ", "python -m agents.", "python -m experiments.")) and "$" not in line:
                    yield pytest.param(shlex.split(line, comments=True), id=f"{page.name}: {line[:60]}")


def understood(words):
    """Parse a command without doing what it says; SystemExit if its program would not take it."""
    program, rest = (words[0], words[1:]) if words[0] == "redif" else (words[2], words[3:])
    if program == "redif":
        name, rest = rest[0], rest[1:]
        if name == "train":
            program = "redif_env.sb3.training.ppo"
        else:
            return tyro.cli(cli.COMMANDS[name], args=rest)
    module = import_module(program)
    if not hasattr(module, "Args"):
        return None if not rest else pytest.fail(f"{program} takes no settings")
    return tyro.cli(module.Args, args=rest)


@pytest.mark.parametrize("words", list(commands()))
def test_programs_take_the_commands_of_the_docs(words):
    understood(words)


def test_a_misspelt_option_is_found(capsys):
    """The control."""
    for words in (["redif", "sample", "student/", "--sed", "0"], ["python", "-m", "agents.ppo", "--num-stepz", "4"]):
        with pytest.raises(SystemExit):
            understood(words)
    capsys.readouterr()


LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page):
    """Links of a page to files or headings that are not there."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        there = (page.parent / file) if file else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert list(broken(page)) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title\n\n[a](#a-title) [b](#b) ![c](c.png) [d](page.md#a-title) [e](https://example.org)\n")
    assert list(broken(page)) == ["#b", "c.png"]


def test_the_readme_is_short():
    """It is read in two minutes; blocks fit on a screen."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text) < 6000
    assert [block.count("\n") <= 8 for block in fenced(text, "python")] == [True] * 3


def test_tables_of_the_results_are_their_rows():
    """The numbers of docs/results.md are those of the JSON files that it offers."""
    sections = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").split("\n## ")
    for name, count in {"cifar10": 6, "digits": 10, "mnist": 10}.items():
        data = json.loads((ROOT / "docs" / "data" / f"{name}.json").read_text(encoding="utf-8"))
        rows = data["rows"] + data.get("rows_of_15_minutes_a_fit", [])
        (section,) = (section for section in sections if section.lower().replace("-", "").startswith(name))
        found = set(re.findall(r"\d\.\d{3}", "".join(line for line in section.splitlines() if line.startswith("| "))))
        assert len(found) > count
        assert found <= {f"{row['fd_teacher']:.3f}" for row in rows}
