"""The cost of network calls, for students that choose their number of steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redif_env.diffusion.types import Transition


@dataclass(frozen=True)
class StepCost:
    """A penalty of ``cost`` per network call; an episode of n calls returns ``-cost * n``.

    If ``cost`` is None, the price of the episode (``State.price``) is used. The unit is that of
    :class:`EndpointAlignment`: at 0.01, one more call pays off if it reduces the distance by 1 % of the base solver's.
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
