"""Signatures and docs made of a dataclass: each argument is written once, as a field with its docstring."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter
from textwrap import dedent, fill
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def takes(arguments: type[Any]) -> Callable[[Function], Function]:
    """Decorator of a function whose last parameter is ``**keywords``, the fields of the dataclass ``arguments``.

    The function's signature then shows each field with its type and default. An unknown name raises a TypeError that
    names it, the function, and the nearest known name.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = list(signature.parameters.values())[:-1]
        signature = signature.replace(parameters=[*own, *parameters_of(arguments)])
        owner, known = function.__qualname__.removesuffix(".__init__"), list(signature.parameters)

        @wraps(function)
        def call(*positional: Any, **keywords: Any) -> Any:
            for name in keywords.keys() - set(known):
                near = get_close_matches(name, known, n=1, cutoff=0.7)
                hint = f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(known)}"
                raise TypeError(f"{owner} got an unexpected keyword argument {name!r}: {hint}")
            return function(*positional, **keywords)

        call.__signature__ = signature  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return decorate


def parameters_of(arguments: type[Any]) -> list[Parameter]:
    """The fields of a dataclass as keyword-only parameters."""
    return [
        Parameter(
            item.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if item.default is MISSING else item.default,
            annotation=item.type,
        )
        for item in fields(arguments)
    ]


def docs_of(arguments: type[Any]) -> dict[str, str]:
    """The docstrings below the fields of a dataclass and of its bases, each as one line."""
    docs: dict[str, str] = {}
    for base in reversed(arguments.__mro__):
        if not is_dataclass(base):
            continue
        (definition,) = ast.parse(dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for item, below in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(item, ast.AnnAssign) and isinstance(below, ast.Expr):
                docs[ast.unparse(item.target)] = " ".join(ast.literal_eval(below.value).split())
    return docs


def list_of(arguments: type[Any], indent: str = "    ") -> str:
    """The fields of a dataclass as a Markdown list: name, default, docstring."""
    docs = docs_of(arguments)
    lines = (f"- `{item.name}={item.default!r}`: {docs[item.name]}" for item in fields(arguments))
    return "\n".join(
        fill(line, 120, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)
        for line in lines
    ).lstrip()
