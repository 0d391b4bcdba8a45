"""Small classifiers of the shipped data sets; their penultimate layers are the feature spaces of rewards and tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from safetensors.torch import load_file
from torch import Tensor, nn

from redif_env.storage.files import ASSETS

NUM_FEATURES = 64
"""Width of the penultimate layer."""


class Classifier(nn.Module):
    """Class logits ``(B, num_classes)`` of images ``(B, C, H, W)`` in [-1, 1], by way of ``features`` ``(B, 64)``.

    Args:
        body: images to features.
        num_classes: number of labels.
    """

    def __init__(self, body: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The penultimate layer."""
        features: Tensor = self.body(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def digits_classifier(side: int = 8, num_classes: int = 10) -> Classifier:
    """Three convolutions, for grey images of 8 or 28 pixels a side."""
    # A larger image is halved once more, by the first layer, and leaves 4 x 4 places, where 8 x 8 ones leave 2 x 2.
    stride, places = (1, 2) if side == 8 else (2, 4)
    body = nn.Sequential(
        nn.Conv2d(1, 32, 3, stride=stride, padding=1),
        nn.GELU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(64 * places**2, NUM_FEATURES),
        nn.GELU(),
    )
    return Classifier(body, num_classes)


def image_classifier(channels: int = 3, num_classes: int = 10, width: int = 24) -> Classifier:
    """Seven convolutions with batch normalisation and a maximum over places, for images of 16 pixels a side or more."""
    widths = (width, 2 * width, 4 * width, 4 * width)
    body = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.GELU(),
        *(_block(before, after) for before, after in pairwise(widths)),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], NUM_FEATURES),
        nn.GELU(),
    )
    return Classifier(body, num_classes)


def _block(before: int, after: int) -> nn.Sequential:
    """Two convolutions, the second followed by halving."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.GELU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(after),
        nn.GELU(),
    )


@dataclass(frozen=True)
class Shipped:
    """A classifier of the package: its folder, the samples that it takes, and the network without weights."""

    folder: str
    sample_shape: tuple[int, ...]
    build: Callable[[], Classifier]

    def load(self) -> Classifier:
        """The network with its weights, which are stored in half precision where it is large."""
        classifier = self.build()
        classifier.load_state_dict(load_file(ASSETS / self.folder / "model.safetensors"))
        return classifier


SHIPPED = {
    "digits": Shipped("digits-features", (1, 8, 8), digits_classifier),
    "digits-evaluation": Shipped("digits-classifier", (1, 8, 8), digits_classifier),
    "mnist": Shipped("mnist-features", (1, 28, 28), lambda: digits_classifier(28)),
    "mnist-evaluation": Shipped("mnist-classifier", (1, 28, 28), lambda: digits_classifier(28)),
    "cifar10": Shipped("cifar10-features", (3, 32, 32), image_classifier),
    "cifar10-evaluation": Shipped("cifar10-classifier", (3, 32, 32), image_classifier),
}
"""The classifiers that come with the package. The two of one shape differ in their training seed alone: were they one,
a reward could be earned by the blind spots of the judge."""


def classifier_for(sample_shape: tuple[int, ...], num_classes: int) -> Classifier:
    """A new classifier for images of this shape.

    Raises:
        ValueError: if there is none.
    """
    if sample_shape in ((1, 8, 8), (1, 28, 28)):
        return digits_classifier(sample_shape[-1], num_classes)
    if len(sample_shape) != 3 or min(sample_shape[1:]) < 16:
        raise ValueError(
            f"no classifier is known for samples of shape {sample_shape}: give images of 16 pixels or more"
        )
    return image_classifier(sample_shape[0], num_classes)
