import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from redif_env.measures.metrics import (
    coverage,
    density,
    frechet_distance,
    kernel_distance,
    mean_squared_error,
    mode_switches,
    precision,
    recall,
)
from redif_env.storage.data import load_digits


def test_frechet_distance_of_gaussians_by_hand():
    """Means 3 apart, deviations 1 and 2 in one dimension: 9 + (2 - 1) ** 2 = 10; the samples have them exactly."""
    base = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    base = (base - base.mean()) / base.std()
    assert frechet_distance(base, 2 * base + 3) == pytest.approx(10, rel=1e-4)


def test_frechet_distance_matches_scipy():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(400, 1, 2, 3, generator=generator)
    second = torch.randn(300, 1, 2, 3, generator=generator) @ torch.randn(3, 3, generator=generator)
    a, b = first.flatten(1).double().numpy(), second.flatten(1).double().numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(first.flatten(1), second.flatten(1)) == pytest.approx(expected, rel=1e-3)


def test_frechet_distance_of_fewer_rows_than_features():
    """A set and itself, moved: the distance is the move's, though its covariances have no full rank; torchmetrics' for
    more rows than features."""
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(20, 300, generator=generator, dtype=torch.float64)
    assert frechet_distance(few, few + 0.1) == pytest.approx(300 * 0.01, rel=1e-9)
    assert frechet_distance(few, 2 * few) == pytest.approx(float(few.mean(0).square().sum() + few.var(0).sum()))
    first, second = few[:, :5], few[:, 5:10]
    identity = torch.nn.Identity()
    identity.num_features = 5
    metric = FrechetInceptionDistance(feature=identity, normalize=True).set_dtype(torch.float64)
    metric.update(first, real=True)
    metric.update(second, real=False)
    assert frechet_distance(first, second) == pytest.approx(float(metric.compute()), rel=1e-6)
    with pytest.raises(ValueError, match="needs two samples or more, got 1 and 20"):
        frechet_distance(few[:1], few)


def test_mean_squared_error_by_hand():
    assert mean_squared_error(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [3.0, 3.0]])) == 5 / 4


def test_kernel_distance_matches_torchmetrics_with_one_block():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(60, 5, generator=generator), torch.randn(60, 5, generator=generator) + 0.5
    identity = torch.nn.Identity()
    identity.num_features = 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns about the memory of features
        metric = KernelInceptionDistance(feature=identity, subsets=1, subset_size=60, normalize=True)
    metric.update(first, real=False)
    metric.update(second, real=True)
    assert kernel_distance(first, second) == pytest.approx(metric.compute()[0].item(), rel=1e-4)


def test_precision_recall_and_coverage_by_hand():
    """Reference at 0, 1, 2, 10; samples at 0.5, 0.6, 4; one neighbour.

    Balls of radius 1, 1, 1 and 8 around the reference contain all samples; balls of radius 0.1, 0.1 and 3.4 around the
    samples contain 1 and 2. The nearest samples are 0.5, 0.4, 1.4 and 6 away: three of four balls contain a sample.
    """
    reference, samples = torch.tensor([[0.0], [1.0], [2.0], [10.0]]), torch.tensor([[0.5], [0.6], [4.0]])
    assert precision(samples, reference, 1) == 1
    assert precision(torch.tensor([[-3.0], [0.5]]), reference, 1) == 0.5
    assert recall(samples, reference, 1) == 0.5
    assert coverage(samples, reference, 1) == 0.75
    with pytest.raises(ValueError, match="neighbours=4 needs more than 4 samples, got 4"):
        precision(samples, reference, 4)


def test_metrics_of_equal_sets_are_perfect():
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert precision(points, points) == recall(points, points) == coverage(points, points) == 1
    assert not mode_switches(points, points).any()


def test_mode_switches_by_hand():
    endpoints = torch.tensor([[0.0], [1.0], [5.0]])
    assert mode_switches(torch.tensor([[0.4], [4.0], [5.5]]), endpoints).tolist() == [False, True, False]


def test_digits_are_scaled():
    images, labels = load_digits()
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min(), images.max()) == (-1, 1)
    assert labels.shape == (1797,)


def test_density_by_hand():
    """Reference 0, 1, 3, one neighbour, radii 1, 1, 2: a sample at 0.5 is in two balls, at 4 in one, at 9 in none."""
    reference = torch.tensor([[0.0], [1.0], [3.0]])
    assert density(torch.tensor([[0.5], [4.0], [9.0]]), reference, neighbours=1) == pytest.approx((2 + 1 + 0) / 3)


def test_density_of_equal_distributions_is_about_one():
    generator = torch.Generator().manual_seed(0)
    samples, reference = torch.randn(2, 2000, 4, generator=generator)
    assert density(samples, reference) == pytest.approx(1, abs=0.06)
