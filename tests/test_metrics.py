import numpy as np
import pytest
import scipy.linalg
import torch

from redif_env.data import load_digits
from redif_env.metrics import frechet_distance, mean_squared_error


def test_frechet_distance_of_gaussians_by_hand():
    """Means 3 apart, deviations 1 and 2 in one dimension: 9 + (2 - 1) ** 2 = 10; the samples have them exactly."""
    base = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    base = (base - base.mean()) / base.std()
    assert frechet_distance(base, 2 * base + 3) == pytest.approx(10, rel=1e-4)


def test_frechet_distance_is_scipy_s_formula():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(400, 1, 2, 3, generator=generator)
    second = torch.randn(300, 1, 2, 3, generator=generator) @ torch.randn(3, 3, generator=generator)
    a, b = first.flatten(1).double().numpy(), second.flatten(1).double().numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(first.flatten(1), second.flatten(1)) == pytest.approx(expected, rel=1e-3)


def test_mean_squared_error_by_hand():
    assert mean_squared_error(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [3.0, 3.0]])) == 5 / 4


def test_digits_are_scaled():
    images, labels = load_digits()
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min(), images.max()) == (-1, 1)
    assert labels.shape == (1797,)
