"""Conditions: what a teacher can be asked for. Everywhere else a condition is a row number of this table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST, place

ConditionsLike = Sequence[int] | Sequence[str] | Mapping[int, float] | Mapping[str, float]
"""Class labels or prompts, each as likely as the others, or with how often each is to be asked for."""


@dataclass(frozen=True)
class Conditions:
    """K conditions, such as class labels or prompts.

    Args:
        values: the label or prompt of each row; ``("",)`` for a teacher that takes none.
        inputs: what the network is given for each row, by the name of its argument, each ``(K, ...)``.
        null: the same for no condition, each ``(1, ...)``; None where guidance is not to be had.
        weights: ``(K,)``, how often each is drawn; equal if not given.
        embedding: ``(K, E)``, what an observation shows of each; one-hot if not given.
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
            if not (right and bool(self.weights.sum() > 0)):
                raise ValueError(
                    f"weights must be {len(self.values)} numbers of at least 0, not all 0, got {self.weights.tolist()}"
                )

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of_labels(
        cls, wanted: ConditionsLike, null_label: int | None = None, argument: str = "class_labels"
    ) -> Conditions:
        """Class labels.

        Args:
            wanted: the labels.
            null_label: the label that stands for none, if the network was trained with one.
            argument: under which the network takes them.
        """
        values, weights = spread(wanted)
        null = None if null_label is None else {argument: torch.tensor([null_label], device=HOST)}
        return cls(values, {argument: torch.tensor(values, device=HOST)}, null, weights)

    @property
    def names(self) -> tuple[str, ...]:
        """What each row is called, for people."""
        return tuple(map(str, self.values))

    @property
    def embeddings(self) -> Tensor:
        """What an observation shows of each row, ``(K, E)`` float32; nothing if there is but one."""
        if self.embedding is not None:
            return self.embedding.to(HOST, torch.float32)
        count = len(self) if len(self) > 1 else 0
        return torch.eye(len(self), count, dtype=torch.float32, device=HOST)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows ``(count,)`` int64, drawn with replacement by weight. One condition takes nothing from the generator."""
        if len(self) == 1:
            return torch.zeros(count, dtype=torch.int64, device=HOST)
        weights = torch.ones(len(self), device=HOST) if self.weights is None else self.weights
        return torch.multinomial(weights.to(HOST, torch.float64), count, replacement=True, generator=generator)

    def rows_of(self, wanted: int | str | Sequence[int] | Sequence[str], count: int) -> Tensor:
        """Rows ``(count,)`` of labels or prompts: of one for all, or of one each.

        Raises:
            ValueError: if one is not among these, or there are not ``count``.
        """
        asked: list[int | str] = [wanted] * count if isinstance(wanted, int | str) else list(wanted)
        if len(asked) != count:
            raise ValueError(f"condition must be one or {count}, got {len(asked)}")
        unknown = sorted({str(value) for value in asked if value not in self.values})
        if unknown:
            raise ValueError(
                f"condition={', '.join(unknown)} is not among the {len(self)} that are known: {_short(self.names)}"
            )
        return torch.tensor([self.values.index(value) for value in asked], dtype=torch.int64, device=HOST)

    def select(self, rows: Tensor) -> dict[str, Tensor]:
        """What the network is given for ``rows`` ``(B,)`` int64 on the host."""
        return {name: given[rows.to(given.device)] for name, given in self.inputs.items()}

    def unconditional(self, count: int) -> dict[str, Tensor]:
        """What the network is given ``count`` times for no condition."""
        assert self.null is not None
        return {name: given.expand(count, *given.shape[1:]) for name, given in self.null.items()}

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditions:
        """The same on a device, what is floating point in the network's type."""

        def placed(given: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
            if given is None:
                return None
            return {
                name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
                for name, tensor in given.items()
            }

        return replace(self, inputs=placed(self.inputs) or {}, null=placed(self.null))


UNCONDITIONAL = Conditions()
"""Of a teacher that takes no condition."""


def guide(free: Tensor, asked: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, Eq. 6, in diffusers' scale): ``free + scale * (asked - free)``.

    ``free`` and ``asked`` are network outputs ``(B, *S)`` without and with the condition, ``scale`` is ``(B,)``.
    """
    return free + place(scale, free) * (asked - free)


def spread(wanted: ConditionsLike) -> tuple[tuple[int | str, ...], Tensor | None]:
    """The values and, if given, their weights."""
    if isinstance(wanted, Mapping):
        return tuple(wanted), torch.tensor(
            [float(weight) for weight in wanted.values()], dtype=torch.float32, device=HOST
        )
    return tuple(wanted), None


def _short(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
