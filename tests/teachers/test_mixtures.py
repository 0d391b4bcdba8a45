import math

import pytest
import torch

from redif_env.diffusion.schedules import VariancePreservingSchedule
from redif_env.teachers.mixtures import GaussianMixture

SCHEDULE = VariancePreservingSchedule.from_diffusers()


def mixture(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 2, 2, generator=generator, dtype=dtype)
    stds = torch.rand(3, 2, 2, generator=generator, dtype=dtype) + 0.1
    return GaussianMixture(means, stds, torch.tensor([0.2, 0.3, 0.5], dtype=dtype), SCHEDULE)


def test_noise_prediction_is_minus_sigma_times_the_score():
    """eps = -sigma grad log p, with the gradient taken by autograd from the log density."""
    model = mixture()
    x = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    half_logsnr = torch.tensor([-4.0, -1.0, 0.0, 1.5, 4.0], dtype=torch.float64)
    (score,) = torch.autograd.grad(model.log_prob(x, half_logsnr).sum(), x)
    sigma = SCHEDULE.level(half_logsnr).sigma.reshape(5, 1, 1)
    torch.testing.assert_close(model.prediction(x, half_logsnr).eps, -sigma * score)


def test_one_gaussian_by_hand():
    """Mean 2, deviation 3, at alpha = sigma = 1 / sqrt 2: the variance is 5, eps = (x - sqrt 2) / (5 sqrt 2)."""
    model = GaussianMixture(torch.tensor([[2.0]]).double(), torch.tensor([[3.0]]).double(), None, SCHEDULE)
    eps = model.prediction(torch.tensor([[1.0]]).double(), torch.zeros(1).double()).eps
    assert eps.item() == pytest.approx((1 - math.sqrt(2)) / (5 * math.sqrt(2)))
    log_prob = model.log_prob(torch.tensor([[1.0]]).double(), torch.zeros(1).double())
    assert log_prob.item() == pytest.approx(-((1 - math.sqrt(2)) ** 2) / 10 - math.log(2 * math.pi * 5) / 2)


def test_samples_have_the_mixture_s_moments():
    model = mixture(torch.float32)
    samples = model.sample(200_000, torch.Generator().manual_seed(0))
    weights = torch.tensor([0.2, 0.3, 0.5]).reshape(3, 1, 1)
    mean = (weights * model.means).sum(0)
    second = (weights * (model.stds**2 + model.means**2)).sum(0)
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(samples.square().mean(0), second, rtol=0.02, atol=0.01)


def test_bad_mixtures_are_refused():
    with pytest.raises(ValueError, match="stds must be above 0"):
        GaussianMixture(torch.zeros(2, 1), 0.0, None, SCHEDULE)
    with pytest.raises(ValueError, match="weights must be 2 positive numbers"):
        GaussianMixture(torch.zeros(2, 1), 1.0, torch.tensor([1.0]), SCHEDULE)
