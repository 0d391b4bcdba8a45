"""PAS: PCA-based adaptive search (Wang et al. 2024, arXiv 2411.06503, Sec. 3).

Sampling trajectories lie in a space of few dimensions. At each step the direction is replaced by a combination of an
orthonormal basis, made of itself and of the principal directions of what came before it (the noise and the past
directions). The coordinates are shared by all samples. Here they are the least-squares solution, which is the authors'
L2 loss at its minimum; the authors descend on it. Steps that gain little are not corrected (their adaptive search).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.rivals.rival import Clock, Fitted, Sampler, Task, in_batches, nearest
from experiments.rivals.sigma_space import Pool, SigmaSpace, adams_bashforth, pool_of, sigma_space, weighted
from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.placement import HOST
from redif_env.judging.baselines import SOLVER_GRIDS

ORDERS = (1, 3)
"""Of iPNDM, whose directions are corrected: Euler and the authors' default."""
PRINCIPAL = 3
"""Principal directions beside the direction itself, as in the paper."""
GAIN = 0.01
"""Least share of the squared error that a correction must take off."""


@dataclass(frozen=True)
class PAS:
    """A sampler of corrected directions; ``coordinates`` of each step, none where it is not corrected."""

    space: SigmaSpace
    order: int
    coordinates: tuple[Tensor | None, ...]

    def __call__(self, noise: Tensor, condition: Tensor) -> Tensor:
        return in_batches(self._sample)(noise, condition)

    def _sample(self, noise: Tensor, condition: Tensor) -> Tensor:
        x, past = self.space.place(noise, 0), [self.space.place(noise, 0)]
        for index, coordinates in enumerate(self.coordinates):
            direction = self.space.direction(x, self.space.half_logsnr[index], condition)
            if coordinates is not None:
                direction = corrected(basis(direction, past, x), coordinates, direction)
            past.append(direction)
            x = step(self.space, self.order, index, x, past)
        return x


def pas(task: Task) -> Fitted:
    """With the base and grid that the chooser's noises prefer, after the correction."""
    clock, pool = Clock(task.seconds, task.calls), pool_of(task.teacher, task.reference, task.trajectories)
    found: dict[str, Sampler] = {}
    for order in ORDERS:
        for grid in SOLVER_GRIDS:
            space = sigma_space(task.teacher, GRIDS[grid], task.num_steps)
            found[f"pas ipndm{order} {grid}"] = PAS(space, order, fit(space, order, pool))
            clock.network_calls += len(pool.noise) * task.nfe
    best = nearest(task, found, clock)
    return Fitted(found[best], clock.spent, clock.network_calls, best)


@torch.inference_mode()
def fit(space: SigmaSpace, order: int, pool: Pool) -> tuple[Tensor | None, ...]:
    """The coordinates of each step, one after another, on the teacher's trajectories."""
    noise = pool.noise.to(space.teacher.device)
    x, past, targets, found = space.place(noise, 0), [space.place(noise, 0)], pool.targets(space), []
    for index in range(space.num_steps):
        direction = space.direction(x, space.half_logsnr[index], pool.condition)
        plain, vectors = step(space, order, index, x, [*past, direction]), basis(direction, past, x)
        # The step is linear in its newest direction.
        without = step(space, order, index, x, [*past, torch.zeros_like(direction)])
        size = step(space, order, index, torch.zeros_like(x), [torch.zeros_like(x)] * len(past) + [torch.ones_like(x)])
        scaled = vectors * on_host(size.flatten(1))[:, None]
        target = on_host((targets[index + 1] - without).flatten(1))
        coordinates = torch.linalg.lstsq(
            torch.einsum("nid,njd->ij", scaled, scaled), torch.einsum("nid,nd->i", scaled, target)[:, None]
        ).solution[:, 0]
        better = step(space, order, index, x, [*past, corrected(vectors, coordinates, direction)])
        before, after = ((end - targets[index + 1]).square().mean() for end in (plain, better))
        kept = bool(after < (1 - GAIN) * before)
        found.append(coordinates if kept else None)
        past.append(corrected(vectors, coordinates, direction) if kept else direction)
        x = better if kept else plain
    return tuple(found)


def step(space: SigmaSpace, order: int, index: int, x: Tensor, past: list[Tensor]) -> Tensor:
    """A step of iPNDM; ``past`` holds the first sample and then all directions, oldest first."""
    weights = adams_bashforth(min(order, len(past) - 1))
    sigma = space.sigma
    return x + (sigma[index + 1] - sigma[index]).to(x) * weighted(weights, past[:0:-1])


def basis(direction: Tensor, past: list[Tensor], x: Tensor) -> Tensor:
    """Orthonormal vectors ``(N, K, D)``: the direction, and the principal directions of the rest of the past.

    Each principal direction points along the way from the first sample to ``x``. They are float64, on the host: not
    every device has this type.
    """
    rows = on_host(torch.stack(past, dim=1).flatten(2))
    first = torch.nn.functional.normalize(on_host(direction.flatten(1)), dim=1)
    rest = rows - (rows @ first[:, :, None]) * first[:, None]
    values, vectors = torch.linalg.eigh(rest @ rest.transpose(1, 2))
    values, vectors = values.flip(1)[:, :PRINCIPAL], vectors.flip(2)[:, :, :PRINCIPAL]
    # What has no size has no direction; such a vector is zero.
    sizes = torch.where(values > 1e-9 * values[:, :1], values, torch.inf).sqrt()
    principal = vectors.transpose(1, 2) @ rest / sizes[:, :, None]
    travelled = on_host(x.flatten(1)) - (rows[:, 0] if len(past) > 1 else 0)
    signs = torch.where((principal @ travelled[:, :, None]) < 0, -1.0, 1.0)
    return torch.cat([first[:, None], signs * principal], dim=1)


def on_host(values: Tensor) -> Tensor:
    return values.to(HOST, torch.float64)


def corrected(vectors: Tensor, coordinates: Tensor, like: Tensor) -> Tensor:
    """The direction ``(N, *S)`` with these coordinates."""
    return torch.einsum("nid,i->nd", vectors, coordinates).to(like).reshape(like.shape)
