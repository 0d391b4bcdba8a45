"""Linear steps as a diffusers model, so that a pipeline can hold, move and save them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from redif_env.diffusion.placement import HOST
from redif_env.fitted.linear_solver import LinearSolver


class LinearSolverModel(ModelMixin, ConfigMixin):
    """:class:`~redif_env.fitted.linear_solver.LinearSolver` with diffusers' saving and loading.

    Args:
        half_logsnr: the levels that steps start from.
        size: numbers of one sample.
        conditions: rows of the teacher's conditions.
        clipped: whether predictions are clipped first.
    """

    @register_to_config
    def __init__(self, half_logsnr: Sequence[float], size: int, conditions: int = 1, clipped: bool = False) -> None:
        super().__init__()
        steps = len(half_logsnr)
        self.matrices = nn.Parameter(
            torch.zeros(steps, steps + 1, size, size, dtype=torch.float32, device=HOST), requires_grad=False
        )
        self.offset = nn.Parameter(
            torch.zeros(steps, conditions, size, dtype=torch.float32, device=HOST), requires_grad=False
        )

    @property
    def solver(self) -> LinearSolver:
        """The solver itself."""
        levels, clipped = tuple(self.config.half_logsnr), self.config.clipped
        return LinearSolver(levels, self.matrices.detach(), self.offset.detach(), clipped)

    @classmethod
    def of(cls, solver: LinearSolver) -> LinearSolverModel:
        """The model of a solver, with its own copy of the numbers."""
        size, conditions = solver.matrices.shape[-1], solver.offset.shape[1]
        model = cls(list(solver.half_logsnr), size, conditions, solver.clipped)
        model.load_state_dict({"matrices": solver.matrices, "offset": solver.offset})
        return model.to(solver.matrices.device).eval()
