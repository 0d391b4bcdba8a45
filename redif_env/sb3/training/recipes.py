"""The settings of training where none are given: one recipe for compact actions, one for networks."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

from redif_env.training.command import DEFAULT_REWARD, with_sizes
from redif_env.training.runs import check_settings

Settings = TypeVar("Settings")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings whose best values depend on the action map."""

    observation: str
    """Observation of the environment."""
    reward: tuple[tuple[str, float], ...]
    """Reward of the environment."""
    network_calls: int
    """Training budget in network calls."""
    hidden: tuple[int, ...]
    """Sizes of the policy's hidden layers; without any, its actions are linear in the observation. Not for action
    "noise", whose policy is a network."""
    num_envs: int
    """Number of episodes that run together."""
    batches: int
    """Minibatches per rollout. A rollout is one episode of every sub-environment."""
    epochs: int
    """Passes of an update over its rollout."""
    learning_rate: float
    """Learning rate at the start; it falls linearly to zero."""
    gamma: float
    """Discount."""
    clip_range: float
    """PPO's clip range for the ratio of whole actions; scaled if log-probabilities are means."""
    exploration: tuple[float, float]
    """Standard deviation of the actions at the start and at the end, before division by the number of steps. (With more
    steps the base solver is nearer to the teacher, so corrections are smaller.) With action "noise", the deviation of
    the next sample, which is not divided."""
    level_advantages: bool
    """Normalise advantages separately for each step of the episode (for action "noise")."""
    average: float
    """Decay of the policy's moving average over rollouts. The average is evaluated and exported."""


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
    exploration=(0.8, 0.25),
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
    # Each step has its own reward: the chance of other steps' exploration is no part of its return.
    gamma=0.0,
    clip_range=0.2,
    exploration=(0.15, 0.05),
    level_advantages=True,
    average=0.9,
)
"""For a network's whole noise prediction (docs/networks.md)."""


def settled(settings: Settings) -> Settings:
    """``settings`` (a dataclass with ``action`` and the recipe's settings) with the recipe's values, and the
    teacher's sizes of reference sets, where None."""
    check_settings(settings)
    recipe = NOISE if settings.action == "noise" else SOLVER  # type: ignore[attr-defined]
    missing = [item.name for item in fields(recipe) if getattr(settings, item.name) is None]
    return with_sizes(replace(settings, **{name: getattr(recipe, name) for name in missing}))  # type: ignore[type-var]
