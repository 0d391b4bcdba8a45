"""From the layers of a trained network to the policy that a student carries."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from numpy.typing import NDArray
from torch import nn

from redif_env.mdp.observations import BOUND
from redif_env.mdp.policies import ACTIVATIONS, Policy
from redif_env.mdp.process import DenoisingMDP

if TYPE_CHECKING:
    from redif_env.envs.between import Between


def policy_of(modules: Sequence[nn.Module], squash: bool | None = None, num_actions: int | None = None) -> Policy:
    """The policy of linear layers with one kind of activation between them, one after the other in ``modules``.

    Args:
        modules: the layers, or modules that hold them.
        squash: whether the last layer's output goes through tanh; by default, whether a ``Tanh`` follows it.
        num_actions: size A of an action, where the last layer may have ``2 * A`` outputs: means, and then deviations.

    Raises:
        ValueError: if there are other layers, or activations of several kinds.
    """
    leaves = [layer for module in modules for layer in module.modules() if not any(layer.children())]
    layers = [layer for layer in leaves if not isinstance(layer, nn.Identity | nn.Flatten | nn.Sequential)]
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if not linears:
        raise ValueError("policy has no linear layers: give the network that maps observations to actions")
    # A Tanh after the output layer (TD3) squashes the action; it is not a hidden activation.
    last = layers.index(linears[-1])
    hidden, after = layers[:last], layers[last + 1 :]
    names = {name for name, kind in ACTIVATIONS.items() for layer in hidden if isinstance(layer, kind)}
    unknown = [layer for layer in hidden if not isinstance(layer, (nn.Linear, *ACTIVATIONS.values()))]
    if unknown or len(names) > 1:
        raise ValueError(
            f"agent's policy has layers that a student cannot carry: {unknown or sorted(names)}. It carries linear "
            f"layers with one activation of {', '.join(sorted(ACTIVATIONS))}"
        )
    if squash is None:
        squash = any(isinstance(layer, nn.Tanh) for layer in after)
    activation = names.pop() if names else "tanh"
    return Policy.from_linears(_with_means(linears, num_actions), activation, squash)


def with_maps(policy: Policy, maps: Between, mdp: DenoisingMDP) -> Policy:
    """A policy with the affine maps between it and the environment built in.

    Raises:
        ValueError: if observations or actions have another size than the environment's.
    """
    inputs, outputs = policy.config.sizes[0], policy.config.sizes[-1]
    if (inputs, outputs) != (mdp.observation_size, mdp.action_size):
        raise ValueError(
            f"agent's policy maps {inputs} numbers to {outputs}, but the environment's observation has "
            f"{mdp.observation_size} and its action {mdp.action_size}: {', '.join(maps.names) or 'something'} stands "
            "between them, which a student cannot carry"
        )
    linears = [copy.deepcopy(linear) for linear in policy.linears]
    if not policy.config.squash:  # the others' output is a share of the range, whatever that is
        _fold(linears[-1], gain=maps.gain, offset=maps.offset)
    if not _may_clip(maps, mdp):
        first = linears[0].weight.detach().double().numpy(force=True)
        with torch.no_grad():
            linears[0].bias.sub_(torch.as_tensor(first @ (maps.mean * maps.scale)).to(linears[0].bias))
            linears[0].weight.mul_(torch.as_tensor(maps.scale).to(linears[0].weight))
        return Policy.from_linears(linears, policy.config.activation, policy.config.squash)
    return Policy.from_linears(
        linears,
        policy.config.activation,
        policy.config.squash,
        (torch.as_tensor(maps.mean), torch.as_tensor(maps.scale), maps.clip),
    )


def _with_means(linears: list[nn.Linear], num_actions: int | None) -> list[nn.Linear]:
    """The layers, each with a bias; of the last one the rows that give the means."""
    found = []
    for linear in linears:
        rows = linear.out_features
        if linear is linears[-1] and rows == 2 * (num_actions or 0):
            rows //= 2
        own = nn.Linear(linear.in_features, rows, dtype=linear.weight.dtype, device=linear.weight.device)
        with torch.no_grad():
            own.weight.copy_(linear.weight[:rows])
            own.bias.zero_() if linear.bias is None else own.bias.copy_(linear.bias[:rows])
        found.append(own)
    return found


def _fold(linear: nn.Linear, gain: NDArray, offset: NDArray) -> None:
    """Multiply what a layer gives by ``gain`` and add ``offset``."""
    factor, added = (torch.as_tensor(values).to(linear.weight) for values in (gain, offset))
    with torch.no_grad():
        linear.weight.mul_(factor[:, None])
        linear.bias.mul_(factor).add_(added)


def _may_clip(maps: Between, mdp: DenoisingMDP) -> bool:
    """Whether an observation in its bounds can leave the range of the normaliser's clip."""
    if maps.clip is None:
        return False
    ends = torch.tensor([[-BOUND], [BOUND]], dtype=torch.float64).repeat(1, mdp.observation_size).numpy()
    ends[:, : mdp.num_steps] = [[0.0], [1.0]]  # the steps left, one-hot
    if mdp.prices is not None:
        ends[:, -1] = [0.0, 1.0]
    return bool((abs((ends - maps.mean) * maps.scale) > maps.clip).any())
