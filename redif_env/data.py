"""Real data for teachers and metrics, as tensors in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


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
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1
    return images, torch.tensor(bunch.target, dtype=torch.int64)
