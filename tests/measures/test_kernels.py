import pytest
import torch

from redif_env.measures.kernels import (
    EnergyKernel,
    PolynomialKernel,
    RationalQuadraticKernel,
    median_lengths,
    squared_mmd,
    witness,
)

KERNELS = [EnergyKernel(), PolynomialKernel(), RationalQuadraticKernel((0.5, 2.0))]


def points(count, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator, dtype=torch.float64) + shift


def test_kernels_by_hand():
    first, second = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert EnergyKernel()(first, second).item() == -5
    assert PolynomialKernel()(torch.tensor([[1.0, 2.0]]), second).item() == (11 / 2 + 1) ** 3
    value = RationalQuadraticKernel((1.0, 5.0))(first, second).item()
    assert value == pytest.approx((1 / (1 + 25 / 2) + 1 / (1 + 25 / 50)) / 2)


def test_energy_distance_of_two_points():
    """The energy distance of points a and b is 2|a - b|."""
    assert squared_mmd(EnergyKernel(), torch.tensor([[0.0]]), torch.tensor([[3.0]])).item() == 6


def test_energy_distance_of_gaussians():
    """In one dimension, N(0, 1) against N(m, 1): 2 E|X - Y| - 2 E|X - X'|, of normals with variance 2."""
    count, shift = 4000, 1.5
    spread = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]
    normal = torch.distributions.Normal(0.0, 1.0)

    def mean_absolute(mean):
        ratio = torch.tensor(mean / 2**0.5, dtype=torch.float64)
        return 2 / torch.pi**0.5 * torch.exp(-(ratio**2) / 2) + mean * (1 - 2 * normal.cdf(-ratio))

    expected = 2 * mean_absolute(shift) - 2 * mean_absolute(0.0)
    found = squared_mmd(EnergyKernel(), spread, spread + shift)
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_mmd_is_zero_for_equal_sets_only(kernel):
    assert squared_mmd(kernel, points(50, 0), points(50, 0)).item() == pytest.approx(0, abs=1e-9)
    assert squared_mmd(kernel, points(50, 0), points(50, 1, 1.0)).item() > 0.01


@pytest.mark.parametrize("kernel", KERNELS)
def test_witness_is_half_the_gradient_of_the_mmd_in_the_weights(kernel):
    """Moving weight from sample j to i changes the squared MMD at a rate of 2 (witness_i - witness_j)."""
    samples, reference = points(20, 0), points(30, 1, 0.5)
    weights = torch.full((20,), 1 / 20, dtype=torch.float64, requires_grad=True)
    inner = weights @ kernel(samples, samples) @ weights
    cross = (weights @ kernel(samples, reference)).mul(1 / 30).sum()
    (gradient,) = torch.autograd.grad(inner - 2 * cross, weights)
    at = witness(kernel, samples, samples, reference)
    torch.testing.assert_close(gradient - gradient[0], 2 * (at - at[0]))


def test_median_lengths_scale_with_the_features():
    small, large = median_lengths(points(60, 0)), median_lengths(10 * points(60, 0))
    assert large == pytest.approx([10 * length for length in small])
    assert len(small) == 4
