"""Rendering of episodes: the sample after each step in the first row, the predicted clean sample in the second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from redif_env.diffusion.placement import HOST
from redif_env.storage.files import write_file

TILE = 64
"""Minimum side of one tile, in pixels."""
GAP = 4
BACKGROUND = 32


class Filmstrip:
    """One strip of tiles per environment: column k shows ``x`` after k steps and the clean sample predicted there.

    Samples that are not images are drawn as one row of pixels. Values are clipped to [-1, 1].
    """

    def __init__(self, num_envs: int, num_steps: int, sample_shape: tuple[int, ...]) -> None:
        self.shape = sample_shape if len(sample_shape) == 3 else (1, 1, int(np.prod(sample_shape)))
        self.tiles = torch.full((num_envs, 2, num_steps + 1, *self.shape), torch.nan, dtype=torch.float32, device=HOST)

    def clear(self, rows: Tensor) -> None:
        """Clear the strips of the environments in the mask ``rows`` ``(B,)``."""
        self.tiles[rows] = torch.nan

    def record(self, rows: Tensor, column: Tensor, x: Tensor, x0: Tensor) -> None:
        """Draw ``x`` and ``x0`` ``(B, *S)`` of the environments in the mask ``rows`` in their ``column`` ``(B,)``."""
        chosen = rows.nonzero()[:, 0]
        for line, samples in enumerate((x, x0)):
            pictures = samples.to(HOST)[chosen].reshape(len(chosen), *self.shape).float()
            self.tiles[chosen, line, column[chosen]] = pictures

    def frames(self) -> tuple[NDArray[np.uint8], ...]:
        """One frame ``(height, width, 3)`` per environment."""
        return tuple(tile(to_pixels(strip)) for strip in self.tiles)


def as_images(samples: Tensor) -> Tensor:
    """Samples ``(N, *S)`` as images ``(N, C, H, W)``; those that are none as one row of pixels."""
    return samples if samples.ndim == 4 else samples.reshape(len(samples), 1, 1, -1)


def to_pixels(samples: Tensor) -> NDArray[np.uint8]:
    """Convert images ``(..., C, H, W)`` in [-1, 1] to ``uint8`` ``(..., H, W, 3)``; NaN becomes the background."""
    channels = samples[..., :3, :, :] if samples.shape[-3] >= 3 else samples[..., :1, :, :].repeat_interleave(3, dim=-3)
    pixels = ((channels.clamp(-1, 1) + 1) * 127.5).round().nan_to_num(nan=float(BACKGROUND))
    return pixels.movedim(-3, -1).to(torch.uint8).cpu().numpy()


def tile(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tile pictures ``(lines, columns, H, W, 3)`` into one, each enlarged to at least ``TILE`` pixels."""
    lines, columns, height, width, _ = pictures.shape
    factor = max(1, TILE // max(height, width))
    large = pictures.repeat(factor, axis=2).repeat(factor, axis=3)
    page = np.full(
        (lines * (height * factor + GAP) + GAP, columns * (width * factor + GAP) + GAP, 3), BACKGROUND, np.uint8
    )
    for line in range(lines):
        for column in range(columns):
            top, left = GAP + line * (height * factor + GAP), GAP + column * (width * factor + GAP)
            page[top : top + height * factor, left : left + width * factor] = large[line, column]
    return page


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture ``(height, width, 3)``: the whole file or none."""
    with write_file(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", optimize=True)
