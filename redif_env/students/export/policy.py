"""A policy as a diffusers model, so that a pipeline can hold, move and save it."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from redif_env.mdp.policies import Policy, PolicyConfig


class PolicyModel(ModelMixin, ConfigMixin):
    """:class:`~redif_env.mdp.policies.Policy` with diffusers' saving and loading.

    Args:
        sizes, activation, squash, input_clip: as in :class:`~redif_env.mdp.policies.PolicyConfig`.
    """

    @register_to_config
    def __init__(
        self,
        sizes: Sequence[int],
        activation: str = "tanh",
        squash: bool = False,
        input_clip: float | None = None,
    ) -> None:
        super().__init__()
        self.policy = Policy(PolicyConfig(tuple(sizes), activation, squash, input_clip))

    def forward(self, observations: Tensor) -> Tensor:
        """Actions ``(B, A)`` for observations ``(B, F)``."""
        actions: Tensor = self.policy(observations)
        return actions

    @classmethod
    def of(cls, policy: Policy) -> PolicyModel:
        """The model of a policy, with its own copy of the weights."""
        model = cls(**policy.config.to_json())
        model.policy.load_state_dict(policy.state_dict())
        return model.to(policy.linears[0].weight.device).eval()
