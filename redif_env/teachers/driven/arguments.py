"""The arguments of a pipeline's call for a batch of samples, from the conditions of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redif_env.teachers.conditions import Conditions, listed, numbers_of, spread

Condition = str | int | Mapping[str, Any]
"""A prompt, a class label, or arguments of the pipeline's call (prompt, image, mask, embeddings, ...).

Tensors among the arguments are one row each: they have a leading dimension of 1.
"""


def arguments_of(condition: Condition) -> dict[str, Any]:
    """A condition as arguments."""
    if isinstance(condition, Mapping):
        return dict(condition)
    return {"prompt": condition} if isinstance(condition, str) else {"class_labels": condition}


def name_of(condition: Condition, number: int) -> str:
    """What a condition is called, for people."""
    if isinstance(condition, Mapping):
        prompt = condition.get("prompt")
        others = [key for key in condition if key not in ("prompt", "weight")]
        return f"{prompt} (condition {number})" if prompt and others else str(prompt or f"condition {number}")
    return str(condition)


def batched(conditions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of one call for samples with these arguments.

    Raises:
        ValueError: if samples of one batch differ in what a call takes once, or in sizes.
    """
    names = {frozenset(condition) for condition in conditions}
    if len(names) > 1:
        few, many = sorted(names, key=len)[0], sorted(names, key=len)[-1]
        raise ValueError(
            f"conditions differ in their arguments: one has {sorted(many)}, another {sorted(few)}: give all the same"
        )
    return {name: _together(name, [condition[name] for condition in conditions]) for name in conditions[0]}


def _together(name: str, values: list[Any]) -> Any:
    first = values[0]
    if name == "ip_adapter_image":
        raise ValueError(
            "ip_adapter_image cannot be given for a batch: give its ip_adapter_image_embeds "
            "(pipe.prepare_ip_adapter_image_embeds) to from_pipeline"
        )
    if name == "ip_adapter_image_embeds":
        if any(
            not given.is_meta and not torch.equal(given, own)
            for value in values
            for given, own in zip(value, first, strict=True)
        ):
            raise ValueError(
                "conditions have ip_adapter_image_embeds that differ, and pictures of image adapters are common to a "
                "batch: give one to from_pipeline, or make a teacher of each"
            )
        # One for each adapter; with guidance, the half without the picture first.
        return [embeds.repeat_interleave(len(values), dim=0) for embeds in first]
    if isinstance(first, Tensor):
        shapes = sorted({tuple(value.shape[1:]) for value in values})
        if len(shapes) > 1:
            raise ValueError(
                f"conditions have {name} of different sizes in one batch, {shapes[0]} and {shapes[-1]}: give all the "
                "same size"
            )
        return torch.cat(values)
    if hasattr(first, "size") and hasattr(first, "mode"):  # an image
        sizes = sorted({value.size for value in values})
        if len(sizes) > 1:
            raise ValueError(
                f"conditions have {name} of different sizes in one batch, {sizes[0]} and {sizes[-1]}: resize them"
            )
        return values
    if isinstance(first, str) or name == "class_labels":
        return values
    if isinstance(first, list | tuple):
        if all(isinstance(part, Tensor) and len(part) == 1 and part.ndim > 3 for part in first):
            # One for each of several networks, such as ControlNets.
            return [_together(name, list(parts)) for parts in zip(*values, strict=True)]
        return [part for value in values for part in value]
    if any(value != first for value in values):
        raise ValueError(
            f"conditions have {name}={first!r} and others, but a pipeline takes one for all its samples: give it to "
            "from_pipeline, or make a teacher of each"
        )
    return first


def call_arguments(
    conditions: Sequence[Condition] | Mapping[Condition, float] | None, shared: dict[str, Any]
) -> tuple[list[dict[str, Any]], Conditions]:
    """Arguments of the call for each condition, and the conditions as a table of names and weights.

    Texts and embeddings of pictures among the arguments that are ``shared`` move to each condition: pipelines want as
    many as there are prompts.

    Raises:
        ValueError: if there is no condition, they are one string, or a weight is no finite number of at least 0.
    """
    given = [{}] if conditions is None else _listed(conditions)
    found = [arguments_of(condition) for condition in given]
    if isinstance(conditions, Mapping):
        weights = numbers_of(conditions.values())
    else:
        weights = numbers_of([arguments.pop("weight", 1.0) for arguments in found])
    each = {key for key, value in shared.items() if isinstance(value, str) and "prompt" in key}
    texts = {key: shared.pop(key) for key in list(shared) if key in each or key.startswith("ip_adapter_image")}
    found = [{**texts, **arguments} for arguments in found]
    names = tuple(name_of(condition, number) for number, condition in enumerate(given))
    table = Conditions(names if conditions is not None else ("",), weights=torch.tensor(weights))
    return found, replace(table, weights=None) if len(set(weights)) == 1 else table


def _listed(conditions: Sequence[Condition] | Mapping[Condition, float]) -> list[Condition]:
    """The conditions one by one, labels as ``int``.

    Raises:
        ValueError: if they are none, one string, or no conditions.
    """
    given = listed(conditions)
    if not given:
        raise ValueError("conditions are empty: give at least one prompt, class label or dict of arguments")
    labels = iter(spread([condition for condition in given if not isinstance(condition, Mapping)])[0])
    return [condition if isinstance(condition, Mapping) else next(labels) for condition in given]


def bare(value: Any) -> Any:
    """An argument without what its tensors hold."""
    if isinstance(value, Tensor):
        return value.to("meta")
    return type(value)(map(bare, value)) if isinstance(value, list | tuple) else value


def read_conditions(path: Path) -> list[dict[str, Any]]:
    """Conditions from a file: one prompt a line, or one JSON object of the call's arguments a line (JSON lines).

    An object may have a ``"weight"``: how often it is drawn. Pictures are given as paths, relative to the file, under
    names that end with ``image``.

    Raises:
        ValueError: if the file cannot be read; naming the line, if one is empty or is not what the others are.
    """
    found: list[dict[str, Any]] = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts='{path}' cannot be read ({error}): give a text file in UTF-8") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            raise ValueError(f"{path}, line {number} is empty: give one prompt or one JSON object a line")
        found.append(_parsed(line, f"{path}, line {number}", path.parent))
    if not found:
        raise ValueError(f"{path} is empty: give one prompt or one JSON object a line")
    return found


def _parsed(line: str, where: str, folder: Path) -> dict[str, Any]:
    if not line.lstrip().startswith("{"):
        return {"prompt": line.strip()}
    try:
        arguments = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON object ({error}): give one a line") from error
    for name, value in arguments.items():
        if name.endswith("image") and isinstance(value, str):
            arguments[name] = _picture(folder / value, f"{where}, {name}")
    return dict(arguments)


def _picture(path: Path, where: str) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            return opened.convert("L" if "mask" in where.rsplit(",", 1)[1] else "RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{where} names {path}, which cannot be opened as a picture ({error})") from error
