"""DyWeight: multistep weights without constraints, by the gradient through the sampler (arXiv 2603.11607).

A multistep solver's weights sum to 1 and follow from a polynomial. Here the weights of all past directions are free at
each step; their sum scales the step itself. They begin as iPNDM's. As for all gradient rivals here the loss is the
feature distance of the endpoints, not the authors' (which is why it is called DyWeight-like).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.rivals.descent import descend, through_sampler
from experiments.rivals.rival import Clock, Fitted, Sampler, Task, in_batches, nearest, remaining
from experiments.rivals.sigma_space import SigmaSpace, adams_bashforth, sigma_space, weighted
from redif_env.diffusion.grids import GRIDS
from redif_env.judging.baselines import SOLVER_GRIDS

ORDERS = (2, 3)
RATE, EMA = 1e-2, 0.95


class Weights(nn.Module):
    """Weights ``(num_steps, num_steps)`` of the directions of each step, newest first; iPNDM's before training."""

    def __init__(self, space: SigmaSpace, order: int) -> None:
        super().__init__()
        self.space = space
        values = torch.zeros(space.num_steps, space.num_steps)
        for index in range(space.num_steps):
            usable = min(order, index + 1)
            values[index, :usable] = adams_bashforth(usable).float()
        self.values = nn.Parameter(values)

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Samples ``(B, *S)``, with a gradient."""
        space, x, directions = self.space, self.space.place(noise, 0), []
        for index, weights in enumerate(self.values):
            directions.insert(0, space.direction(x, space.half_logsnr[index], condition))
            x = x + (space.sigma[index + 1] - space.sigma[index]).to(x) * weighted(weights, directions)
        return x


def dyweight(task: Task) -> Fitted:
    """From the order and grid of iPNDM that the chooser's noises prefer."""
    clock = Clock(task.seconds, task.calls)
    spaces = {grid: sigma_space(task.teacher, GRIDS[grid], task.num_steps) for grid in SOLVER_GRIDS}
    modules = {f"ipndm{order} {grid}": Weights(space, order) for grid, space in spaces.items() for order in ORDERS}
    best = nearest(task, {name: in_batches(module) for name, module in modules.items()}, clock)
    module = modules[best]

    def sampler_of(averaged: nn.Module) -> Sampler:
        stored = Weights(module.space, 1)
        stored.load_state_dict(averaged.state_dict())
        return in_batches(stored)

    descent = through_sampler(task, module, RATE, EMA)
    found = descend(remaining(task, clock), module, descent, sampler_of, untrained=True)
    calls = clock.network_calls + found.network_calls
    return Fitted(found.sampler, clock.spent, calls, f"dyweight {best}")
