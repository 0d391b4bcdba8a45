"""The reward by distance to the teacher's endpoint in the space of a feature network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from redif_env.diffusion.types import Transition
from redif_env.mdp.process import DenoisingMDP
from redif_env.measures.distances import Distance, root_mean_square
from redif_env.measures.features import default_features, embed, load_features
from redif_env.rewards.calibration import base_distance
from redif_env.rewards.reward import check_scale, when_finished
from redif_env.teachers.references import ReferenceSet
from redif_env.teachers.teacher import Teacher


@dataclass(frozen=True)
class FeatureAlignment:
    """:class:`EndpointAlignment` in the space of a feature network: the root mean square distance of features.

    What the network does not see is not paid for, what it is sensitive to counts more: nearer to what a Frechet
    distance measures. The base solver pays -1, the teacher 0.
    """

    scale: float
    features: nn.Module
    name: str = "feature"

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def __call__(self, transition: Transition) -> Tensor:
        return -when_finished(self.name, transition, partial(feature_root_mean_square, self.features)) / self.scale

    @classmethod
    def calibrated(
        cls, mdp: DenoisingMDP, reference: ReferenceSet, features: nn.Module | None = None, name: str = "feature"
    ) -> FeatureAlignment:
        """With the base solver's mean distance as scale; ``features`` default to those for the sample shape."""
        network = placed_features(features, mdp.teacher)
        return cls(base_distance(mdp, reference, partial(feature_root_mean_square, network)), network, name)


class LatentFeatures(nn.Module):
    """Features ``(B, D)`` of the images that latents ``(B, *S)`` are decoded to, by a teacher's decoder."""

    def __init__(self, features: nn.Module, teacher: Teacher) -> None:
        super().__init__()
        self.features, self.teacher = features, teacher

    def forward(self, latents: Tensor) -> Tensor:
        return embed(self.features, self.teacher.images(latents))


def feature_root_mean_square(features: nn.Module, samples: Tensor, endpoints: Tensor) -> Tensor:
    """Root mean square distance of features, ``(B,)``."""
    both = embed_samples(features, torch.cat([samples, endpoints]))
    return root_mean_square(*both.chunk(2))


def feature_distance(teacher: Teacher, features: nn.Module | None = None) -> Distance:
    """The distance of :class:`FeatureAlignment`, not scaled; ``features`` default to those for the sample shape."""
    return partial(feature_root_mean_square, placed_features(features, teacher))


def embed_samples(features: nn.Module, samples: Tensor) -> Tensor:
    """Features ``(B, D)`` of samples ``(B, *S)``."""
    found: Tensor = features(samples) if isinstance(features, LatentFeatures) else embed(features, samples)
    return found


def placed_features(features: nn.Module | None, teacher: Teacher) -> nn.Module:
    """A feature network of what the teacher's samples show, frozen, on its device."""
    network = features or load_features(default_features(teacher.image_shape), teacher.image_shape)
    network = network.eval().requires_grad_(False).to(teacher.device)
    if teacher.decoder is not None:
        return LatentFeatures(network, teacher)
    return network if teacher.bounds is None else nn.Sequential(nn.Hardtanh(*teacher.bounds), network)
