"""Images from files of every kind that is read."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from redif_env import ReDiFEnv
from redif_env.storage.data import load_images
from tests.pictures import LABELS, PIXELS


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


def archive(path, files):
    """A tar.gz archive of files by name."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def test_cifar_s_own_archives_are_read(tmp_path):
    """Rows of one label and 3 x 32 x 32 values, colours apart; CIFAR-100 has a coarse label before the fine one."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    rows = [bytes([label]) + image.tobytes() for label, image in zip((7, 2, 5), pixels, strict=True)]
    ten = archive(
        tmp_path / "cifar-10-binary.tar.gz",
        {
            "cifar-10-batches-bin/data_batch_2.bin": rows[1],
            "cifar-10-batches-bin/data_batch_1.bin": rows[0],
            "cifar-10-batches-bin/test_batch.bin": rows[2],
            "cifar-10-batches-bin/readme.html": b"",
        },
    )
    data = load_images(ten)
    assert data.labels.tolist() == [7, 2]
    assert torch.equal(((data.images + 1) * 127.5).round().to(torch.uint8), torch.from_numpy(pixels[:2]))
    assert load_images(ten, "test").labels.tolist() == [5]
    hundred = archive(tmp_path / "cifar-100-binary.tar.gz", {"cifar-100-binary/test.bin": bytes([3]) + rows[0]})
    assert load_images(hundred, "test").labels.tolist() == [7]


def test_other_archives_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the python version is pickled"):
        load_images(archive(tmp_path / "cifar-10-python.tar.gz", {"cifar-10-batches-py/data_batch_1": b"x"}))
    with pytest.raises(ValueError, match="no multiple of 3073"):
        load_images(archive(tmp_path / "torn.tar.gz", {"data_batch_1.bin": b"x"}))
    (tmp_path / "no.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be read"):
        load_images(str(tmp_path / "no.tar.gz"))


@pytest.mark.parametrize("name", ["mnist", "digits-classes"])
def test_built_in_conditional_teachers_start(name):
    """With weights in the package, guided or not; one speaks flow, one v, beside digits, which speaks noise."""
    env = ReDiFEnv(teacher=name, conditions=[3, 5], guidance_scale=2.0, num_steps=2, reference_size=2, teacher_steps=2)
    env.reset(seed=0)
    _, info = env.reset(seed=1)
    assert info["nfe"] == 2
    kinds = {"mnist": "flow_prediction", "digits-classes": "v_prediction"}
    assert env.batch.mdp.teacher.prediction_type.value == kinds[name]
