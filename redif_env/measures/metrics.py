"""How good samples are: distances between two sets of samples, how one covers the other, and the paired error.

The measures of sets take features ``(N, D)`` and ``(M, D)``, as :func:`redif_env.measures.features.embed` gives them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from redif_env.diffusion.placement import HOST, double, stock_defaults
from redif_env.measures.kernels import PolynomialKernel


@stock_defaults()
@torch.inference_mode()
def frechet_distance(samples: Tensor, reference: Tensor) -> float:
    """Frechet distance (Heusel et al. 2017, Eq. 6), by torchmetrics, in float64. Needs at least two rows a side."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    identity = nn.Identity()
    identity.num_features = samples.shape[1]  # type: ignore[assignment]
    metric = FrechetInceptionDistance(feature=identity, normalize=True)
    metric.update(reference.to(HOST), real=True)
    metric.update(samples.to(HOST), real=False)
    # Rounding takes the distance of equal sets a little below 0.
    return max(0.0, float(metric.compute()))


@torch.inference_mode()
def kernel_distance(samples: Tensor, reference: Tensor) -> float:
    """Unbiased squared discrepancy of the cubic kernel (Binkowski et al. 2018, Eq. 4): KID, with all rows as one block.

    May be slightly negative for sets that are hardly apart.
    """
    kernel, samples, reference = PolynomialKernel(), double(samples), double(reference)
    within = [(matrix.sum() - matrix.trace()) / (len(matrix) * (len(matrix) - 1))
              for matrix in (kernel(samples, samples), kernel(reference, reference))]  # fmt: skip
    return float(within[0] + within[1] - 2 * kernel(samples, reference).mean())


@torch.inference_mode()
def precision(samples: Tensor, reference: Tensor, neighbours: int = 3) -> float:
    """Share of samples inside the reference's manifold (Kynkaanniemi et al. 2019, Eq. 1 and 2).

    The manifold is the union of balls around its members that reach to their ``neighbours``-th nearest other member.
    """
    return float((torch.cdist(samples, reference) <= _radii(reference, neighbours)).any(dim=1).float().mean())


def recall(samples: Tensor, reference: Tensor, neighbours: int = 3) -> float:
    """Share of the reference inside the samples' manifold: :func:`precision` with the sides exchanged."""
    return precision(reference, samples, neighbours)


@torch.inference_mode()
def coverage(samples: Tensor, reference: Tensor, neighbours: int = 5) -> float:
    """Share of the reference that has a sample within its ``neighbours``-th nearest own member (Naeem et al. 2020)."""
    return float((torch.cdist(reference, samples).amin(dim=1) <= _radii(reference, neighbours)).float().mean())


@torch.inference_mode()
def density(samples: Tensor, reference: Tensor, neighbours: int = 5) -> float:
    """How crowded the samples' places are among the reference (Naeem et al. 2020, Eq. 3).

    Each sample counts the reference's balls that it lies in, which reach to their ``neighbours``-th nearest other
    member, over ``neighbours``. About 1 for equal distributions; unlike precision it may exceed 1.
    """
    inside = torch.cdist(samples, reference) <= _radii(reference, neighbours)
    return float(inside.float().sum(dim=1).mean() / neighbours)


@torch.inference_mode()
def sliced_wasserstein(samples: Tensor, reference: Tensor, projections: int = 256, seed: int = 0) -> float:
    """Sliced Wasserstein distance of order 2 (Bonneel et al. 2015): along random directions, samples are but sorted.

    The root of the mean over directions of the squared distance in one dimension; both sides need equally many rows.

    Raises:
        ValueError: if they have not.
    """
    if len(samples) != len(reference):
        raise ValueError(f"samples must be as many as reference ({len(reference)}), got {len(samples)}")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(samples.shape[1], projections, generator=generator, dtype=torch.float64, device=HOST)
    directions = directions / directions.norm(dim=0)
    along = [(points.to(HOST).double() @ directions).sort(dim=0).values for points in (samples, reference)]
    return float((along[0] - along[1]).square().mean().sqrt())


@torch.inference_mode()
def wasserstein(samples: Tensor, reference: Tensor) -> float:
    """Exact Wasserstein distance of order 2 between equally many points: the cheapest pairing, by scipy.

    Its cost grows with the cube of their number: some thousands take seconds.

    Raises:
        ValueError: if they are not equally many.
    """
    from scipy.optimize import linear_sum_assignment

    if len(samples) != len(reference):
        raise ValueError(f"samples must be as many as reference ({len(reference)}), got {len(samples)}")
    apart = torch.cdist(double(samples), double(reference), compute_mode="donot_use_mm_for_euclid_dist")
    costs = apart.square().cpu().numpy()
    return float(costs[linear_sum_assignment(costs)].mean() ** 0.5)


@torch.inference_mode()
def strayed(samples: Tensor, endpoints: Tensor) -> Tensor:
    """Which samples ``(N,)`` bool are nearer to another noise's endpoint than to their own; rows are paired.

    These left their endpoint's mode for another. As a set they may be as good as the endpoints, yet they move a
    distance between finite sets as freshly drawn samples would.
    """
    nearest = torch.cdist(double(samples), double(endpoints)).argmin(dim=1)
    return nearest != torch.arange(len(samples), device=nearest.device)


def mean_squared_error(samples: Tensor, endpoints: Tensor) -> float:
    """Mean over samples and dimensions of the squared difference to the teacher's endpoints of the same noise."""
    return float(double(samples - endpoints).square().mean())


def _radii(members: Tensor, neighbours: int) -> Tensor:
    """Distance ``(N,)`` from each member ``(N, D)`` to its ``neighbours``-th nearest other one."""
    if len(members) <= neighbours:
        raise ValueError(f"neighbours={neighbours} needs more than {neighbours} samples, got {len(members)}")
    distances = torch.cdist(members, members, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.kthvalue(neighbours + 1, dim=1).values
