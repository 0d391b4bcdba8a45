"""The blocks of docs/agents.md: each library trains on the environment, and its student is what it trained."""

import re
from pathlib import Path

import pytest

# Other libraries warn of their own changes to come, and of bounds.
pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- tested: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.parametrize("library", BLOCKS)
def test_a_block_of_the_page_trains_and_exports(library, request):
    for name in {"CleanRL": [], "own": []}.get(library, [library]):
        pytest.importorskip(name, reason="make test-ray")
    if library == "ray":
        request.getfixturevalue("patient_ray")
    space = {}
    exec(compile(BLOCKS[library], f"docs/agents.md, {library}", "exec"), space)
    assert space["student"](num_samples=2).shape == (2, 2)


def test_every_library_has_a_block():
    assert {"stable_baselines3", "sb3_contrib", "CleanRL", "torchrl", "ray", "skrl", "tianshou"} <= set(BLOCKS)
