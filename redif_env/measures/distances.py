"""Distances between clean samples and the teacher's endpoints: ``(B,)`` from two batches ``(B, *S)``.

All are 0 for equal samples and grow as samples differ. Any callable of the same signature can be used instead. Image
distances clip to [-1, 1], the range of a student's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from redif_env.diffusion.placement import stock_defaults

Distance = Callable[[Tensor, Tensor], Tensor]
"""``(samples, endpoints) -> (B,)``."""

SMALL_SIDE = 16
"""Below this image size in pixels, structural similarity uses a narrower window than the 11 x 11 of its paper."""


def root_mean_square(samples: Tensor, endpoints: Tensor) -> Tensor:
    """Root of the mean squared difference over dimensions."""
    difference = (samples - endpoints).flatten(1)
    return torch.linalg.vector_norm(difference, dim=1) / math.sqrt(difference.shape[1])


def squared_error(samples: Tensor, endpoints: Tensor) -> Tensor:
    """Mean squared error over dimensions."""
    return (samples - endpoints).flatten(1).square().mean(dim=1)


@stock_defaults()
def structural_dissimilarity(samples: Tensor, endpoints: Tensor) -> Tensor:
    """One minus the structural similarity (Wang et al. 2004, Eq. 13) of images in [-1, 1], from torchmetrics.

    Raises:
        ValueError: if samples are not images.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if samples.ndim != 4:
        raise ValueError(
            f"structural similarity needs images (channels, height, width), got samples of shape "
            f"{tuple(samples.shape[1:])}: choose another distance"
        )
    sigma = 0.5 if min(samples.shape[2:]) < SMALL_SIDE else 1.5
    similarity = structural_similarity_index_measure(
        samples.clamp(-1, 1), endpoints.clamp(-1, 1), sigma=sigma, data_range=(-1.0, 1.0), reduction="none"
    )
    assert isinstance(similarity, Tensor)
    return 1 - similarity.reshape(len(samples))


def perceptual_distance(network: str = "alex") -> Distance:
    """LPIPS (Zhang et al. 2018) of images in [-1, 1], from torchmetrics. Grey images are expanded to three channels.

    Args:
        network: ``"alex"``, ``"vgg"`` or ``"squeeze"``; torchvision downloads its weights on first use.

    Raises:
        ValueError: if torchvision is not installed, or ``network`` is unknown.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        metric = LearnedPerceptualImagePatchSimilarity(net_type=network)  # type: ignore[arg-type]
    except ModuleNotFoundError as error:
        raise ValueError(f"network={network!r} needs torchvision ({error}): pip install torchvision") from error
    return Perceptual(metric.net)


class Perceptual:
    """A distance computed by a network from two batches of images ``(B, 3, H, W)`` in [-1, 1]."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)

    def __call__(self, samples: Tensor, endpoints: Tensor) -> Tensor:
        network = self.network.to(samples.device)
        first, second = (part.clamp(-1, 1).float().expand(-1, 3, -1, -1) for part in (samples, endpoints))
        return network(first, second).reshape(len(samples)).to(samples.dtype)
