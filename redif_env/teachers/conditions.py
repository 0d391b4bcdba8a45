"""Conditions: the class labels or prompts of a teacher. Elsewhere a condition is a row of this table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST, place, widest

ConditionsLike = Sequence[int] | Sequence[str] | Mapping[int, float] | Mapping[str, float]
"""Class labels or prompts, equally likely, or with their weights."""


@dataclass(frozen=True)
class Conditions:
    """K conditions, such as class labels or prompts.

    Args:
        values: the label or prompt of each row; ``("",)`` for a teacher that takes none.
        inputs: the network's inputs for each row, by the names of its arguments, each ``(K, ...)``.
        null: the same for no condition, each ``(1, ...)``; None where there can be no guidance.
        weights: ``(K,)``, how often each is drawn; equal if not given.
        embedding: ``(K, E)``, the part of an observation that shows the condition; one-hot if not given.
    """

    values: tuple[int | str, ...] = ("",)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    null: Mapping[str, Tensor] | None = None
    weights: Tensor | None = None
    embedding: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("conditions are empty: give at least one label or prompt")
        for name, given in self.inputs.items():
            if len(given) != len(self.values):
                raise ValueError(f"conditions have {len(self.values)} values, but {len(given)} rows of {name!r}")
        if self.weights is not None:
            right = self.weights.shape == (len(self.values),) and bool((self.weights >= 0).all())
            if not (right and 0 < float(self.weights.sum()) < math.inf):
                raise ValueError(
                    f"weights of conditions must be {len(self.values)} finite numbers of at least 0, not all 0, got "
                    f"{self.weights.tolist()}"
                )

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of_labels(cls, labels: ConditionsLike, null_label: int | None = None) -> Conditions:
        """Class labels; ``null_label`` is that which the network was trained with for no condition, if any."""
        values, weights = spread(labels)
        null = None if null_label is None else {"class_labels": torch.tensor([null_label], device=HOST)}
        return cls(values, {"class_labels": torch.tensor(values, device=HOST)}, null, weights)

    @property
    def names(self) -> tuple[str, ...]:
        """The labels and prompts as text."""
        return tuple(map(str, self.values))

    @property
    def embeddings(self) -> Tensor:
        """The embedding of each row in observations, ``(K, E)`` float32; empty if there is only one."""
        if self.embedding is not None:
            return self.embedding.to(HOST, torch.float32)
        count = len(self) if len(self) > 1 else 0
        return torch.eye(len(self), count, dtype=torch.float32, device=HOST)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows ``(count,)`` int64, drawn with replacement by weight. One condition takes nothing from the generator."""
        if len(self) == 1:
            return torch.zeros(count, dtype=torch.int64, device=HOST)
        weights = torch.ones(len(self), device=HOST) if self.weights is None else self.weights
        weights = weights.to(generator.device, widest(generator.device))
        return torch.multinomial(weights, count, replacement=True, generator=generator).to(HOST)

    def rows_of(
        self, requested: int | str | Sequence[int] | Sequence[str], count: int, argument: str = "condition"
    ) -> Tensor:
        """Rows ``(count,)`` of labels or prompts: of one for all, or of one each. Labels may be written as words.

        ``argument`` is what messages call them.

        Raises:
            ValueError: if one is not among these, or there are not ``count``.
        """
        if isinstance(requested, Tensor | np.ndarray):
            requested = requested.tolist()
        if not isinstance(requested, int | np.integer | str | Sequence):
            raise ValueError(f"{argument} must be a label, a prompt, or a list of such, got {requested!r}")
        one = isinstance(requested, int | np.integer | str)
        values: list[Any] = [requested] * count if one else list(requested)  # type: ignore[arg-type]
        if len(values) != count:
            raise ValueError(f"{argument} must be one or {count}, got {len(values)}")
        if not self.inputs and any(not isinstance(value, str) or value for value in values):
            raise ValueError(f"{argument}={requested!r} was given, but this model takes none: leave it out")
        rows: dict[Any, int] = {
            str(value): row for row, value in reversed(list(enumerate(self.values))) if isinstance(value, int)
        }
        rows |= {value: row for row, value in reversed(list(enumerate(self.values)))}
        if not all(map(_is_condition, values)):
            raise ValueError(f"{argument} must be a label, a prompt, or a list of such, got {requested!r}")
        unknown = sorted({str(value) for value in values if value not in rows})
        if unknown:
            raise ValueError(
                f"{argument}={', '.join(unknown)} is not among the {len(self)} that are known: {_short(self.names)}"
            )
        return torch.tensor([rows[value] for value in values], dtype=torch.int64, device=HOST)

    def select(self, rows: Tensor) -> dict[str, Tensor]:
        """The network's inputs for ``rows`` ``(B,)`` int64 on the host."""
        return {name: given[rows.to(given.device)] for name, given in self.inputs.items()}

    def unconditional(self, count: int) -> dict[str, Tensor]:
        """The network's inputs for no condition, ``count`` times."""
        assert self.null is not None
        return {name: given.expand(count, *given.shape[1:]) for name, given in self.null.items()}

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditions:
        """The same on a device; floating-point inputs in the network's type."""

        def placed(given: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
            if given is None:
                return None
            return {
                name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
                for name, tensor in given.items()
            }

        return replace(self, inputs=placed(self.inputs) or {}, null=placed(self.null))


UNCONDITIONAL = Conditions()
"""The conditions of a teacher that takes none."""


def guide(free: Tensor, conditional: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, Eq. 6, in diffusers' scale).

    ``free + scale * (conditional - free)``: network outputs ``(B, *S)`` without and with the condition, ``(B,)``.
    """
    return free + place(scale, free) * (conditional - free)


def spread(requested: ConditionsLike) -> tuple[tuple[int | str, ...], Tensor | None]:
    """The labels (as ``int``) or prompts, and the weights if there are any.

    Raises:
        ValueError: if they are one string, no list and no mapping, or a value is neither label nor prompt.
    """
    values = listed(requested)
    strange = [value for value in values if not _is_condition(value)]
    if strange:
        raise ValueError(f"conditions must be class labels or prompts, got {', '.join(map(repr, strange[:5]))}")
    plain = tuple(str(value) if isinstance(value, str) else int(value) for value in values)
    if not isinstance(requested, Mapping):
        return plain, None
    return plain, torch.tensor(numbers_of(requested.values()), dtype=torch.float32, device=HOST)


def listed(requested: Any) -> tuple[Any, ...]:
    """Conditions one by one.

    Raises:
        ValueError: if they are one string, or no list and no mapping.
    """
    if isinstance(requested, str | bytes):
        raise ValueError(f"conditions={requested!r} is one string: give a list, as in conditions=[{requested!r}]")
    try:
        return tuple(requested)
    except TypeError:
        raise ValueError(f"conditions={requested!r} must be a list of class labels or prompts") from None


def numbers_of(weights: Iterable[Any]) -> list[float]:
    """Weights of conditions as numbers.

    Raises:
        ValueError: if one is none.
    """
    given = list(weights)
    try:
        return [float(weight) for weight in given]
    except (TypeError, ValueError):
        raise ValueError(f"weights of conditions must be numbers, got {given}") from None


def _is_condition(value: Any) -> bool:
    return isinstance(value, int | np.integer | str) and not isinstance(value, bool)


def _short(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
