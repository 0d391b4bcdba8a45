"""A linear start as a diffusers model, so that a pipeline can hold, move and save it."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from redif_env.fitted.initial_maps import LinearStart


class StartModel(ModelMixin, ConfigMixin):
    """:class:`~redif_env.fitted.initial_maps.LinearStart` with diffusers' saving and loading.

    Args:
        half_logsnr: the level that it leads to.
        size: numbers of one sample.
        conditions: rows of the teacher's conditions.
    """

    @register_to_config
    def __init__(self, half_logsnr: float, size: int, conditions: int = 1) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(size), requires_grad=False)
        self.offset = nn.Parameter(torch.zeros(conditions, size), requires_grad=False)

    @property
    def start(self) -> LinearStart:
        """What is held."""
        return LinearStart(self.config.half_logsnr, self.matrix.detach(), self.offset.detach())

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Where the way from ``noise`` ``(B, *S)`` is taken to have come to, for rows ``condition`` ``(B,)``."""
        return self.start(noise, condition)

    @classmethod
    def of(cls, start: LinearStart) -> StartModel:
        """The model of a start, with its own copy of the numbers."""
        model = cls(start.half_logsnr, len(start.matrix), len(start.offset))
        model.load_state_dict({"matrix": start.matrix, "offset": start.offset})
        return model.to(start.matrix.device).eval()
