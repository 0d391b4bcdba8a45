"""What each part of a recipe is worth: PPO with one thing changed at a time, all with the same network calls.

    python -m experiments.ablate --what parts      # action, observation, base solver and groups of the compact student
    python -m experiments.ablate --what rewards    # the reward

Finished runs are stored in ``--out`` and not repeated. Writes ``rows.json`` there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal

from agents import ppo
from experiments.placement import Placement
from experiments.stored import file_name
from experiments.tables import print_table, spread
from experiments.tasks import Task, finish_all
from redif_env.mdp.actions import ActionMap, SolverMap
from redif_env.storage.files import write_json
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder

DIGITS = {"fd_teacher": 3, "fd_pixels": 3, "mse_teacher": 4, "precision": 3, "recall": 3, "coverage": 3}
"""Columns of the table, and their digits."""


@dataclass(frozen=True)
class Args(Placement):
    what: Literal["parts", "rewards"] = "parts"
    teacher: str = "digits"
    num_steps: int = 4
    seeds: int = 3
    network_calls: int | None = None
    """Training budget of each run; if not given 60,000 or 200,000."""
    changes: tuple[str, ...] = ()
    """Names of the table's rows; all if none are given."""
    out: Path = Path("runs/ablate")
    jobs: int = 2
    """Runs at the same time, each with its share of the cores."""


@dataclass(frozen=True)
class Change:
    """Settings of ``agents.ppo`` that differ from the recipe's, or an action map in the place of its own."""

    settings: Mapping[str, Any]
    action: ActionMap | None = None


def changed(**settings: Any) -> Change:
    return Change(settings)


def mapped(**scales: float) -> Change:
    """Other scales of the action's numbers; a number whose scale is 0 has no effect."""
    return Change({}, SolverMap(**scales))  # type: ignore[arg-type]


def rewarded(**weights: float) -> Change:
    return changed(reward=tuple(weights.items()))


PARTS = {
    "the recipe": changed(),
    "step size alone": changed(action="step"),
    "no step size": mapped(max_shift=0.0),
    "no first difference": mapped(max_first=0.0),
    "no second difference": mapped(max_second=0.0),
    "no gain": mapped(max_gain=0.0),
    "no conditioning timestep": mapped(max_timestep_shift=0.0),
    "no band gains": mapped(bands=0),
    "sees the steps left alone": changed(observation="steps"),
    "base ddim": changed(solver="ddim"),
    "no groups": changed(group_size=1),
}
REWARDS = {
    "endpoint": rewarded(endpoint=1.0),
    "endpoint_squared": rewarded(endpoint_squared=1.0),
    "endpoint_ssim": rewarded(endpoint_ssim=1.0),
    "feature": rewarded(feature=1.0),
    "trajectory": rewarded(trajectory=1.0),
    "mmd": rewarded(mmd=1.0),
    "energy": rewarded(energy=1.0),
    "endpoint + feature": rewarded(endpoint=1.0, feature=1.0),
    # A sample's share of a distribution distance varies some ten times as much as its endpoint error.
    "feature + energy": rewarded(feature=1.0, energy=0.1),
}
# The table of rewards was made without a late start.
WITHOUT_LATE_START = {"solver": "dpm++3m", "grid": "time^1.5"}
STUDIES = {
    "parts": (ppo.Args(network_calls=60_000), PARTS),
    "rewards": (ppo.Args(**WITHOUT_LATE_START, network_calls=200_000, learning_rate=3e-3), REWARDS),
}
"""The recipe and what is changed, by the name that ``--what`` takes."""


def names_of(args: Args) -> tuple[str, ...]:
    """The rows that are asked for.

    Raises:
        ValueError: if one is unknown.
    """
    _, changes = STUDIES[args.what]
    unknown = sorted(set(args.changes) - set(changes))
    if unknown:
        raise ValueError(f"changes={unknown} are unknown: choose among {', '.join(map(repr, changes))}")
    return args.changes or tuple(changes)


def tasks_of(args: Args) -> list[Task]:
    """One run a seed and change; all changes of a seed before the next seed."""
    recipe, changes = STUDIES[args.what]
    given = {name: getattr(args, name) for name in ("teacher", "num_steps", "device", "dtype")}
    base = replace(recipe, **given)
    if args.network_calls is not None:
        base = replace(base, network_calls=args.network_calls)
    return [
        Task(
            name,
            replace(base, seed=seed, out=args.out / file_name(f"{args.what}-{name}-{seed}"), **changes[name].settings),
            changes[name].action,
        )
        for seed, name in product(range(args.seeds), names_of(args))
    ]


def main(args: Args) -> None:
    prepare_folder(args.out)
    tasks = tasks_of(args)
    rows = [row for found in finish_all(tasks, args.jobs) for row in found]
    write_json(args.out / f"{args.what}.json", rows)
    groups = [[row for row in rows if row["method"] == name] for name in dict.fromkeys(row["method"] for row in rows)]
    lines = [
        [group[0]["method"], *(spread([row[name] for row in group], digits) for name, digits in DIGITS.items())]
        for group in sorted(groups, key=lambda group: median(row["fd_teacher"] for row in group))
    ]
    calls = f"{tasks[0].settings.network_calls:,} network calls each"
    title = f"{args.teacher}, {args.num_steps} NFE, {calls}, median of {args.seeds} seeds (min to max)"
    print_table(title, ("changed", *DIGITS), lines)


if __name__ == "__main__":
    run(main, Args)
