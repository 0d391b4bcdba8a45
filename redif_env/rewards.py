"""Rewards: pure functions of a batched transition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from redif_env.types import Transition


class Reward(Protocol):
    """A named reward term: ``(B,)`` from a transition of B episodes."""

    @property
    def name(self) -> str: ...

    def __call__(self, transition: Transition) -> Tensor: ...


@dataclass(frozen=True)
class EndpointAlignment:
    """Minus the finished sample's distance to the teacher's endpoint, over ``scale``; zero before the end.

    The distance is the root mean square over dimensions. It is not squared, so that the few noises whose error stays
    large whatever is done do not drown the many that can be helped. With the base solver's mean distance as ``scale``,
    the base solver scores -1 on average and the teacher 0.
    """

    scale: float
    name: str = "endpoint"

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0, got {self.scale}: the base solver already equals the teacher")

    def __call__(self, transition: Transition) -> Tensor:
        return torch.where(
            transition.terminated, -distance(transition.next_state.x, transition.endpoint) / self.scale, 0.0
        )


def distance(samples: Tensor, endpoints: Tensor) -> Tensor:
    """Root mean square difference over dimensions, ``(B,)``, of two batches ``(B, *S)``."""
    return (samples - endpoints).flatten(1).square().mean(dim=1).sqrt()
