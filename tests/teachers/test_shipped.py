"""What comes with the package for CIFAR-10: the teacher, its classifiers, and endpoints of the default sets."""

import pytest
import torch

from redif_env.envs.task import Task
from redif_env.measures.classifiers import SHIPPED
from redif_env.measures.features import embed, load_features
from redif_env.storage.cache import cached_file
from redif_env.teachers.references import (
    SHIPPED_SIZES,
    TEST_SEED,
    TRAIN_SEED,
    VALIDATION_SEED,
    draw_starts,
    reference_key,
    reference_set,
    sizes_named,
)
from redif_env.teachers.teacher import load_teacher


@pytest.fixture(scope="module")
def cifar10():
    return load_teacher("cifar10")


@pytest.mark.parametrize(
    ("seed", "size"),
    [
        (TRAIN_SEED, SHIPPED_SIZES["cifar10"].reference_size),
        (VALIDATION_SEED, SHIPPED_SIZES["cifar10"].held_out_size),
        (TEST_SEED, SHIPPED_SIZES["cifar10"].test_size),
    ],
)
def test_endpoints_of_cifar10_are_shipped(cifar10, seed, size):
    """No network call is needed for them; they are pictures of 8 bits, in [-1, 1]."""
    steps = SHIPPED_SIZES["cifar10"].teacher_steps
    assert cached_file(reference_key(cifar10, *draw_starts(cifar10, size, seed), steps)) is not None
    found = reference_set(cifar10, size, seed, steps)
    assert found.endpoints.shape == (size, 3, 32, 32)
    assert found.endpoints.dtype == torch.float32
    assert found.endpoints.min() >= -1
    assert found.endpoints.max() <= 1
    assert ((found.endpoints + 1) * 127.5).sub(((found.endpoints + 1) * 127.5).round()).abs().max() < 1e-3


def test_endpoints_show_their_classes(cifar10):
    """The classifier sees the class asked for in most endpoints (65.6 % of large sets), by chance in a tenth."""
    steps = SHIPPED_SIZES["cifar10"].teacher_steps
    found = reference_set(cifar10, SHIPPED_SIZES["cifar10"].held_out_size, VALIDATION_SEED, steps)
    seen = SHIPPED["cifar10-evaluation"].load().eval()(found.endpoints[:128]).argmax(1)
    right = (seen == found.condition[:128]).float().mean()
    assert right > 0.5
    assert (seen == found.condition[:128].roll(1)).float().mean() < 0.3


def test_features_of_colour_images():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first, second = (embed(load_features(name, (3, 32, 32)), images) for name in ("cifar10", "cifar10-evaluation"))
    assert first.shape == second.shape == (2, 64)
    assert not torch.allclose(first, second)


def test_sizes_follow_the_teacher():
    assert sizes_named("digits").reference_size == 4096
    assert Task(teacher="cifar10").sizes.teacher_steps == 40
    assert Task(teacher="cifar10", reference_size=7).sizes.reference_size == 7
    assert Task(teacher="cifar10", reference_size=7).sizes.teacher_steps == 40
