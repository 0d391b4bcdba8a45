"""Prompts are encoded once: what a pipeline's ``encode_prompt`` returns is stored, prompt by prompt, on the host."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_PLAIN = (str, int, float, type(None), torch.device, torch.dtype)


class StoredEncodings:
    """``encode_prompt`` of a pipeline, evaluated once for each prompt and its other arguments.

    Where prompts come out with different shapes (encoders that pad to the longest of a batch), or other arguments are
    no plain values, the pipeline's own is called.
    """

    def __init__(self) -> None:
        self._stored: dict[tuple[Any, ...], tuple[Tensor | None, ...]] = {}

    def around(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        """A function that returns what ``encode`` does."""

        def encoded(*args: Any, **kwargs: Any) -> Any:
            try:
                given = dict(inspect.signature(encode).bind(*args, **kwargs).arguments)
            except TypeError:
                return encode(*args, **kwargs)
            lists = {name: value for name, value in given.items() if isinstance(value, list)}
            others = {name: value for name, value in given.items() if name not in lists}
            rows = {len(value) for value in lists.values()}
            texts = all(isinstance(text, str) for value in lists.values() for text in value)
            if len(rows) != 1 or not texts or not all(isinstance(value, _PLAIN) for value in others.values()):
                return encode(*args, **kwargs)
            parts = []
            for row in range(rows.pop()):
                part = self._one(encode, {name: [value[row]] for name, value in lists.items()}, others)
                if part is None:
                    return encode(*args, **kwargs)
                parts.append(part)
            together = [_joined(column) for column in zip(*parts, strict=True)]
            if any(isinstance(column, str) for column in together):
                return encode(*args, **kwargs)
            return tuple(together)

        return encoded

    def _one(
        self, encode: Callable[..., Any], lists: dict[str, list[str]], others: dict[str, Any]
    ) -> tuple[Tensor | None, ...] | None:
        key = tuple(sorted((name, str(value)) for name, value in (lists | others).items()))
        if key not in self._stored:
            found = encode(**lists, **others)
            tensors = isinstance(found, tuple) and all(part is None or isinstance(part, Tensor) for part in found)
            if not tensors or any(part is not None and len(part) != 1 for part in found):
                return None
            self._stored[key] = tuple(None if part is None else part.cpu() for part in found)
            self._device = next(part.device for part in found if part is not None)
        return tuple(None if part is None else part.to(self._device) for part in self._stored[key])


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | str | None:
    """Rows below each other; words where they do not fit."""
    tensors = [part for part in parts if part is not None]
    if not tensors:
        return None
    same = len(tensors) == len(parts) and len({part.shape for part in tensors}) == 1
    return torch.cat(tensors) if same else "they differ"
