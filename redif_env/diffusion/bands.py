"""Spatial frequency bands of images: rings of equal width in the Fourier plane that add up to the image."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def split_bands(images: Tensor, count: int) -> Tensor:
    """Bands ``(count, B, C, H, W)`` of images ``(B, C, H, W)``, lowest first; their sum is the image.

    Ring k holds the frequencies whose larger component, as a fraction of Nyquist's, lies in (k/count, (k+1)/count];
    the first also holds the mean.
    """
    height, width = images.shape[-2:]
    masks = _ring_masks(height, width, count, images.device)
    # Half precision has no Fourier transform on most devices, so the transform is always float32.
    spectrum = torch.fft.rfft2(images.float())
    return torch.fft.irfft2(masks[:, None, None] * spectrum, s=(height, width)).to(images.dtype)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for later calls, which may want a gradient
def _ring_masks(height: int, width: int, count: int, device: torch.device) -> Tensor:
    """``(count, H, W // 2 + 1)``, 1 inside ring k and 0 elsewhere."""
    vertical = torch.fft.fftfreq(height, device=device).abs()[:, None]
    horizontal = torch.fft.rfftfreq(width, device=device)[None]
    radius = torch.maximum(vertical, horizontal) / 0.5
    ring = (torch.ceil(radius * count) - 1).clamp(0, count - 1)
    return torch.stack([(ring == index).float() for index in range(count)])
