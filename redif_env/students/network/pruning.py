"""Narrower networks that begin as a part of the teacher's: with the channels that matter most.

Structured pruning: whatever writes or reads a channel stays or goes with it, and the channels that stay are those with
the largest weights (Li et al. 2017, arXiv 1608.08710; of diffusion networks, Fang et al. 2023, arXiv 2305.10924). What
is left is no good sampler, but a much better beginning of one than chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from redif_env.teachers.networks import build_network

BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D")
"""Blocks of a ``UNet2DModel`` whose channels are known here."""
MODULES = ("resnets", "attentions", "downsamplers", "upsamplers")
WAVES, EMBEDDED, EMBEDDING, INNER = "waves", "embedded", "embedding", "inner of "
"""Kinds of channels: the time's sines and cosines, those of the two layers behind them, those within a module. Others
are the streams of the levels, numbers as strings."""
LABELS = "class_embedding.weight"
"""Its rows are no sums: each is the embedding of a label."""
Axes = tuple[tuple[str, ...], ...]
"""Of each axis of a weight, the kinds of channels along it, one after the other; none where it stays as it is."""


def prunable(config: Mapping[str, Any], narrower: Mapping[str, Any]) -> bool:
    """Whether a network of the config ``narrower`` can begin as a part of one of ``config``."""
    if config.get("_class_name") != "UNet2DModel" or narrower.get("_class_name") != "UNet2DModel":
        return False
    free = {key for key in config if key.startswith("_")} | {"block_out_channels", "time_embedding_dim"}
    return (
        all(config[key] == narrower.get(key) for key in config.keys() - free)
        and {*config["down_block_types"], *config["up_block_types"]} <= set(BLOCKS)
        and (config["downsample_type"], config["upsample_type"]) == ("conv", "conv")
        and (config["time_embedding_type"], config["class_embed_type"]) == ("positional", None)
        and config["resnet_time_scale_shift"] == "default"
        and all(few <= many for few, many in zip(_widths(narrower), _widths(config), strict=True))
        and _widens(narrower) == _widens(config)
    )


def _widths(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels of all levels, and of the embedding of the time."""
    channels = config["block_out_channels"]
    return (*channels, config.get("time_embedding_dim") or 4 * channels[0])


def _widens(config: Mapping[str, Any]) -> list[bool]:
    """Whether each level has other channels than the one above: there, and nowhere else, is a weight for the change."""
    return [one != other for one, other in pairwise(config["block_out_channels"])]


def pruned_weights(network: nn.Module, narrower: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights for a network of the config ``narrower``: those of ``network`` on the channels that are kept.

    A channel counts what is written to it times what is read from it, in squared weights, so that one that lacks either
    goes first. As many are kept in each group of a normalisation, and whole heads of attention. Rows that lose inputs
    are stretched to the length that they had.

    Args:
        network: a ``UNet2DModel``.
        narrower: config of another, which is :func:`prunable`.
    """
    config: Mapping[str, Any] = network.config  # type: ignore[assignment]
    weights = {name: weight.detach().cpu() for name, weight in network.state_dict().items()}
    with torch.device("meta"):  # for its shapes alone
        fewer = build_network(narrower).state_dict()
    axes = {name: axes_of(name, config)[: weight.ndim] for name, weight in weights.items()}
    alone = [(name, axis, kinds[0]) for name in weights for axis, kinds in enumerate(axes[name]) if len(kinds) == 1]
    sizes = {kind: weights[name].shape[axis] for name, axis, kind in alone}
    strengths = _strengths(weights, axes, sizes)
    kept = {kind: _kept(kind, strengths[kind], fewer[name].shape[axis], config) for name, axis, kind in alone}

    def places(kinds: tuple[str, ...]) -> Tensor:
        begins = torch.tensor([0, *(sizes[kind] for kind in kinds)]).cumsum(0).tolist()
        return torch.cat([kept[kind] + begin for kind, begin in zip(kinds, begins, strict=False)])

    def part(name: str) -> Tensor:
        rows = weights[name]
        if axes[name][0]:
            rows = rows.index_select(0, places(axes[name][0]))
        if not any(axes[name][1:]):
            return rows
        found = rows.index_select(1, places(axes[name][1]))
        if name == LABELS:
            return found
        stretch = _lengths(rows) / _lengths(found).clamp(min=torch.finfo(rows.dtype).tiny)
        return found * stretch.reshape(-1, *[1] * (found.ndim - 1))

    return {name: part(name) for name in weights}


def axes_of(name: str, config: Mapping[str, Any]) -> Axes:
    """The kinds of channels along the outputs and the inputs of a ``UNet2DModel``'s weight ``name``."""
    module, _, _ = name.rpartition(".")
    ends: dict[str, Axes] = {
        "time_embedding.linear_1": ((EMBEDDED,), (WAVES,)),
        "time_embedding.linear_2": ((EMBEDDING,), (EMBEDDED,)),
        "class_embedding": ((), (EMBEDDING,)),
        "conv_in": (("0",), ()),
        "conv_norm_out": (("0",),),
        "conv_out": ((), ("0",)),
    }
    if module in ends:
        return ends[module]
    words = module.split(".")
    place = next(index for index, word in enumerate(words) if word in MODULES)
    deepest = len(config["block_out_channels"]) - 1
    level = deepest
    if words[0] != "mid_block":
        level = int(words[1]) if words[0] == "down_blocks" else deepest - int(words[1])
    own, inner = (str(level),), (INNER + ".".join(words[: place + 2]),)
    if words[place] in ("downsamplers", "upsamplers"):
        return (own, own)
    taken: tuple[str, ...] = own
    if words[place] == "resnets":
        taken = _taken(words[0], level, int(words[place + 1]), config["layers_per_block"], deepest)
    found: dict[str, Axes] = {
        "group_norm": (own,),
        "to_q": (inner, own),
        "to_k": (inner, own),
        "to_v": (inner, own),
        "to_out": (own, inner),
        "norm1": (taken,),
        "conv1": (inner, taken),
        "time_emb_proj": (inner, (EMBEDDING,)),
        "norm2": (inner,),
        "conv2": (own, inner),
        "conv_shortcut": (own, taken),
    }
    return found[words[place + 2]]


def _taken(side: str, level: int, layer: int, layers: int, deepest: int) -> tuple[str, ...]:
    """What a residual layer is given: upwards, what comes from below and what was kept on the way down."""
    above, below = str(max(level - 1, 0)), str(min(level + 1, deepest))
    if side == "down_blocks":
        return (above if layer == 0 else str(level),)
    if side == "up_blocks":
        return (below if layer == 0 else str(level), above if layer == layers else str(level))
    return (str(level),)


def _strengths(weights: Mapping[str, Tensor], axes: Mapping[str, Axes], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """What is written to each channel times what is read from it, of each kind."""
    written, read = ({kind: torch.zeros(size) for kind, size in sizes.items()} for _ in range(2))
    for name, weight in weights.items():
        if weight.ndim == 1 or name == LABELS:  # neither norms and biases nor labels are sums over channels
            continue
        for axis, (kinds, sums) in enumerate(zip(axes[name], (written, read), strict=True)):
            if kinds:
                parts = _lengths(weight.transpose(0, axis)).square().split([sizes[kind] for kind in kinds])
                for kind, part in zip(kinds, parts, strict=True):
                    sums[kind] += part
    return {kind: written[kind] * read[kind] for kind in sizes}


def _kept(kind: str, strength: Tensor, few: int, config: Mapping[str, Any]) -> Tensor:
    """The ``few`` channels of a kind that are kept, in their order."""
    many, head = len(strength), config["attention_head_dim"]
    if kind == WAVES:  # the same frequencies of both halves, as the narrower network spaces them
        frequencies = torch.arange(few // 2) * many // few
        return torch.cat([frequencies, frequencies + many // 2])
    if ".attentions." in kind:
        return _strongest(strength.reshape(1, -1, head or 1), few)
    groups = 1 if kind in (EMBEDDED, EMBEDDING) else config["norm_num_groups"]
    return _strongest(strength.reshape(groups, -1, 1), few)


def _strongest(strength: Tensor, few: int) -> Tensor:
    """``few`` places of ``strength`` ``(groups, N, M)``, counted through: as many of each group, M at a time."""
    groups, _, together = strength.shape
    places = torch.arange(strength.numel()).reshape(strength.shape)
    chosen = strength.sum(dim=2).topk(few // (groups * together), dim=1).indices.sort(dim=1).values
    return places.gather(1, chosen[:, :, None].expand(-1, -1, together)).flatten()


def _lengths(rows: Tensor) -> Tensor:
    """Of the rows of ``(N, ...)``, ``(N,)``."""
    return rows.flatten(1).norm(dim=1)
