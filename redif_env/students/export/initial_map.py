"""A linear initial map as a diffusers model, so that a pipeline can hold, move and save it."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from redif_env.diffusion.placement import HOST
from redif_env.fitted.initial_maps import LinearInitialMap


class InitialMapModel(ModelMixin, ConfigMixin):
    """:class:`~redif_env.fitted.initial_maps.LinearInitialMap` with diffusers' saving and loading.

    Args:
        half_logsnr: the level that it leads to.
        size: numbers of one sample.
        conditions: rows of the teacher's conditions.
    """

    @register_to_config
    def __init__(self, half_logsnr: float, size: int, conditions: int = 1) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(size, dtype=torch.float32, device=HOST), requires_grad=False)
        self.offset = nn.Parameter(torch.zeros(conditions, size, dtype=torch.float32, device=HOST), requires_grad=False)

    @property
    def initial_map(self) -> LinearInitialMap:
        """The map itself."""
        return LinearInitialMap(self.config.half_logsnr, self.matrix.detach(), self.offset.detach())

    @classmethod
    def of(cls, initial_map: LinearInitialMap) -> InitialMapModel:
        """The model of an initial map, with its own copy of the numbers."""
        model = cls(initial_map.half_logsnr, len(initial_map.matrix), len(initial_map.offset))
        model.load_state_dict({"matrix": initial_map.matrix, "offset": initial_map.offset})
        return model.to(initial_map.matrix.device).eval()
