"""Least squares against plain matrix algebra, and its penalty against fitting again without each row."""

import pytest
import torch

from redif_env.regression import PENALTIES, least_squares


def test_the_fit_finds_a_map_and_an_offset_for_each_condition():
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
def test_the_penalty_is_the_one_that_foretells_best(disturbance):
    """Leaving ways out one by one and fitting again, for each penalty: the closed form chooses the same."""
    generator = torch.Generator().manual_seed(1)
    noise, apart = (torch.randn(12, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    moved = 0.5 * noise.roll(1, dims=1) + disturbance * apart
    z, r = noise - noise.mean(0), moved - moved.mean(0)

    def ridge(z, r, penalty):
        return torch.linalg.solve(z.T @ z + penalty * len(noise) * torch.eye(3, dtype=torch.float64), z.T @ r)

    def error(penalty):
        rest = [torch.arange(12) != index for index in range(12)]
        return sum((r[~keep] - z[~keep] @ ridge(z[keep], r[keep], penalty)).square().sum() for keep in rest)

    best = min(PENALTIES, key=error)
    prior = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -2.0]], dtype=torch.float64)
    fitted = least_squares(noise, noise @ prior + moved, torch.zeros(12, dtype=torch.int64), 1, prior)
    torch.testing.assert_close(fitted[:3], prior + ridge(z, r, best))
    assert (best > 0.1) == (disturbance > 1)
