"""What each part of the compact student is worth: one thing changed at a time, in the time that the recipe has.

    python -m experiments.ablate --teacher digits --nfe 4 --seeds 3 --out results/ablation

Actions component by component, what the policy sees, the base solver, the reward, the number of environments, and
other agents. Judged, kept and drawn as ``experiments.compare`` does it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3 import A2C, SAC, TD3

from agents import ppo
from experiments import compare
from experiments.rivals.field import Entry
from experiments.rivals.off_the_shelf import off_the_shelf
from experiments.rivals.ours import compact, cross_entropy
from redif_env.mdp.actions import SolverMap
from redif_env.sb3.training.recipes import SOLVER
from redif_env.training.command import run

BASE = ppo.Args(hidden=SOLVER.hidden)
"""What is changed one setting at a time: the comparison's recipe, but with the hidden layers of a stock policy."""


def changed(**settings: Any) -> Entry:
    """PPO with other settings of ``agents.ppo``."""
    return Entry(partial(compact, settings=replace(BASE, **settings)))


def mapped(**scales: float) -> Entry:
    """PPO with other scales of the action's numbers; at 0, one means nothing."""
    return Entry(partial(compact, settings=BASE, action=SolverMap(**scales)))  # type: ignore[arg-type]


CHANGES: dict[str, Entry] = {
    "the recipe": changed(),
    "linear policy": changed(hidden=()),
    "step size alone": changed(action="step"),
    "no step size": mapped(max_shift=0.0),
    "no first difference": mapped(max_first=0.0),
    "no second difference": mapped(max_second=0.0),
    "no gain": mapped(max_gain=0.0),
    "no told time": mapped(max_timestep_shift=0.0),
    "no band gains": mapped(bands=0),
    "three bands": mapped(bands=3),
    "four bands": mapped(bands=4),
    "sees the steps left alone": changed(observation="steps"),
    "base ddim": changed(solver="ddim"),
    "base dpm++2m": changed(solver="dpm++2m"),
    "base ipndm2": changed(solver="ipndm2"),
    "reward endpoint": changed(reward=(("endpoint", 1.0),)),
    "reward feature": changed(reward=(("feature", 1.0),)),
    "no groups": changed(group_size=1),
    "16 environments": changed(num_envs=16, held_out_every=200),
    "32 environments": changed(num_envs=32, held_out_every=100),
    "128 environments": changed(num_envs=128, held_out_every=25),
    "256 environments": changed(num_envs=256, held_out_every=12),
    "A2C": Entry(partial(off_the_shelf, A2C)),
    "SAC": Entry(partial(off_the_shelf, SAC)),
    "TD3": Entry(partial(off_the_shelf, TD3)),
    "cross-entropy": Entry(cross_entropy),
}
"""What is changed, by its name in the table. However many environments, a student is judged as often."""


@dataclass(frozen=True)
class Args(compare.Args):
    """The comparison's settings; ``methods`` are the changes."""

    nfe: tuple[int, ...] = (4,)
    methods: tuple[str, ...] = tuple(CHANGES)
    solver: str = "dpm++3m"
    grid: str = "time^1.5"
    """Of the base solver: without a late start, as when the tables of the docs were made."""
    out: Path = Path("results/ablation")


def main(args: Args) -> None:
    compare.compare(args, CHANGES)


if __name__ == "__main__":
    run(main, Args)
