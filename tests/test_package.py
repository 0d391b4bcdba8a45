"""What is published: the wheel and the source distribution, whole and small."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIMIT = 60 * 2**20
"""Bytes of a file on the package index are 100 MiB at most."""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The wheel and the source distribution, built from what git tracks."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(bytes.decode, names)):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).hardlink_to(ROOT / name)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    subprocess.run([str(part) for part in build], check=True, capture_output=True)
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, archive


@pytest.mark.slow
def test_the_index_takes_them(distributions):
    """Metadata is complete, and the README can be shown."""
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions)]
    process = subprocess.run(check, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.count("PASSED") == 2


@pytest.mark.slow
def test_they_hold_the_library_alone(distributions):
    """Types and assets are there; tests, docs and programs are not in the wheel, and no file is large."""
    wheel, archive = distributions
    assert wheel.stat().st_size < LIMIT
    assert archive.stat().st_size < LIMIT
    names = zipfile.ZipFile(wheel).namelist()
    assert "redif_env/py.typed" in names
    assert any(name.startswith("redif_env/assets/digits/") for name in names)
    assert any(name.endswith("redif_env/showing/page.html") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"redif_env"}
    with tarfile.open(archive) as packed:
        packed_names = [member.name.split("/", 1)[-1] for member in packed]
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"} <= set(packed_names)
    assert not [name for name in packed_names if name.startswith(("docs/", "tests/", "experiments/", "agents/"))]
