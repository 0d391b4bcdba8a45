"""The cost of network calls, where their number is a decision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redif_env.diffusion.types import Transition


@dataclass(frozen=True)
class StepCost:
    """Minus a price for each network call, which makes the number of steps itself a decision.

    An episode of n calls pays ``-cost * n``. Without a ``cost``, each episode's own price is taken
    (``State.price``). In units of :class:`EndpointAlignment`: at a cost of 0.01, a call more is
    worth it if it takes a hundredth off the base solver's distance.
    """

    cost: float | None = None
    name: str = "step_cost"

    def __post_init__(self) -> None:
        if self.cost is not None and not self.cost >= 0:
            raise ValueError(f"cost must be at least 0, got {self.cost}: it is subtracted from the reward")

    def __call__(self, transition: Transition) -> Tensor:
        state = transition.state
        # A guided prediction is two network calls.
        calls = state.nfe // state.predictions.clamp(min=1)
        return -(state.price if self.cost is None else torch.full_like(state.price, self.cost)) * calls
