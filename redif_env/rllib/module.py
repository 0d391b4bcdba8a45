"""RLlib's PPO module with a calm start: the base solver, and a little exploration."""

from __future__ import annotations

import math

import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import nn

INITIAL_STD = 0.2
"""Standard deviation of actions at the start."""


class CalmModule(DefaultPPOTorchRLModule):
    """RLlib's own module, whose mean action is nearly zero at the start: the base solver.

    The stock one starts with deviations of 1, at returns of -4 to -8. Needs ``free_log_std=True``; :meth:`spec` has it.
    """

    def setup(self) -> None:
        super().setup()
        head = [layer for layer in self.pi.modules() if isinstance(layer, nn.Linear)][-1]
        with torch.no_grad():
            head.weight.mul_(0.01)
            head.bias.zero_()
        self.set_std(INITIAL_STD)

    def set_std(self, std: float) -> None:
        """Set the deviation of actions, which the gradient does not change: it would fall too early."""
        self.pi.log_std.requires_grad_(False).fill_(math.log(std))

    @classmethod
    def spec(cls, hidden: tuple[int, ...] = (64, 64)) -> RLModuleSpec:
        """For ``config.rl_module(rl_module_spec=...)``."""
        model = DefaultModelConfig(
            fcnet_hiddens=list(hidden), fcnet_activation="tanh", vf_share_layers=False, free_log_std=True
        )
        return RLModuleSpec(module_class=cls, model_config=model)
