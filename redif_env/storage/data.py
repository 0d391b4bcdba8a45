"""Real data for teachers and metrics, as tensors in [-1, 1]."""

from __future__ import annotations

import io
import tarfile
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

CIFAR_VALUES = 3 * 32 * 32
"""Bytes of one image of CIFAR."""


@dataclass(frozen=True)
class ImageSet:
    """Images ``(N, C, H, W)`` float32 in [-1, 1]; ``labels`` ``(N,)`` int64 from 0, None where there are none."""

    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of labels; 0 where there are none."""
        return 0 if self.labels is None else int(self.labels.max()) + 1


def load_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's copy of the UCI handwritten digits: images ``(1797, 1, 8, 8)`` in [-1, 1], labels ``(1797,)``.

    Raises:
        ImportError: if scikit-learn, part of the ``train`` extra, is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError("the digits data come with scikit-learn: pip install 'redif-env[train]'") from error
    bunch = load()
    images = torch.tensor(bunch.images, dtype=torch.float32, device="cpu")[:, None] / 8 - 1
    return images, torch.tensor(bunch.target, dtype=torch.int64, device="cpu")


def load_images(name_or_path: str, split: str = "train", size: int | None = None) -> ImageSet:
    """A set of images.

    Args:
        name_or_path: ``"digits"``; a ``.npz`` file with ``x_train`` ``(N, H, W)`` or ``(N, H, W, C)`` uint8 and
            ``y_train`` (Keras's ``mnist.npz`` is one), or with JPEG bytes (``jpeg_train``, of which image i is
            ``offset_train[i]`` to ``offset_train[i + 1]``, and ``y_train``); CIFAR's own archive in its binary version
            (``cifar-10-binary.tar.gz`` or ``cifar-100-binary.tar.gz``; the python version is pickled, which could run
            code); a folder of images, whose subfolders, if any, are the labels; or the hub id of an image data set.
        split: ``"train"`` or ``"test"``, or what the hub's data set calls its splits; folders have ``"train"`` alone
            unless their first level names splits, digits have one.
        size: side in pixels to which images of a folder or of the hub are cropped (middle) and resized; needed where
            they differ.

    Raises:
        ValueError: if there is no such set or split, or its images differ in shape.
        ImportError: if a package that reads it is not installed.
    """
    if name_or_path == "digits":
        return ImageSet(*load_digits())
    path = Path(name_or_path)
    if path.suffix == ".npz":
        return _read_npz(path, split)
    if path.name.endswith((".tar.gz", ".tgz")):
        return _read_cifar(path, split)
    return _read_dataset(name_or_path, split, size)


def _read_npz(path: Path, split: str) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if f"jpeg_{split}" in arrays:
                content, offsets = arrays[f"jpeg_{split}"], arrays[f"offset_{split}"]
                pixels = np.stack([_decode(content[a:b]) for a, b in pairwise(offsets)])
            else:
                pixels = arrays[f"x_{split}"]
            labels = arrays.get(f"y_{split}")
    except (OSError, KeyError, zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"data={str(path)!r} cannot be read ({error}): it needs x_{split} or jpeg_{split}") from error
    if pixels.dtype != np.uint8:
        raise ValueError(f"data={str(path)!r} holds {pixels.dtype} images: only uint8 ones can be used")
    return _image_set(pixels, labels)


def _read_cifar(path: Path, split: str) -> ImageSet:
    """CIFAR's binary version: rows of label bytes, of which the last is the class, and 3 x 32 x 32 values."""
    names = {"train": ("data_batch_", "train.bin"), "test": ("test_batch.bin", "test.bin")}
    if split not in names:
        raise ValueError(f"split={split!r} is unknown: data={str(path)!r} has 'train' and 'test'")
    try:
        with tarfile.open(path) as archive:
            members = sorted((item for item in archive if item.isfile()), key=lambda item: item.name)
            chosen = [item for item in members if Path(item.name).name.startswith(names[split])]
            files = [archive.extractfile(item) for item in chosen if item.name.endswith(".bin")]
            parts = [file.read() for file in files if file is not None]
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ValueError(f"data={str(path)!r} cannot be read ({error}): download it again") from error
    if not parts:
        raise ValueError(
            f"data={str(path)!r} holds no binary CIFAR batches: give cifar-10-binary.tar.gz (the python version is "
            "pickled, and could run code)"
        )
    content = np.frombuffer(bytearray(b"".join(parts)), np.uint8)
    row = CIFAR_VALUES + (2 if any(Path(item.name).name == f"{split}.bin" for item in chosen) else 1)
    if len(content) % row:
        raise ValueError(f"data={str(path)!r} holds {len(content)} bytes, no multiple of {row}: download it again")
    rows = content.reshape(-1, row)
    pixels = rows[:, -CIFAR_VALUES:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _image_set(pixels, rows[:, -CIFAR_VALUES - 1])


def _read_dataset(name_or_path: str, split: str, size: int | None) -> ImageSet:
    try:
        from datasets import Image as ImageFeature
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise ImportError("image folders and hub data sets are read by datasets: pip install datasets") from error
    folder = Path(name_or_path).is_dir()
    try:
        found = (
            load_dataset("imagefolder", data_dir=name_or_path, split=split)
            if folder
            else load_dataset(name_or_path, split=split)
        )
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(
            f"data={name_or_path!r} is neither 'digits', an .npz file, a folder of images, nor a reachable data set of "
            f"the hub with the split {split!r} ({error})"
        ) from error
    columns = [name for name, feature in found.features.items() if isinstance(feature, ImageFeature)]
    if not columns:
        raise ValueError(f"data={name_or_path!r} has no column of images, only {list(found.features)}")
    pictures = [_resized(picture, size) for picture in found[columns[0]]]
    if len({picture.shape for picture in pictures}) > 1:
        raise ValueError(f"data={name_or_path!r} holds images of several shapes: give a size to resize them to")
    labelled = next((name for name in ("label", "labels", "fine_label") if name in found.features), None)
    return _image_set(np.stack(pictures), None if labelled is None else np.array(found[labelled]))


def _image_set(pixels: NDArray[np.uint8], labels: NDArray[np.integer] | None) -> ImageSet:
    channels = pixels[..., None] if pixels.ndim == 3 else pixels
    images = torch.from_numpy(channels).movedim(-1, 1).float() / 127.5 - 1
    return ImageSet(images.contiguous(), None if labels is None else torch.tensor(labels.astype(np.int64).reshape(-1)))


def _decode(content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content.tobytes())))


def _resized(picture: Image.Image, size: int | None) -> NDArray[np.uint8]:
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("RGB")
    if size is not None:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        # A box filter averages the pixels that become one, as the ImageNet-64 data were made.
        picture = picture.resize((size, size), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    return np.asarray(picture)
