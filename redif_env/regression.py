"""Least squares with a penalty that is chosen by leaving rows out, which has a closed form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PENALTIES = tuple(10.0**power for power in range(-7, 3))
"""Of the squared distance of the matrix to where it is drawn, for each row."""


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
