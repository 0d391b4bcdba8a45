"""Rewards by distance to the teacher's endpoint: once at the end, or step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from redif_env.diffusion.types import Transition, chosen
from redif_env.mdp.process import DenoisingMDP
from redif_env.measures.distances import Distance, root_mean_square
from redif_env.rewards.calibration import base_distance
from redif_env.rewards.reward import check_scale, when_finished
from redif_env.teachers.references import ReferenceSet
from redif_env.teachers.teacher import Teacher


@dataclass(frozen=True)
class EndpointAlignment:
    """Minus the finished sample's distance to the teacher's endpoint, over ``scale``; 0 before the end.

    The default distance is not squared, so that the few noises whose error stays large whatever is done do not drown
    the many that can be helped. An episode of the base solver pays -1 on average, one of the teacher 0.
    """

    scale: float
    distance: Distance = root_mean_square
    name: str = "endpoint"

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def __call__(self, transition: Transition) -> Tensor:
        return when_finished(self.name, transition, self.distance) * (-1 / self.scale)

    @classmethod
    def calibrated(
        cls,
        mdp: DenoisingMDP,
        reference: ReferenceSet,
        distance: Distance = root_mean_square,
        name: str | None = None,
    ) -> Self:
        """With the base solver's mean distance over the reference set as scale."""
        return cls(base_distance(mdp, reference, distance), distance, name or cls.name)


@dataclass(frozen=True)
class TrajectoryAlignment(EndpointAlignment):
    """How much nearer each step brought the predicted clean sample to the endpoint: the endpoint reward made dense.

    Potential-based shaping (Ng et al. 1999): the potential of a state is minus the distance of the network's clean
    prediction there (of the sample itself, once finished), and 0 before the first step. Undiscounted, an episode's sum
    is the endpoint reward, so the optimal policy is the same.
    """

    name: str = "trajectory"
    own: bool = False
    """Whether the predictions are the student's own: then every one depends on an action, the first too."""

    def __call__(self, transition: Transition) -> Tensor:
        before, after = transition.state, transition.next_state
        known = before.x0_history[:, 1 if self.own else 0]
        distance = self.distance(known, transition.endpoint)
        # The first prediction depends on the noise, not on an action: where it counts as 0, the sum telescopes.
        potential = distance * (before.predictions > 1).to(distance)
        reached = chosen(transition.terminated, after.x, after.x0_history[:, 0])
        return (potential - self.distance(reached, transition.endpoint)) / self.scale

    @classmethod
    def calibrated(
        cls,
        mdp: DenoisingMDP,
        reference: ReferenceSet,
        distance: Distance = root_mean_square,
        name: str | None = None,
    ) -> Self:
        """As :meth:`EndpointAlignment.calibrated`."""
        return replace(super().calibrated(mdp, reference, distance, name), own=mdp.action_map.predicts)


@dataclass(frozen=True)
class ImageDistance:
    """A distance of images, between latents: both are decoded first."""

    distance: Distance
    teacher: Teacher

    def __call__(self, samples: Tensor, endpoints: Tensor) -> Tensor:
        return self.distance(self.teacher.images(samples), self.teacher.images(endpoints))


def of_images(distance: Distance, teacher: Teacher) -> Distance:
    """A distance between what the teacher's samples show: for latents, between the decoded images."""
    return distance if teacher.decoder is None else ImageDistance(distance, teacher)
