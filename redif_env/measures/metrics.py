"""Metrics of sample quality: distances between sets, precision and coverage, and errors of paired samples.

Metrics of sets take features ``(N, D)`` and ``(M, D)`` from :func:`redif_env.measures.features.embed`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST, double, stock_defaults
from redif_env.measures.kernels import PolynomialKernel


@stock_defaults()
@torch.inference_mode()
def frechet_distance(samples: Tensor, reference: Tensor) -> float:
    """Frechet distance of Gaussians with the sets' moments (Heusel et al. 2017, Eq. 6), in float64.

    The trace of the root of the covariances' product is the sum of the singular values of the one set's factor times
    the other's. Factors are those of a QR decomposition, so that neither many rows nor many features make it slow: with
    the 3,072 pixels of an image torchmetrics takes minutes.

    Raises:
        ValueError: if a set has fewer than two rows.
    """
    if min(len(samples), len(reference)) < 2:
        raise ValueError(f"a Frechet distance needs two samples or more, got {len(samples)} and {len(reference)}")
    means, factors = [], []
    for rows in (samples.to(HOST).double(), reference.to(HOST).double()):
        means.append(rows.mean(dim=0))
        factors.append(torch.linalg.qr(rows - means[-1], mode="r").R / (len(rows) - 1) ** 0.5)
    between = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    distance = (means[0] - means[1]).square().sum() + sum(factor.square().sum() for factor in factors) - 2 * between
    # Rounding can make the distance of equal sets slightly negative.
    return max(0.0, float(distance))


@torch.inference_mode()
def kernel_distance(samples: Tensor, reference: Tensor) -> float:
    """KID (Binkowski et al. 2018, Eq. 4) with all rows as one block: the unbiased squared MMD of the cubic kernel.

    It can be slightly negative for similar sets.
    """
    kernel, samples, reference = PolynomialKernel(), double(samples), double(reference)
    within = [(matrix.sum() - matrix.trace()) / (len(matrix) * (len(matrix) - 1))
              for matrix in (kernel(samples, samples), kernel(reference, reference))]  # fmt: skip
    return float(within[0] + within[1] - 2 * kernel(samples, reference).mean())


@torch.inference_mode()
def precision(samples: Tensor, reference: Tensor, neighbours: int = 3) -> float:
    """Share of samples inside the reference's manifold (Kynkaanniemi et al. 2019, Eq. 1 and 2).

    The manifold is the union of balls around its members, each with the distance to the ``neighbours``-th nearest
    other member as radius.
    """
    return float((torch.cdist(samples, reference) <= _radii(reference, neighbours)).any(dim=1).float().mean())


def recall(samples: Tensor, reference: Tensor, neighbours: int = 3) -> float:
    """Share of the reference inside the samples' manifold (Kynkaanniemi et al. 2019)."""
    return precision(reference, samples, neighbours)


@torch.inference_mode()
def coverage(samples: Tensor, reference: Tensor, neighbours: int = 5) -> float:
    """Share of the reference's balls, as in :func:`precision`, that contain a sample (Naeem et al. 2020)."""
    return float((torch.cdist(reference, samples).amin(dim=1) <= _radii(reference, neighbours)).float().mean())


@torch.inference_mode()
def density(samples: Tensor, reference: Tensor, neighbours: int = 5) -> float:
    """Mean number of the reference's balls that contain a sample, over ``neighbours`` (Naeem et al. 2020, Eq. 3).

    The balls are those of :func:`precision`. About 1 for equal distributions; it can exceed 1.
    """
    inside = torch.cdist(samples, reference) <= _radii(reference, neighbours)
    return float(inside.float().sum(dim=1).mean() / neighbours)


@torch.inference_mode()
def mode_switches(samples: Tensor, endpoints: Tensor) -> Tensor:
    """Mask ``(N,)`` of samples that are nearer to another noise's endpoint than to their own; rows are paired.

    Such samples raise the distance between finite sets as new samples would, although each can be a valid sample.
    """
    nearest = torch.cdist(double(samples), double(endpoints)).argmin(dim=1)
    return nearest != torch.arange(len(samples), device=nearest.device)


@torch.inference_mode()
def diversity(features: Tensor, condition: Tensor) -> float:
    """Mean distance of features ``(N, D)`` of samples with the same condition ``(N,)``, over all pairs; NaN if none."""
    groups = [features[condition == row] for row in condition.unique().tolist()]
    distances = torch.cat(
        [torch.nn.functional.pdist(double(group)) for group in groups if len(group) > 1] or [double(features[:0, 0])]
    )
    return float(distances.mean())


def mean_squared_error(samples: Tensor, endpoints: Tensor) -> float:
    """Mean squared error of samples against the endpoints of the same noise, over samples and dimensions."""
    return float(double(samples - endpoints).square().mean())


def _radii(members: Tensor, neighbours: int) -> Tensor:
    """Distance ``(N,)`` from each member ``(N, D)`` to its ``neighbours``-th nearest other member."""
    if len(members) <= neighbours:
        raise ValueError(f"neighbours={neighbours} needs more than {neighbours} samples, got {len(members)}")
    distances = torch.cdist(members, members, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.kthvalue(neighbours + 1, dim=1).values
