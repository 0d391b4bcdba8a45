"""Command-line options: those of every training program, and those made of the dataclasses of an environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro

from redif_env.judging.baselines import Which
from redif_env.mdp.arguments import docs_of

Weights = tuple[tuple[str, float], ...]
"""Names and weights, as in ``--reward endpoint 1 feature 0.5``."""


@dataclass(frozen=True)
class RunOptions:
    """What every training program has, whatever it trains."""

    seed: int = 0
    """Seed of the agent and of everything that is drawn."""
    test_size: int | None = None
    """Number of noises of the report; 2,000 if not given, 512 of "cifar10", 256 of a driven pipeline."""
    data: str | None = None
    """Images that the report compares with besides the teacher's samples: a file, a folder or a hub id, as
    experiments.train_teacher takes them."""
    baselines: Which = "quick"
    """Training-free solvers in the report: none, the few that are best at 4 to 8 network calls, or all on all grids."""
    license: str | None = None
    """License of the teacher's weights, for the model card; known for built-in teachers."""
    resume: bool = False
    """Continue the run in `out` with its settings, or start it if there is none."""


def options_of(arguments: type[Any], *, without: Sequence[str] = (), **defaults: Any) -> Any:
    """A dataclass of the fields of ``arguments`` as the command line gives them: names in place of objects.

    Args:
        arguments: a dataclass, such as :class:`redif_env.envs.task.Task`; its fields' docstrings are the help.
        without: fields that are left out.
        defaults: of fields whose default is another than that of ``arguments``; None where there is none.
    """
    docs, hints = docs_of(arguments), get_type_hints(arguments)
    options = []
    for item in fields(arguments):
        if item.name in without:
            continue
        kind = option_type(hints[item.name])
        default = defaults.get(item.name, None if item.default is MISSING else item.default)
        if default is None:
            kind = kind | None
        elif kind == Weights and isinstance(default, str):
            default = ((default, 1.0),)
        help_text = tyro.conf.arg(help=docs[item.name])
        options.append((item.name, Annotated[kind, help_text], field(default=default)))
    return make_dataclass(f"{arguments.__name__}Options", options, frozen=True)


def option_type(hint: Any) -> Any:
    """The type of an option whose value may be an object of type ``hint`` in Python."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    origins = {get_origin(kind) for kind in kinds}
    if Mapping in origins and str in kinds:
        return Weights
    if str in kinds:
        return str | None if NoneType in kinds else str
    if Sequence in origins:
        return tuple[str, ...]
    return hint


def arguments_of(options: Any, arguments: type[Any]) -> dict[str, Any]:
    """The keywords for ``arguments`` that ``options`` hold, of those fields that they have."""
    keywords = {item.name: getattr(options, item.name) for item in fields(arguments) if hasattr(options, item.name)}
    if "reward" in keywords:
        keywords["reward"] = dict(keywords["reward"])
    return keywords
