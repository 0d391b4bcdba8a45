"""Linear maps in closed form: least squares, with a penalty chosen by leaving rows out, and the map between moments."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PENALTIES = tuple(10.0**power for power in range(-7, 3))
"""Of the squared distance of the matrix to where it is drawn, for each row."""

SLACK = 1e-3
"""Share of the mean variance that every direction is given besides, where moments are matched."""


def least_squares(inputs: Tensor, outputs: Tensor, condition: Tensor, conditions: int, prior: Tensor) -> Tensor:
    """The map ``(P + C, D)`` float64 from ``inputs`` ``(N, P)`` to ``outputs`` ``(N, D)``: a matrix, an offset each row
    of ``condition`` ``(N,)`` below it.

    The matrix is drawn to ``prior`` ``(P, D)`` by the one of ``PENALTIES`` whose error on rows left out, one by one, is
    the least (by its closed form; Golub, Heath and Wahba 1979).
    """
    belongs = F.one_hot(condition, conditions).double()
    share = belongs.T / belongs.sum(dim=0).clamp(min=1)[:, None]
    prior = prior.double()
    z = inputs.double()
    rest = outputs.double() - z @ prior
    z_mean, rest_mean = share @ z, share @ rest
    z, rest = z - z_mean[condition], rest - rest_mean[condition]
    u, s, vh = torch.linalg.svd(z, full_matrices=False)
    seen = u.T @ rest
    errors = {}
    for penalty in PENALTIES:
        shrunk = s**2 / (s**2 + penalty * len(z))
        left_out = (rest - u @ (shrunk[:, None] * seen)) / (1 - u**2 @ shrunk)[:, None]
        errors[penalty] = left_out.square().mean().item()
    chosen = min(errors, key=lambda penalty: errors[penalty])
    matrix = vh.T @ ((s / (s**2 + chosen * len(z)))[:, None] * seen)
    return torch.cat([prior + matrix, rest_mean - z_mean @ matrix])


def moment_map(found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The map from rows like ``found`` ``(N, D)`` to rows with the mean and covariance of ``wanted`` ``(M, D)``: matrix
    ``(D, D)``, acting from the right, and offset ``(D,)``.

    Of all such maps the one that moves the least: optimal transport between Gaussians (Olkin and Pukelsheim 1982).
    Directions that hardly vary, by ``SLACK`` of the mean variance, are left as they are.
    """
    slack = SLACK * wanted.var(dim=0).mean() * torch.eye(wanted.shape[1], dtype=wanted.dtype, device=wanted.device)
    covariance, target = (torch.cov(rows.T) + slack for rows in (found, wanted))
    root, inverse = _power(covariance, 0.5), _power(covariance, -0.5)
    matrix = inverse @ _power(root @ target @ root, 0.5) @ inverse
    return matrix, wanted.mean(dim=0) - found.mean(dim=0) @ matrix


def _power(matrix: Tensor, power: float) -> Tensor:
    """Of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.T
