"""Structured pruning: initial weights for a narrower network, taken from the teacher's most important channels.

A channel is removed together with all weights that write or read it. The channels with the largest weights remain (Li
et al. 2017, arXiv 1608.08710; for diffusion networks, Fang et al. 2023, arXiv 2305.10924). The result must be trained,
but is a better initialisation than random weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from redif_env.teachers.networks import build_network

BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D")
"""Supported blocks of ``UNet2DModel``."""
MODULES = ("resnets", "attentions", "downsamplers", "upsamplers")
WAVES, EMBEDDED, EMBEDDING, INNER = "waves", "embedded", "embedding", "inner of "
"""Kinds of channels: the sinusoidal timestep features, the two layers after them, and those inside a module. The other
kinds are the resolution levels, as strings of their index."""
LABELS = "class_embedding.weight"
"""Each row of this weight is the embedding of a label, not a sum over channels."""
Axes = tuple[tuple[str, ...], ...]
"""For each axis of a weight, the kinds of the channels along it in order; empty if the axis is not pruned."""


def prunable(config: Mapping[str, Any], narrower: Mapping[str, Any]) -> bool:
    """Whether a network of config ``config`` can be pruned to one of config ``narrower``."""
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
        and _changes_width(narrower) == _changes_width(config)
    )


def _widths(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels of all levels and of the timestep embedding."""
    channels = config["block_out_channels"]
    return (*channels, config.get("time_embedding_dim") or 4 * channels[0])


def _changes_width(config: Mapping[str, Any]) -> list[bool]:
    """Whether each level's width differs from that of the level above, which adds a shortcut convolution."""
    return [one != other for one, other in pairwise(config["block_out_channels"])]


def pruned_weights(network: nn.Module, narrower: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights for a network of config ``narrower``: those of ``network`` on its most important channels.

    The importance of a channel is the sum of squared weights that write it times the sum of those that read it. Each
    normalisation group loses the same number of channels, and attention loses whole heads. Rows that lose inputs are
    rescaled to their previous norm.

    Args:
        network: a ``UNet2DModel``.
        narrower: config of the narrower network; the pair must be :func:`prunable`.
    """
    config: Mapping[str, Any] = network.config  # type: ignore[assignment]
    weights = {name: weight.detach().cpu() for name, weight in network.state_dict().items()}
    with torch.device("meta"):  # only shapes are needed
        narrow = build_network(narrower).state_dict()
    axes = {name: axes_of(name, config)[: weight.ndim] for name, weight in weights.items()}
    single = [(name, axis, kinds[0]) for name in weights for axis, kinds in enumerate(axes[name]) if len(kinds) == 1]
    sizes = {kind: weights[name].shape[axis] for name, axis, kind in single}
    importance = _importance(weights, axes, sizes)
    chosen = {kind: _choose(kind, importance[kind], narrow[name].shape[axis], config) for name, axis, kind in single}

    def indices(kinds: tuple[str, ...]) -> Tensor:
        offsets = torch.tensor([0, *(sizes[kind] for kind in kinds)]).cumsum(0).tolist()
        return torch.cat([chosen[kind] + offset for kind, offset in zip(kinds, offsets, strict=False)])

    def prune(name: str) -> Tensor:
        rows = weights[name]
        if axes[name][0]:
            rows = rows.index_select(0, indices(axes[name][0]))
        if not any(axes[name][1:]):
            return rows
        pruned = rows.index_select(1, indices(axes[name][1]))
        if name == LABELS:
            return pruned
        scale = _norms(rows) / _norms(pruned).clamp(min=torch.finfo(rows.dtype).tiny)
        return pruned * scale.reshape(-1, *[1] * (pruned.ndim - 1))

    return {name: prune(name) for name in weights}


def axes_of(name: str, config: Mapping[str, Any]) -> Axes:
    """The kinds of channels along the output and input axes of the ``UNet2DModel`` weight ``name``."""
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
    inputs: tuple[str, ...] = own
    if words[place] == "resnets":
        inputs = _resnet_inputs(words[0], level, int(words[place + 1]), config["layers_per_block"], deepest)
    found: dict[str, Axes] = {
        "group_norm": (own,),
        "to_q": (inner, own),
        "to_k": (inner, own),
        "to_v": (inner, own),
        "to_out": (own, inner),
        "norm1": (inputs,),
        "conv1": (inner, inputs),
        "time_emb_proj": (inner, (EMBEDDING,)),
        "norm2": (inner,),
        "conv2": (own, inner),
        "conv_shortcut": (own, inputs),
    }
    return found[words[place + 2]]


def _resnet_inputs(side: str, level: int, layer: int, layers: int, deepest: int) -> tuple[str, ...]:
    """Kinds of the input channels of a residual layer; in up blocks, the skip connection comes second."""
    above, below = str(max(level - 1, 0)), str(min(level + 1, deepest))
    if side == "down_blocks":
        return (above if layer == 0 else str(level),)
    if side == "up_blocks":
        return (below if layer == 0 else str(level), above if layer == layers else str(level))
    return (str(level),)


def _importance(weights: Mapping[str, Tensor], axes: Mapping[str, Axes], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Importance of the channels of each kind: squared weights that write a channel times those that read it."""
    written, read = ({kind: torch.zeros(size) for kind, size in sizes.items()} for _ in range(2))
    for name, weight in weights.items():
        if weight.ndim == 1 or name == LABELS:  # norms, biases and labels are no sums over channels
            continue
        for axis, (kinds, sums) in enumerate(zip(axes[name], (written, read), strict=True)):
            if kinds:
                parts = _norms(weight.transpose(0, axis)).square().split([sizes[kind] for kind in kinds])
                for kind, part in zip(kinds, parts, strict=True):
                    sums[kind] += part
    return {kind: written[kind] * read[kind] for kind in sizes}


def _choose(kind: str, importance: Tensor, count: int, config: Mapping[str, Any]) -> Tensor:
    """Sorted indices of the ``count`` channels of a kind that remain."""
    total, head = len(importance), config["attention_head_dim"]
    if kind == WAVES:  # the frequencies of the narrower network, in both the sine and the cosine half
        frequencies = torch.arange(count // 2) * total // count
        return torch.cat([frequencies, frequencies + total // 2])
    if ".attentions." in kind:
        return _top(importance.reshape(1, -1, head or 1), count)
    groups = 1 if kind in (EMBEDDED, EMBEDDING) else config["norm_num_groups"]
    return _top(importance.reshape(groups, -1, 1), count)


def _top(importance: Tensor, count: int) -> Tensor:
    """Flat indices of the top ``count`` entries of ``(groups, N, M)``, in whole blocks of M, evenly by group."""
    groups, _, block = importance.shape
    indices = torch.arange(importance.numel()).reshape(importance.shape)
    chosen = importance.sum(dim=2).topk(count // (groups * block), dim=1).indices.sort(dim=1).values
    return indices.gather(1, chosen[:, :, None].expand(-1, -1, block)).flatten()


def _norms(rows: Tensor) -> Tensor:
    """Norms ``(N,)`` of the rows of ``(N, ...)``."""
    return rows.flatten(1).norm(dim=1)
