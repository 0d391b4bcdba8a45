"""The names of the rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from redif_env.mdp.process import DenoisingMDP
from redif_env.measures.distances import squared_error, structural_dissimilarity
from redif_env.measures.kernels import EnergyKernel
from redif_env.rewards.cost import StepCost
from redif_env.rewards.distribution import DistributionAlignment
from redif_env.rewards.endpoint import EndpointAlignment, TrajectoryAlignment, image_distance
from redif_env.rewards.feature import feature_alignment
from redif_env.rewards.path import PathAlignment
from redif_env.rewards.reward import Reward, Term
from redif_env.storage.checks import check_argument
from redif_env.teachers.references import ReferenceSet

RewardFactory = Callable[[DenoisingMDP, ReferenceSet], Reward]

REWARDS: dict[str, RewardFactory] = {
    "endpoint": EndpointAlignment.calibrated,
    "endpoint_squared": lambda mdp, ref: EndpointAlignment.calibrated(mdp, ref, squared_error, "endpoint_squared"),
    "endpoint_ssim": lambda mdp, ref: EndpointAlignment.calibrated(
        mdp, ref, image_distance(structural_dissimilarity, mdp.teacher), "endpoint_ssim"
    ),
    "feature": feature_alignment,
    "trajectory": TrajectoryAlignment.calibrated,
    "path": PathAlignment.calibrated,
    "mmd": DistributionAlignment.calibrated,
    "energy": lambda mdp, ref: DistributionAlignment.calibrated(mdp, ref, EnergyKernel(), name="energy"),
    "step_cost": lambda mdp, ref: StepCost(1.0),
    "price": lambda mdp, ref: StepCost(name="price"),
}
"""Reward factories by their names in ``gym.make`` and at the command line."""


def build_terms(weights: Mapping[str, float], mdp: DenoisingMDP, reference: ReferenceSet) -> list[Term]:
    """The terms of the weighted sum ``{name: weight}``.

    Raises:
        ValueError: if a name is unknown, or ``weights`` is empty.
    """
    if not weights:
        raise ValueError("reward has no term: give at least one, as in {'endpoint': 1.0}")
    for name in weights:
        if name not in REWARDS:
            raise ValueError(f"reward={name!r} is unknown: choose one of {', '.join(map(repr, REWARDS))}")
        check_argument(f"reward[{name!r}]", weights[name], float)
    return [Term(REWARDS[name](mdp, reference), weight) for name, weight in weights.items()]
