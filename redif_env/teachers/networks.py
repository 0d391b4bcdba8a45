"""Networks that can be teachers, by their configs: their shapes, their conditions, how they are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from redif_env.diffusion.placement import stock_defaults
from redif_env.teachers.conditions import UNCONDITIONAL, Conditions, ConditionsLike, spread

NETWORKS = (
    "GaussianMixtureModel",
    "UNet2DModel",
    "DiTTransformer2DModel",
    "UNet2DConditionModel",
    "SD3Transformer2DModel",
)
"""Classes of networks that can be teachers."""

TEXT_NETWORKS = ("UNet2DConditionModel", "SD3Transformer2DModel")
"""Those of them that take prompts."""

LABELLED_NETWORKS = ("UNet2DModel", "DiTTransformer2DModel")
"""Those of them that take a sample, a timestep and at most a class label."""


def check_kind(config: Mapping[str, Any], name: str) -> None:
    """Refuse a network that is called differently, or needs more than a sample.

    Raises:
        ValueError: if it is one.
    """
    kind = config.get("_class_name")
    if kind not in NETWORKS:
        raise ValueError(
            f"teacher={name!r} has a {kind}, which only its own pipeline knows to call. Teachers by name can be: "
            f"{', '.join(NETWORKS)}; load others with DiffusionPipeline.from_pretrained and give "
            "teacher=Teacher.from_pipeline(pipe)"
        )


def shape_of(config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Shape S of the network's samples, by its config.

    Raises:
        ValueError: if it takes or predicts more than a sample, or its size is not given.
    """
    if "sample_shape" in config:
        return tuple(config["sample_shape"])
    size, channels = config.get("sample_size"), config["in_channels"]
    if size is None:
        raise ValueError(f"teacher={name!r} names no sample_size in its network's config.json: add it")
    predicted = config.get("out_channels") or channels
    if predicted not in (channels, 2 * channels):
        raise ValueError(
            f"teacher={name!r} predicts {predicted} channels for {channels}: its state is more than the sample "
            "(inpainting, editing, upscaling), which the decision process does not have"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return (channels, height, width)


def conditions_of(
    config: Mapping[str, Any], name: str, requested: ConditionsLike | None, null_label: int | None
) -> Conditions | None:
    """The conditions of the network with this config; None where prompts are to be encoded first.

    Raises:
        ValueError: if a label is unknown, or a condition is given of a kind that the network does not take, or missing.
    """
    kind = config["_class_name"]
    values, weights = ((), None) if requested is None else spread(requested)
    if kind in TEXT_NETWORKS:
        if config.get("addition_embed_type") or config.get("class_embed_type"):
            kinds = {key: config.get(key) for key in ("addition_embed_type", "class_embed_type")}
            raise ValueError(
                f"teacher={name!r} needs more than a prompt ({kinds}): sizes or images, which no prompt can say"
            )
        if null_label is not None or not values or not all(isinstance(value, str) for value in values):
            raise ValueError(
                f"conditions={requested!r} and null_label={null_label!r} cannot be given to teacher={name!r}, which "
                "takes texts: give prompts, as in conditions=['a photograph of a cat']"
            )
        return None
    classes = config.get("num_embeds_ada_norm") if kind == "DiTTransformer2DModel" else config.get("num_class_embeds")
    if kind == "UNet2DModel" and config.get("class_embed_type") is not None:
        raise ValueError(
            f"teacher={name!r} has class_embed_type={config['class_embed_type']!r}: only class labels can be given"
        )
    if not classes:
        if requested is not None or null_label is not None:
            raise ValueError(
                f"conditions={requested!r} and null_label={null_label!r} cannot be given to teacher={name!r}, which "
                "takes none"
            )
        return UNCONDITIONAL
    if kind == "DiTTransformer2DModel":
        null_label = classes  # by its own embedding
    elif null_label is not None and not 0 <= null_label < classes:
        raise ValueError(f"null_label must be from 0 to {classes - 1} for teacher={name!r}, got {null_label}")
    if requested is None:
        return Conditions.of_labels([label for label in range(classes) if label != null_label], null_label)
    # The command line gives words; only here is it known that they are labels.
    labels = [int(value) if isinstance(value, str) and value.isdecimal() else value for value in values]
    outside = [label for label in labels if not (isinstance(label, int) and 0 <= label < classes)]
    if outside:
        raise ValueError(
            f"conditions must be labels from 0 to {classes - 1} for teacher={name!r}, "
            f"got {', '.join(map(repr, outside))}"
        )
    return replace(
        Conditions.of_labels([label for label in labels if isinstance(label, int)], null_label), weights=weights
    )


def tokens_of(config: Mapping[str, Any], shape: tuple[int, ...]) -> int | None:
    """Tokens that a transformer makes of a sample; None for other networks."""
    patch = config.get("patch_size")
    return None if patch is None else (shape[-2] // patch) * (shape[-1] // patch)


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """A new diffusers model of a config, with its ``_class_name``; its weights are drawn by torch's default generator.

    Raises:
        ValueError: if its class takes more than a sample, a timestep and a label.
    """
    kind = config.get("_class_name")
    if kind not in LABELLED_NETWORKS:
        raise ValueError(
            f"network has _class_name={kind!r}: a student's own network can be {', '.join(LABELLED_NETWORKS)}"
        )
    import diffusers

    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    with stock_defaults():
        network: nn.Module = getattr(diffusers, kind)(**settings)
    return network


def narrowed(config: Mapping[str, Any], width: float, time_embedding_dim: int | None = None) -> dict[str, Any]:
    """A ``UNet2DModel`` config with ``width`` times the channels, rounded to whole groups of its normalisation.

    ``time_embedding_dim``, if given, are the channels of the timestep embedding: a student has few timesteps.

    Raises:
        ValueError: if ``width`` or ``time_embedding_dim`` is not above 0, or the network is another.
    """
    embedding = {} if time_embedding_dim is None else {"time_embedding_dim": time_embedding_dim}
    settings = {"width": width, **embedding}
    if not all(value > 0 for value in settings.values()) or config.get("_class_name") != "UNet2DModel":
        given = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise ValueError(f"{given} cannot be given a {config.get('_class_name')}: must be above 0, of a UNet2DModel")
    groups = config["norm_num_groups"]
    channels = [max(1, round(width * channel / groups)) * groups for channel in config["block_out_channels"]]
    # The middle's attention needs one head at least.
    channels[-1] = max(channels[-1], config["attention_head_dim"] or 0)
    return {**config, "block_out_channels": channels, **embedding}


def call_by_name(network: nn.Module, x: Tensor, timestep: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Call a diffusers model. Its last channels, if they predict a variance, are left out."""
    result = network(x, timestep=timestep, **inputs)
    output: Tensor = getattr(result, "sample", result)
    return output if output.shape == x.shape else output[:, : x.shape[1]]
