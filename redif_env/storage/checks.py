"""Arguments held against their annotations and ranges, before anything is computed with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np


def check_fields(settings: Any) -> None:
    """Hold each field of a dataclass against its annotation.

    Raises:
        TypeError: naming the field, its value, and what it can be.
    """
    hints = get_type_hints(type(settings))
    for item in fields(settings):
        check_argument(item.name, getattr(settings, item.name), hints[item.name])


def check_argument(name: str, value: Any, hint: Any) -> None:
    """Hold a value against an annotation; numbers must be finite.

    Raises:
        TypeError, ValueError: naming the argument, its value, and what it can be.
    """
    if not _fits(value, hint):
        # A number out of range has the right type, and can be given at the command line.
        kind = ValueError if isinstance(value, int | float) and not isinstance(value, bool) else TypeError
        raise kind(f"{name} must be {' or '.join(_described(hint))}, got {value!r}")


def check_at_least(least: float, **values: float | None) -> None:
    """Refuse numbers below ``least``; None passes.

    Raises:
        ValueError: naming the argument and its value.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _fits(value: Any, hint: Any) -> bool:
    kinds, origin = get_args(hint), get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, kind) for kind in kinds)
    if hint is NoneType or hint is None:
        return value is None
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool) and abs(int(value)) < 2**63
    if hint is float:
        number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if origin is tuple and len(kinds) > 1 and kinds[1] is not Ellipsis:
        return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin in (Sequence, tuple):
        # What it holds has messages of its own, where it is read.
        return isinstance(value, str | Sequence | np.ndarray)
    if origin is Mapping:
        return isinstance(value, Mapping)
    if origin is Callable or getattr(hint, "_is_protocol", False):
        return callable(value)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _described(hint: Any) -> list[str]:
    if get_origin(hint) in (Union, UnionType):
        return list(dict.fromkeys(word for kind in get_args(hint) for word in _described(kind)))
    names = {
        NoneType: "None",
        bool: "True or False",
        int: "a whole number of 64 bits",
        float: "a finite number",
        str: "a string",
    }
    if hint in names:
        return [names[hint]]
    if get_origin(hint) is tuple:
        return [f"{len(get_args(hint))} finite numbers"] if get_args(hint)[-1] is float else ["a list"]
    if get_origin(hint) is Sequence:
        return ["a list"]
    if get_origin(hint) is Mapping:
        return ["a dict"]
    if get_origin(hint) is Callable:
        return ["a function"]
    if hint is Path:
        return ["a path"]
    return [f"a {getattr(hint, '__name__', hint)}"]
