"""Spatial frequency bands of images: rings of equal width in the Fourier plane that add up to the image.

Ring k of K holds the frequencies whose larger component, as a fraction of Nyquist's, lies in (k/K, (k+1)/K]; the first
also holds the mean.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST


def filter_bands(images: Tensor, gains: Tensor) -> Tensor:
    """The sum of the bands of images ``(B, C, H, W)`` (float32 or float64), each times its gain ``(B, K)``."""
    height, width = images.shape[-2:]
    rings = _rings(height, width, gains.shape[1], images.device, images.dtype)
    gain = (gains.to(images) @ rings).reshape(-1, 1, height, width // 2 + 1)
    return torch.fft.irfft2(gain * torch.fft.rfft2(images), s=(height, width))


def band_moments(pair: Tensor, count: int) -> Tensor:
    """Mean products of two images ``(B, 2, C, H, W)`` in each band: ``(B, 2, 2, count)``.

    By Parseval's theorem these are sums over the spectrum, so the bands themselves need not be made.
    """
    channels, height, width = pair.shape[2:]
    rings = _moment_rings(channels, height, width, count, pair.device, pair.dtype)
    spectrum = torch.view_as_real(torch.fft.rfft2(pair)).reshape(len(pair), 2, -1)
    return (spectrum[:, None] * spectrum[:, :, None]) @ rings


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # stored for later calls, which may need a gradient
def _rings(height: int, width: int, count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``(count, H * (W // 2 + 1))``, 1 inside ring k and 0 elsewhere."""
    vertical = torch.fft.fftfreq(height, dtype=torch.float32, device=HOST).abs()[:, None]
    horizontal = torch.fft.rfftfreq(width, dtype=torch.float32, device=HOST)[None]
    radius = torch.maximum(vertical, horizontal) / 0.5
    ring = (torch.ceil(radius * count) - 1).clamp(0, count - 1).flatten()
    return (ring == torch.arange(count, device=HOST)[:, None]).to(device, dtype)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _moment_rings(
    channels: int, height: int, width: int, count: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """What each number of a spectrum counts in the mean products of a band: ``(C * H * (W // 2 + 1) * 2, count)``."""
    rings = _rings(height, width, count, HOST, torch.float64).reshape(count, height, -1).repeat(1, channels, 1)
    # Most columns stand for two, themselves and their mirror images.
    columns = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64, device=HOST)
    columns[0] = 1
    if width % 2 == 0:
        columns[-1] = 1
    shares = rings * columns / (channels * (height * width) ** 2)
    # The real and the imaginary part of each frequency count alike.
    return shares.flatten(1).repeat_interleave(2, dim=1).T.contiguous().to(device, dtype)
