"""What the README and the documentation tell users to type, typed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["README.md", "docs/rewards.md", "docs/export.md"])
def test_examples_run(page, tmp_path, monkeypatch):
    """Every Python block, from the top in one session; those that need a long training run before them are left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    run = [block for block in blocks if "runs/" not in block]
    assert len(run) >= 4
    for block in run:
        exec(compile(block.replace("20_000", "256").replace("2_000", "256"), page, "exec"), names)
    for name in {"env", "envs"} & names.keys():
        environment = names[name]
        environment.reset()
        environment.step(environment.action_space.sample() if name == "envs" else sample_for(environment))


def sample_for(environment):
    """An action for the last ``env``: a single environment's, or one a sub-environment for Stable-Baselines3."""
    action = environment.action_space.sample()
    return action if not hasattr(environment, "num_envs") else [action] * environment.num_envs
