"""A reward from a user's function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from redif_env.diffusion.types import Transition


@dataclass(frozen=True)
class CallableReward:
    """A reward from any function of the transition; it need not be differentiable.

    Args:
        fn: takes a ``Transition`` of B episodes and returns a tensor ``(B,)``, on the host or the samples' device.
        name: the name of the reward: its values are ``info["reward/<name>"]``.
    """

    fn: Callable[[Transition], Tensor]
    name: str = field(default="custom")

    def __call__(self, transition: Transition) -> Tensor:
        return self.fn(transition)
