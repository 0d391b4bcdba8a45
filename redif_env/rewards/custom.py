"""Any function of the transition as a reward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from redif_env.diffusion.types import Transition


@dataclass(frozen=True)
class CallableReward:
    """Any function of the transition as a reward: differentiable or not, a network's answer, a file's size, a count.

    ``fn`` takes a ``Transition`` of B episodes and returns a tensor ``(B,)``, on the host or where the samples are.
    """

    fn: Callable[[Transition], Tensor]
    name: str = field(default="custom")

    def __call__(self, transition: Transition) -> Tensor:
        return self.fn(transition)
