"""A reward from a user's function."""

from __future__ import annotations

import inspect
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

    Raises:
        TypeError: if ``fn`` cannot be called with one argument.
    """

    fn: Callable[[Transition], Tensor]
    name: str = field(default="custom")

    def __post_init__(self) -> None:
        try:
            taken = inspect.signature(self.fn)
        except (TypeError, ValueError):  # builtins may have none
            return
        try:
            taken.bind(None)
        except TypeError as error:
            raise TypeError(f"reward {self.name!r} must be a function of one Transition ({error})") from error

    def __call__(self, transition: Transition) -> Tensor:
        return self.fn(transition)
