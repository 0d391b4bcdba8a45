"""From the layers of a trained network to the policy that a student carries."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from redif_env.mdp.observations import BOUND
from redif_env.mdp.policies import ACTIVATIONS, Policy
from redif_env.mdp.process import DenoisingMDP

if TYPE_CHECKING:
    from redif_env.envs.between import Between


def policy_of(modules: Sequence[nn.Module], squash: bool | None = None, num_actions: int | None = None) -> Policy:
    """The policy of linear layers with one kind of activation between them, one after the other in ``modules``.

    Args:
        modules: the layers, or modules that hold them; batch normalisations become part of a linear layer.
        squash: whether the last layer's output goes through tanh; by default, whether a ``Tanh`` follows it.
        num_actions: size A of an action, where the last layer may have ``2 * A`` outputs: means, and then deviations.

    Raises:
        ValueError: if there are other layers, or activations of several kinds.
    """
    leaves = [layer for module in modules for layer in module.modules() if not any(layer.children())]
    layers = _folded([layer for layer in leaves if not isinstance(layer, nn.Identity | nn.Flatten | nn.Sequential)])
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
        _fold(linears[-1], torch.as_tensor(maps.gain), torch.as_tensor(maps.offset))
    if not _may_clip(maps, mdp):
        _fold_before(linears[0], torch.as_tensor(maps.scale), torch.as_tensor(-maps.mean * maps.scale))
        return Policy.from_linears(linears, policy.config.activation, policy.config.squash)
    return Policy.from_linears(
        linears,
        policy.config.activation,
        policy.config.squash,
        (torch.as_tensor(maps.mean), torch.as_tensor(maps.scale), maps.clip),
    )


def _folded(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers without batch normalisations: what each does in a finished policy is part of a linear layer."""
    found: list[nn.Module] = []
    ahead: tuple[Tensor, Tensor] | None = None
    for layer in layers:
        normalisation, last = _normalisation(layer), found[-1] if found else None
        if normalisation is not None and isinstance(last, nn.Linear):
            found[-1] = own = _with_bias(last, last.out_features)
            _fold(own, *normalisation)
        elif normalisation is not None:
            ahead = normalisation
        elif ahead is not None and isinstance(layer, nn.Linear):
            own = _with_bias(layer, layer.out_features)
            _fold_before(own, *ahead)
            found.append(own)
            ahead = None
        else:
            found.append(layer)
    return found


def _normalisation(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Gain and offset of a batch normalisation with running statistics: torch's, or sb3-contrib's ``BatchRenorm``."""
    if isinstance(layer, nn.BatchNorm1d):
        names = ("running_mean", "running_var", "weight", "bias")
    elif type(layer).__name__.startswith("BatchRenorm"):
        names = ("ra_mean", "ra_var", "scale", "bias")
    else:
        return None
    mean, variance, weight, bias = (getattr(layer, name) for name in names)
    if mean is None:
        return None
    gain = (variance.double() + layer.eps).rsqrt() * (1.0 if weight is None else weight.detach().double())
    return gain, (0.0 if bias is None else bias.detach().double()) - mean.double() * gain


def _with_means(linears: list[nn.Linear], num_actions: int | None) -> list[nn.Linear]:
    """The layers, each with a bias; of the last one the rows that give the means."""
    found = []
    for linear in linears:
        rows = linear.out_features
        if linear is linears[-1] and rows == 2 * (num_actions or 0):
            rows //= 2
        found.append(_with_bias(linear, rows))
    return found


def _with_bias(linear: nn.Linear, rows: int) -> nn.Linear:
    """A copy of the first ``rows`` outputs of a layer, with a bias."""
    own = nn.Linear(linear.in_features, rows, dtype=linear.weight.dtype, device=linear.weight.device)
    with torch.no_grad():
        own.weight.copy_(linear.weight[:rows])
        own.bias.zero_() if linear.bias is None else own.bias.copy_(linear.bias[:rows])
    return own


def _fold_before(linear: nn.Linear, gain: Tensor, offset: Tensor) -> None:
    """Give a layer ``gain * x + offset`` in the place of ``x``."""
    weight = linear.weight.detach().double()
    with torch.no_grad():
        linear.bias.add_((weight @ offset.to(weight)).to(linear.bias))
        linear.weight.mul_(gain.to(linear.weight))


def _fold(linear: nn.Linear, gain: Tensor, offset: Tensor) -> None:
    """Multiply what a layer gives by ``gain`` and add ``offset``."""
    factor, added = gain.to(linear.weight), offset.to(linear.weight)
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
