import pytest
import torch
import torchmetrics.image.lpip as lpip
from torchmetrics.functional.image import structural_similarity_index_measure

from redif_env.measures.distances import (
    Perceptual,
    perceptual_distance,
    root_mean_square,
    squared_error,
    structural_dissimilarity,
)


def images(seed, size=8):
    return torch.rand(3, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_distances_by_hand():
    first, second = torch.tensor([[0.3, 0.4], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(squared_error(first, second), torch.tensor([0.125, 2.5]))
    torch.testing.assert_close(root_mean_square(first, second), torch.tensor([0.125, 2.5]).sqrt())


@pytest.mark.parametrize("distance", [root_mean_square, squared_error, structural_dissimilarity])
def test_distance_is_zero_for_equal_samples_only(distance):
    assert distance(images(0), images(0)).abs().max() < 1e-5
    assert distance(images(0), images(1)).min() > 0.05
    assert distance(images(0), images(1)).shape == (3,)


def test_structural_dissimilarity_matches_torchmetrics_per_sample():
    """Batching changes nothing, and large images use the paper's window."""
    first, second = images(0, 32), images(1, 32)
    for row, value in enumerate(structural_dissimilarity(first, second)):
        one, other = first[row : row + 1], second[row : row + 1]
        assert value == pytest.approx(
            1 - structural_similarity_index_measure(one, other, data_range=(-1.0, 1.0)).item()
        )


def test_structural_dissimilarity_needs_images():
    with pytest.raises(ValueError, match=r"structural similarity needs images .* got samples of shape \(2,\)"):
        structural_dissimilarity(torch.zeros(3, 2), torch.zeros(3, 2))


def test_perceptual_distance_needs_torchvision_and_expands_grey_images(monkeypatch):
    """Without torchvision there is an error; images are clipped and expanded to three channels."""
    monkeypatch.setattr(lpip, "_TORCHVISION_AVAILABLE", False)
    with pytest.raises(ValueError, match=r"network='vgg' needs torchvision .* pip install torchvision"):
        perceptual_distance("vgg")

    class Network(torch.nn.Module):
        def forward(self, first, second):
            assert first.shape[1] == second.shape[1] == 3
            return (first - second).abs().amax(dim=(1, 2, 3), keepdim=True)

    distance = Perceptual(Network())
    assert distance(torch.full((2, 1, 4, 4), 3.0), torch.zeros(2, 1, 4, 4)).tolist() == [1.0, 1.0]
