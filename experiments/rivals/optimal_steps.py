"""OptimalSteps: a schedule by dynamic programming on the student's own error (arXiv 2503.21774, Alg. 1).

Unlike GITS, which adds up errors of single steps, the error at a level after k steps is that of a whole trajectory: the
student's samples by the best schedule of k steps to that level. They step by Euler's method in sigma space; as for GITS
the schedule is then tried with each solver.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.rivals import gits
from experiments.rivals.rival import Clock, Fitted, Task
from experiments.rivals.sigma_space import SigmaSpace, sigma_space
from redif_env.diffusion.grids import GRIDS

NOISES = 32
"""Trajectories whose error is minimised; the search evaluates the network at all levels after each number of steps."""


def optimal_steps(task: Task) -> Fitted:
    """The best schedule over the fine grids, with the solver that the chooser's noises prefer."""
    clock, paths = Clock(task.seconds), []
    for name in gits.TRIED_GRIDS:
        space = sigma_space(task.teacher, GRIDS[name], gits.FINE)
        x, _ = gits.fine_trajectory(task, GRIDS[name], space)
        clock.network_calls += x.shape[1] * gits.FINE * task.teacher.calls
        shaped = x[:, :NOISES].unflatten(2, task.teacher.sample_shape)
        path, calls = searched_path(space, shaped, task.reference.condition[: shaped.shape[1]], task.num_steps)
        clock.network_calls += calls
        paths.append((name, path))
    return gits.best_schedule(task, paths, clock)


@torch.inference_mode()
def searched_path(space: SigmaSpace, teacher: Tensor, condition: Tensor, num_steps: int) -> tuple[tuple[int, ...], int]:
    """The levels that the steps of the best schedule start from, and the network calls of the search.

    ``teacher`` ``(levels, N, *S)``: its trajectories in sigma space.
    """
    last, sigma, calls = space.num_steps, space.sigma.to(teacher), 0
    reached: dict[int, tuple[tuple[int, ...], Tensor]] = {0: ((), teacher[0])}
    for step in range(1, num_steps + 1):
        best: dict[int, tuple[float, tuple[int, ...], Tensor]] = {}
        for i, (path, x) in reached.items():
            eps = space.direction(x, space.half_logsnr[i], condition)
            calls += len(x) * space.teacher.calls
            # Levels have to be left for the steps to come; the last step goes to the last level.
            for j in range(i + 1, last - num_steps + step + 1) if step < num_steps else (last,):
                end = x + (sigma[j] - sigma[i]) * eps
                error = (end - teacher[j]).square().mean().item()
                if j not in best or error < best[j][0]:
                    best[j] = (error, (*path, i), end)
        reached = {j: (path, end) for j, (_, path, end) in best.items()}
    return reached[last][0], calls
