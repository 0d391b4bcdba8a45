"""Rewards by the distance to the teacher's endpoint: terminal, or shaped over the steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from redif_env.diffusion.types import Transition, chosen
from redif_env.mdp.process import DenoisingMDP
from redif_env.measures.distances import Distance, root_mean_square
from redif_env.rewards.calibration import base_distance
from redif_env.rewards.reward import check_scale, terminal_values
from redif_env.teachers.references import ReferenceSet
from redif_env.teachers.teacher import Teacher


@dataclass(frozen=True)
class EndpointAlignment:
    """Minus the distance of the final sample to the teacher's endpoint, over ``scale``; 0 before the last step.

    With the scale of :meth:`calibrated`, the base solver's mean return is -1 and the teacher's is 0. The default
    distance is the RMSE rather than the MSE, so that the few noises with large errors do not dominate.
    """

    scale: float
    distance: Distance = root_mean_square
    name: str = "endpoint"

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def __call__(self, transition: Transition) -> Tensor:
        return terminal_values(self.name, transition, self.distance) * (-1 / self.scale)

    @classmethod
    def calibrated(
        cls,
        mdp: DenoisingMDP,
        reference: ReferenceSet,
        distance: Distance = root_mean_square,
        name: str | None = None,
    ) -> Self:
        """Make the reward with the base solver's mean distance over the reference set as scale."""
        return cls(base_distance(mdp, reference, distance), distance, name or cls.name)


@dataclass(frozen=True)
class TrajectoryAlignment(EndpointAlignment):
    """The decrease in distance between predicted clean sample and endpoint at each step: the endpoint reward, shaped.

    Potential-based shaping (Ng et al. 1999). The potential of a state is minus the distance of the network's clean
    prediction, of the sample itself at the end, and 0 before the first step. The undiscounted return is the endpoint
    reward, so the optimal policy is the same.
    """

    name: str = "trajectory"
    predicted_by_action: bool = False
    """Whether actions hold the predictions (``action="noise"``), so that the first prediction is an action too."""

    def __call__(self, transition: Transition) -> Tensor:
        before, after = transition.state, transition.next_state
        x0_before = before.x0_history[:, 1 if self.predicted_by_action else 0]
        distance = self.distance(x0_before, transition.endpoint)
        # The first prediction depends on the noise alone; its potential of 0 makes the sum telescope.
        potential = distance * (before.predictions > 1).to(distance)
        x0_after = chosen(transition.terminated, after.x, after.x0_history[:, 0])
        return (potential - self.distance(x0_after, transition.endpoint)) / self.scale

    @classmethod
    def calibrated(
        cls,
        mdp: DenoisingMDP,
        reference: ReferenceSet,
        distance: Distance = root_mean_square,
        name: str | None = None,
    ) -> Self:
        """As :meth:`EndpointAlignment.calibrated`."""
        bare = super().calibrated(mdp, reference, distance, name)
        return replace(bare, predicted_by_action=mdp.action_map.predicts)


@dataclass(frozen=True)
class DecodedDistance:
    """An image distance between latents, which are decoded first."""

    distance: Distance
    teacher: Teacher

    def __call__(self, samples: Tensor, endpoints: Tensor) -> Tensor:
        return self.distance(self.teacher.images(samples), self.teacher.images(endpoints))


def image_distance(distance: Distance, teacher: Teacher) -> Distance:
    """An image distance as a distance of the teacher's samples; latents are decoded first."""
    return distance if teacher.decoder is None else DecodedDistance(distance, teacher)
