"""What training takes where no setting says otherwise: one recipe for compact actions, one for networks."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

from agents.command import DEFAULT_REWARD

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Recipe:
    """Defaults of the settings of the same names."""

    observation: str
    reward: tuple[tuple[str, float], ...]
    network_calls: int
    hidden: tuple[int, ...]
    num_envs: int
    batches: int
    epochs: int
    learning_rate: float
    gamma: float
    clip_range: float
    level_advantages: bool
    average: float


SOLVER = Recipe(
    observation="features",
    reward=DEFAULT_REWARD,
    network_calls=120_000,
    hidden=(64, 64),
    num_envs=128,
    batches=4,
    epochs=4,
    learning_rate=1e-3,
    # One number at the end of a few steps: no bootstrapping, the return itself is the target.
    gamma=1.0,
    clip_range=0.2,
    level_advantages=False,
    average=0.98,
)
"""For actions of a few numbers (``experiments.ablate --what rewards``)."""

NOISE = Recipe(
    observation="sample",
    reward=(("path", 4.0), ("feature", 2.0), ("energy", 0.3)),
    network_calls=240_000,
    hidden=(),
    num_envs=512,
    batches=4,
    epochs=1,
    learning_rate=2e-4,
    # Each step is paid for by itself: what the others do by chance is no part of its return.
    gamma=0.0,
    clip_range=0.2,
    level_advantages=True,
    average=0.9,
)
"""For a network's whole noise prediction (docs/networks.md)."""


def settled(settings: Settings) -> Settings:
    """``settings`` (a dataclass with ``action`` and the recipe's settings) with the recipe's values where None."""
    recipe = NOISE if settings.action == "noise" else SOLVER  # type: ignore[attr-defined]
    missing = [item.name for item in fields(recipe) if getattr(settings, item.name) is None]
    return replace(settings, **{name: getattr(recipe, name) for name in missing})  # type: ignore[type-var]
