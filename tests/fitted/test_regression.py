"""Ridge regression against plain matrix algebra, and its penalty against explicit leave-one-out refits."""

import pytest
import torch

from redif_env.fitted.regression import PENALTIES, SLACK, least_squares, moment_map


def test_fit_recovers_the_matrix_and_one_offset_per_condition():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 3, generator=generator, dtype=torch.float64)
    matrix, offset = (
        torch.randn(3, 3, generator=generator, dtype=torch.float64),
        torch.tensor([[1.0, 2, 3], [0, -1, 5]]),
    )
    condition = torch.randint(2, (2000,), generator=generator)
    identity = torch.eye(3, dtype=torch.float64)
    fitted = least_squares(noise, noise @ matrix + offset.double()[condition], condition, 2, identity)
    torch.testing.assert_close(fitted[:3], matrix, rtol=0, atol=1e-5)
    torch.testing.assert_close(fitted[3:], offset.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("disturbance", [0.01, 3.0])
def test_penalty_minimises_the_leave_one_out_error(disturbance):
    """The closed form chooses the same penalty as refitting without each row."""
    generator = torch.Generator().manual_seed(1)
    noise, error_term = (torch.randn(12, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    outputs = 0.5 * noise.roll(1, dims=1) + disturbance * error_term
    z, r = noise - noise.mean(0), outputs - outputs.mean(0)

    def ridge(z, r, penalty):
        return torch.linalg.solve(z.T @ z + penalty * len(noise) * torch.eye(3, dtype=torch.float64), z.T @ r)

    def error(penalty):
        masks = [torch.arange(12) != index for index in range(12)]
        return sum((r[~keep] - z[~keep] @ ridge(z[keep], r[keep], penalty)).square().sum() for keep in masks)

    best = min(PENALTIES, key=error)
    prior = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -2.0]], dtype=torch.float64)
    fitted = least_squares(noise, noise @ prior + outputs, torch.zeros(12, dtype=torch.int64), 1, prior)
    torch.testing.assert_close(fitted[:3], prior + ridge(z, r, best))
    assert (best > 0.1) == (disturbance > 1)


def test_moment_map_is_an_optimal_transport_map():
    """Mean and covariance match, and the matrix is symmetric and positive definite (Brenier)."""
    generator = torch.Generator().manual_seed(2)
    samples, target = (
        torch.randn(500, 4, generator=generator, dtype=torch.float64)
        @ torch.randn(4, 4, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    matrix, offset = moment_map(samples, target + 3)
    mapped = samples @ matrix + offset
    torch.testing.assert_close(mapped.mean(0), target.mean(0) + 3)
    slack = SLACK * target.var(dim=0).mean() * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(matrix @ (torch.cov(samples.T) + slack) @ matrix, torch.cov(target.T) + slack)
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_moment_map_by_hand():
    """Each axis is scaled by the ratio of standard deviations; constant dimensions do not change."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    rows = torch.linalg.qr(rows - rows.mean(0)).Q * 20  # uncorrelated, of the same variance
    constant = torch.full((400, 1), -1.0, dtype=torch.float64)
    samples, target = (
        torch.cat([rows * torch.tensor(deviation, dtype=torch.float64), constant], dim=1)
        for deviation in ((1.0, 4.0), (2.0, 1.0))
    )
    matrix, offset = moment_map(samples, target)
    torch.testing.assert_close(
        matrix, torch.diag(torch.tensor([2.0, 0.25, 1.0], dtype=torch.float64)), rtol=0.01, atol=1e-9
    )
    torch.testing.assert_close(offset, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
