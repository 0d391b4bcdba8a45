"""The policy a student carries: a small network from observation to action, free of any RL library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from redif_env.diffusion.placement import HOST

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


@dataclass(frozen=True)
class PolicyConfig:
    """Shape of a :class:`Policy`.

    ``sizes``: observation, hidden layers, action; ``activation``: a name of ``ACTIVATIONS``; ``squash``: the output
    goes through tanh if true (SAC, TD3), else it is clipped (PPO, A2C); ``input_clip``: observations are normalised
    first, and clipped to ``+-input_clip``; not if None.
    """

    sizes: tuple[int, ...]
    activation: str = "tanh"
    squash: bool = False
    input_clip: float | None = None

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            known = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"activation={self.activation!r} is unknown: choose one of {known}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Policy(nn.Module):
    """Deterministic multilayer perceptron: observations ``(B, F)`` to actions ``(B, A)`` in [-1, 1]."""

    input_mean: Tensor
    input_scale: Tensor

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for inputs, outputs in zip(config.sizes[:-1], config.sizes[1:], strict=True):
            layers += [nn.Linear(inputs, outputs, dtype=torch.float32, device=HOST), ACTIVATIONS[config.activation]()]
        self.layers = nn.Sequential(*layers[:-1])
        if config.input_clip is not None:
            self.register_buffer("input_mean", torch.zeros(config.sizes[0]))
            self.register_buffer("input_scale", torch.ones(config.sizes[0]))

    def forward(self, observations: Tensor) -> Tensor:
        if self.config.input_clip is not None:
            clip = self.config.input_clip
            observations = ((observations - self.input_mean) * self.input_scale).clamp(-clip, clip)
        output: Tensor = self.layers(observations.to(self.linears[0].weight.dtype)).float()
        return output.tanh() if self.config.squash else output.clamp(-1, 1)

    @classmethod
    def from_linears(
        cls,
        linears: Sequence[nn.Linear],
        activation: str,
        squash: bool,
        normaliser: tuple[Tensor, Tensor, float | None] | None = None,
    ) -> Policy:
        """A policy with copies of the given layers.

        ``normaliser``, if given, are a mean ``(F,)``, a scale ``(F,)`` and a clip: the first layer is given
        ``(observation - mean) * scale``, clipped.
        """
        sizes = (linears[0].in_features, *(linear.out_features for linear in linears))
        policy = cls(PolicyConfig(sizes, activation, squash, None if normaliser is None else normaliser[2]))
        with torch.no_grad():
            if normaliser is not None:
                policy.input_mean.copy_(normaliser[0])
                policy.input_scale.copy_(normaliser[1])
            for own, given in zip(policy.linears, linears, strict=True):
                own.load_state_dict(given.state_dict())
        return policy

    @classmethod
    def from_table(cls, table: Tensor, num_features: int) -> Policy:
        """A policy that looks at nothing but the steps left.

        Args:
            table: ``(num_steps, A)``, the action of each step.
            num_features: size of an observation, of which the first ``num_steps`` are the steps left, one-hot.
        """
        linear = nn.Linear(num_features, table.shape[1], dtype=torch.float32, device=HOST)
        with torch.no_grad():
            linear.weight.zero_()
            linear.bias.zero_()
            # Step k of n has n - k steps left, number n - k - 1 of the one-hot.
            linear.weight[:, : len(table)] = table.flip(0).T
        return cls.from_linears([linear], "tanh", squash=False)

    def table(self, num_steps: int) -> Tensor | None:
        """The actions ``(num_steps, A)`` of a policy that looks at nothing but the steps left; None for any other."""
        (first, *others) = self.linears
        normalised = self.config.input_clip is not None
        if others or normalised or self.config.squash or bool(first.weight[:, num_steps:].any()):
            return None
        return (first.weight[:, :num_steps].T.flip(0) + first.bias).clamp(-1, 1).detach()

    @property
    def linears(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]
