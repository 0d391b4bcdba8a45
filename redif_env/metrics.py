"""How good samples are: Frechet distance in a named feature space, and the error to the teacher's endpoints."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from redif_env.files import ASSETS

FEATURE_BATCH = 1024


class DigitsClassifier(nn.Module):
    """A small convolutional classifier of 8x8 digits; its penultimate layer is the feature space of the digits tables.

    ``forward`` gives class logits ``(B, 10)``; ``features`` gives ``(B, 64)``, of images ``(B, 1, 8, 8)`` in [-1, 1].
    Trained and shipped by ``python -m experiments.train_classifier``.
    """

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(256, self.num_features),
            nn.GELU(),
        )
        self.head = nn.Linear(self.num_features, 10)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class PixelFeatures(nn.Module):
    """The samples themselves, flattened: the feature space where no network is known for the data."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, samples: Tensor) -> Tensor:
        return samples.flatten(1)


class PenultimateFeatures(nn.Module):
    """:meth:`DigitsClassifier.features` as a module, the form that torchmetrics takes."""

    def __init__(self, classifier: DigitsClassifier) -> None:
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False)
        self.num_features = classifier.num_features

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.features(images.float())


def load_features(teacher_name: str, sample_shape: tuple[int, ...]) -> tuple[str, nn.Module]:
    """Name and module of the feature space in which a teacher's samples are compared.

    Samples of shape (1, 8, 8) use the digits classifier's penultimate layer, others their own values.
    """
    if sample_shape == (1, 8, 8):
        classifier = DigitsClassifier()
        classifier.load_state_dict(load_file(ASSETS / "digits-classifier" / "model.safetensors"))
        return "digits-classifier-64", PenultimateFeatures(classifier)
    return "pixels", PixelFeatures(int(torch.tensor(sample_shape).prod()))


@torch.inference_mode()
def frechet_distance(samples: Tensor, reference: Tensor, features: nn.Module) -> float:
    """Frechet distance (Heusel et al. 2017, Eq. 6) between two sets of samples, ``(N, *S)`` and ``(M, *S)``.

    Computed by torchmetrics in float64 from the features' means and covariances. Needs at least two samples a side.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=features, normalize=True)
    for part in reference.split(FEATURE_BATCH):
        metric.update(part, real=True)
    for part in samples.split(FEATURE_BATCH):
        metric.update(part, real=False)
    return float(metric.compute())


def mean_squared_error(samples: Tensor, endpoints: Tensor) -> float:
    """Mean over samples and dimensions of the squared difference to the teacher's endpoints of the same noise."""
    return float((samples - endpoints).double().square().mean())
