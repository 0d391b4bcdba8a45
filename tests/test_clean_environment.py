"""The wheel alone, with its core dependencies, in an environment of its own: what a practitioner has."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from redif_env import Student
from redif_env.mdp.policies import Policy, PolicyConfig
from redif_env.mdp.settings import MDPSettings, build_mdp

ROOT = Path(__file__).parent.parent
SCRIPT = """
import sys
from importlib.util import find_spec
from redif_env import Student
from redif_env.students.export import ReDiFPipeline
assert not [name for name in ("stable_baselines3", "tensorboard", "sklearn", "matplotlib") if find_spec(name)]
noise = __import__("torch").randn(2, 1, 8, 8)
ours = Student.from_pretrained(sys.argv[1])(noise=noise)
assert ours.equal(ReDiFPipeline.from_pretrained(sys.argv[1])(latents=noise, output_type="latent").images)
assert "gymnasium" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_s_core_dependencies_are_enough(tmp_path):
    """Built, installed with the tested versions, used: by Python and by the command."""
    mdp = build_mdp(MDPSettings(teacher="digits", num_steps=4, solver="dpm++3m", grid="time^1.5"))
    torch.manual_seed(0)
    student = Student(mdp, Policy(PolicyConfig((mdp.observation_size, 64, 64, mdp.action_size))))
    student.save_pretrained(tmp_path / "student")

    def run(*command, cwd=tmp_path):
        subprocess.run([str(part) for part in command], cwd=cwd, check=True)

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "wheels", ROOT)
    venv.create(tmp_path / "clean", with_pip=True)
    (wheel,) = (tmp_path / "wheels").iterdir()
    bin_folder = tmp_path / "clean" / "bin"
    run(bin_folder / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)

    run(bin_folder / "python", "-c", SCRIPT, tmp_path / "student")
    run(bin_folder / "redif", "info", tmp_path / "student")
    run(bin_folder / "redif", "sample", tmp_path / "student", "-n", "3", "--out", "samples.safetensors")
    expected = student(3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load_file(tmp_path / "samples.safetensors")["samples"], expected)
