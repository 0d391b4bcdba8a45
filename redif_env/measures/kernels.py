"""Kernels on feature vectors, and their maximum mean discrepancy (MMD) and witness function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from redif_env.diffusion.placement import double


class Kernel(Protocol):
    """A (conditionally) positive definite kernel: ``(N, D), (M, D) -> (N, M)``."""

    def __call__(self, first: Tensor, second: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class EnergyKernel:
    """``-|a - b|``: its squared MMD is the energy distance (Sejdinovic et al. 2013, Section 4)."""

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        return -torch.cdist(first, second)


@dataclass(frozen=True)
class PolynomialKernel:
    """``(a.b / D + 1) ** 3``: the kernel of KID (Binkowski et al. 2018), sensitive to the first three moments."""

    degree: int = 3

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        product: Tensor = (first @ second.T / first.shape[1] + 1) ** self.degree
        return product


@dataclass(frozen=True)
class RationalQuadraticKernel:
    """Mean over length scales of ``1 / (1 + |a - b|**2 / (2 * length**2))`` (Binkowski et al. 2018, Section 3).

    Its heavy tails make distant samples count. ``lengths`` are in units of the features.
    """

    lengths: tuple[float, ...]

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        squared = torch.cdist(first, second).square()
        return torch.stack([1 / (1 + squared / (2 * length**2)) for length in self.lengths]).mean(dim=0)


def median_lengths(features: Tensor, factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)) -> tuple[float, ...]:
    """Length scales: the median distance between features ``(N, D)`` times each factor."""
    distances = torch.pdist(double(features[:512]))
    return tuple(float(factor * distances.median()) for factor in factors)


def squared_mmd(kernel: Kernel, samples: Tensor, reference: Tensor) -> Tensor:
    """Squared MMD (Gretton et al. 2012, Eq. 5), a scalar tensor of at least 0.

    The biased estimate: means run over all pairs, including each sample with itself, so equal sets give exactly 0.
    """
    within = kernel(samples, samples).mean() + kernel(reference, reference).mean()
    return within - 2 * kernel(samples, reference).mean()


def witness(kernel: Kernel, at: Tensor, samples: Tensor, reference: Tensor) -> Tensor:
    """Witness function (Gretton et al. 2012, Section 2.3) ``(B,)`` at features ``at`` ``(B, D)``.

    It is positive where ``samples`` are denser than ``reference``.
    """
    return kernel(at, samples).mean(dim=1) - kernel(at, reference).mean(dim=1)
