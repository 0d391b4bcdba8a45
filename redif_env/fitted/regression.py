"""Linear maps in closed form: ridge regression with leave-one-out cross-validation, and the moment-matching map."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PENALTIES = tuple(10.0**power for power in range(-7, 3))
"""Candidate ridge penalties per row, on the squared distance of the matrix from its prior."""

SLACK = 1e-3
"""Regularisation of the covariances in moment matching, as a share of the mean variance."""


def least_squares(inputs: Tensor, outputs: Tensor, condition: Tensor, conditions: int, prior: Tensor) -> Tensor:
    """Ridge regression of ``outputs`` ``(N, D)`` on ``inputs`` ``(N, P)`` with one offset per condition.

    The penalty is the one of ``PENALTIES`` with the least leave-one-out error, in closed form (Golub, Heath and Wahba
    1979).

    Args:
        inputs, outputs: one row per observation.
        condition: condition ``(N,)`` int64 of each row.
        conditions: number of conditions C.
        prior: matrix ``(P, D)`` that the fit is regularised towards.

    Returns:
        ``(P + C, D)`` float64: the matrix, and below it the offsets.
    """
    one_hot = F.one_hot(condition, conditions).double()
    averaging = one_hot.T / one_hot.sum(dim=0).clamp(min=1)[:, None]
    prior = prior.double()
    z = inputs.double()
    residual = outputs.double() - z @ prior
    z_mean, residual_mean = averaging @ z, averaging @ residual
    z, residual = z - z_mean[condition], residual - residual_mean[condition]
    u, s, vh = torch.linalg.svd(z, full_matrices=False)
    projected = u.T @ residual
    errors = {}
    for penalty in PENALTIES:
        shrinkage = s**2 / (s**2 + penalty * len(z))
        left_out = (residual - u @ (shrinkage[:, None] * projected)) / (1 - u**2 @ shrinkage)[:, None]
        errors[penalty] = left_out.square().mean().item()
    chosen = min(errors, key=lambda penalty: errors[penalty])
    matrix = vh.T @ ((s / (s**2 + chosen * len(z)))[:, None] * projected)
    return torch.cat([prior + matrix, residual_mean - z_mean @ matrix])


def moment_map(samples: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map that gives ``samples`` ``(N, D)`` the mean and covariance of ``target`` ``(M, D)``.

    It is the optimal transport map between Gaussians (Olkin and Pukelsheim 1982). ``SLACK`` of the mean variance is
    added to both covariances, so directions with little variance are hardly changed.

    Returns:
        Matrix ``(D, D)``, which acts from the right, and offset ``(D,)``.
    """
    slack = SLACK * target.var(dim=0).mean() * torch.eye(target.shape[1], dtype=target.dtype, device=target.device)
    source_cov, target_cov = (torch.cov(rows.T) + slack for rows in (samples, target))
    root, inverse = _power(source_cov, 0.5), _power(source_cov, -0.5)
    matrix = inverse @ _power(root @ target_cov @ root, 0.5) @ inverse
    return matrix, target.mean(dim=0) - samples.mean(dim=0) @ matrix


def _power(matrix: Tensor, power: float) -> Tensor:
    """Power of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.T
