"""Images from files of every kind that is read, and teachers trained on them."""

import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from experiments import train_teacher
from redif_env import ReDiFEnv, Teacher
from redif_env.storage.data import load_images

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 3


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "grey.npz"
    np.savez(path, x_train=PIXELS, y_train=LABELS, x_test=PIXELS[:2], y_test=LABELS[:2])
    return path


def test_npz_files_are_read(npz):
    data = load_images(str(npz))
    assert data.images.shape == (12, 1, 8, 8)
    assert torch.equal(((data.images + 1) * 127.5).round().to(torch.uint8)[:, 0], torch.from_numpy(PIXELS))
    assert data.labels.tolist() == LABELS.tolist()
    assert data.num_classes == 3
    assert len(load_images(str(npz), "test")) == 2


def test_jpeg_bytes_are_decoded(tmp_path):
    """Flat pictures survive JPEG; image i is the bytes from offset i to the next."""
    files, offsets = [], [0]
    for colour in ((255, 0, 0), (0, 0, 255)):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), colour).save(file, format="JPEG")
        files.append(np.frombuffer(file.getvalue(), np.uint8))
        offsets.append(offsets[-1] + len(files[-1]))
    path = tmp_path / "colour.npz"
    np.savez(path, jpeg_train=np.concatenate(files), offset_train=np.array(offsets), y_train=np.array([4, 1]))
    data = load_images(str(path))
    expected = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]])
    torch.testing.assert_close(data.images.mean(dim=(2, 3)), expected, rtol=0, atol=0.03)
    assert data.labels.tolist() == [4, 1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_folders_of_images_are_read(tmp_path, monkeypatch):
    """Subfolders are labels, in alphabetical order; images are cropped in the middle and averaged down."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for label, shade in (("dark", 10), ("light", 250)):
        folder = tmp_path / "pictures" / "train" / label
        folder.mkdir(parents=True)
        for index in range(2):
            Image.new("L", (20 + 4 * index, 12), shade).save(folder / f"{index}.png")
    data = load_images(str(tmp_path / "pictures"), size=6)
    assert data.images.shape == (4, 1, 6, 6)
    assert data.labels.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(data.images[:, 0, 0, 0], torch.tensor([10, 10, 250, 250]) / 127.5 - 1)
    with pytest.raises(ValueError, match="several shapes: give a size"):
        load_images(str(tmp_path / "pictures"))


def test_bad_data_are_refused(tmp_path, npz):
    with pytest.raises(ValueError, match=r"cannot be read .* it needs x_valid"):
        load_images(str(npz), "valid")
    (tmp_path / "torn.npz").write_bytes(b"torn")
    with pytest.raises(ValueError, match="cannot be read"):
        load_images(str(tmp_path / "torn.npz"))
    np.savez(tmp_path / "pickled.npz", x_train=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="cannot be read"):
        load_images(str(tmp_path / "pickled.npz"))
    np.savez(tmp_path / "floats.npz", x_train=PIXELS / 255)
    with pytest.raises(ValueError, match="holds float64 images"):
        load_images(str(tmp_path / "floats.npz"))


@pytest.mark.parametrize("kind", list(train_teacher.Kind))
def test_a_teacher_is_trained_and_noted(npz, tmp_path, kind, monkeypatch):
    """A few steps of each kind: the folder is a teacher of that kind, conditional, guided, with note and curve."""
    typed = ["--data", str(npz), "--kind", kind.value, "--conditional", "--channels", "16", "16", "--batch-size", "4",
             "--steps", "3", "--out", str(tmp_path / "teacher")]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["train_teacher", *typed])
    train_teacher.main(tyro.cli(train_teacher.Args, args=typed))
    teacher = Teacher.from_pretrained(tmp_path / "teacher", null_label=3, guidance_scale=2.0)
    expected = {"epsilon": "epsilon", "v": "v_prediction", "flow": "flow_prediction"}[kind.value]
    assert teacher.prediction_type.value == expected
    assert teacher.conditions.names == ("0", "1", "2")
    facts = json.loads((tmp_path / "teacher" / "training.json").read_text())
    assert len(facts["curve"]) == 3
    note = (tmp_path / "teacher" / "README.md").read_text()
    assert f"--kind {kind.value}" in note
    assert str(Path(npz).parent) not in note
    assert "Frechet distance (features digits-evaluation)" in note


def test_training_learns():
    """Two shades of flat 8x8 images: loss falls, and samples of each label have its shade."""
    images = torch.tensor([-0.6, 0.6]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    data = train_teacher.ImageSet(images, torch.tensor([0, 1]))
    args = train_teacher.Args(
        kind=train_teacher.Kind.FLOW, conditional=True, channels=(16, 16), batch_size=32, steps=120
    )
    torch.manual_seed(0)
    network = train_teacher.build_network(args, data)
    objective, _ = train_teacher.objective_of(args.kind)
    curve = train_teacher.train(args, network, objective, data)
    assert curve[-1] < 0.5 * curve[0]
    network.eval()
    generator = torch.Generator().manual_seed(0)
    x, sigmas = torch.randn(16, 1, 8, 8, generator=generator), torch.linspace(1, 0, 9)
    labels = torch.arange(2).repeat(8)
    with torch.no_grad():
        for sigma, following in pairwise(sigmas):
            x = x + (following - sigma) * network(x, sigma.expand(16) * 1000, class_labels=labels).sample
    means = x.mean(dim=(1, 2, 3))
    assert means[labels == 0].mean() < -0.2
    assert means[labels == 1].mean() > 0.2


@pytest.mark.parametrize("name", ["mnist", "digits-classes"])
def test_built_in_conditional_teachers_start(name):
    """With weights in the package, guided or not; one speaks flow, one v, beside digits, which speaks noise."""
    env = ReDiFEnv(teacher=name, conditions=[3, 5], guidance_scale=2.0, num_steps=2, reference_size=2, teacher_steps=2)
    env.reset(seed=0)
    _, info = env.reset(seed=1)
    assert info["nfe"] == 2
    kinds = {"mnist": "flow_prediction", "digits-classes": "v_prediction"}
    assert env.batch.mdp.teacher.prediction_type.value == kinds[name]
