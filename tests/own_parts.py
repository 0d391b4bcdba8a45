"""What a user brings along: an action map and a reward, importable as any module of the user's."""

from dataclasses import dataclass

import torch

from redif_env.mdp.actions import ActionMap, StepMap


@dataclass(frozen=True)
class Twice(ActionMap):
    """A step size of twice the shift, and of whatever else there is nothing."""

    max_shift: float = 1.0
    weights: tuple[float, ...] = (2.0,)

    def size(self, sample_shape):
        return 1

    def decode(self, action, state, base):
        return StepMap(self.max_shift * self.weights[0]).decode(action, state, base)


def darkness(transition):
    """Minus the mean of finished samples."""
    return torch.where(transition.terminated, -transition.next_state.x.flatten(1).mean(dim=1), 0.0)
