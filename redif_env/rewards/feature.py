"""The reward by the distance to the teacher's endpoint in feature space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redif_env.mdp.process import DenoisingMDP
from redif_env.measures.distances import root_mean_square
from redif_env.measures.features import default_features, embed, load_features
from redif_env.rewards.endpoint import EndpointAlignment
from redif_env.teachers.references import ReferenceSet
from redif_env.teachers.teacher import Teacher


@dataclass(frozen=True)
class FeatureDistance:
    """RMSE of features ``(B,)``."""

    features: nn.Module

    def __call__(self, samples: Tensor, endpoints: Tensor) -> Tensor:
        both = embed_samples(self.features, torch.cat([samples, endpoints]))
        return root_mean_square(*both.chunk(2))


def feature_alignment(
    mdp: DenoisingMDP, reference: ReferenceSet, features: nn.Module | None = None, name: str = "feature"
) -> EndpointAlignment:
    """The endpoint reward with the RMSE of features as distance, which is closer to a Frechet distance.

    ``features`` default to the sample shape's.
    """
    return EndpointAlignment.calibrated(mdp, reference, FeatureDistance(frozen_features(features, mdp.teacher)), name)


class LatentFeatures(nn.Module):
    """Features ``(B, D)`` of the images decoded from latents ``(B, *S)``."""

    def __init__(self, features: nn.Module, teacher: Teacher) -> None:
        super().__init__()
        self.features, self.teacher = features, teacher

    def forward(self, latents: Tensor) -> Tensor:
        return embed(self.features, self.teacher.images(latents))


def embed_samples(features: nn.Module, samples: Tensor) -> Tensor:
    """Features ``(B, D)`` of samples ``(B, *S)``."""
    found: Tensor = features(samples) if isinstance(features, LatentFeatures) else embed(features, samples)
    return found


def frozen_features(features: nn.Module | None, teacher: Teacher) -> nn.Module:
    """A frozen feature network for the teacher's samples, on the teacher's device; latents are decoded first."""
    network = features or load_features(default_features(teacher.image_shape), teacher.image_shape)
    network = network.eval().requires_grad_(False).to(teacher.device)
    if teacher.decoder is not None:
        return LatentFeatures(network, teacher)
    return network if teacher.bounds is None else nn.Sequential(nn.Hardtanh(*teacher.bounds), network)
