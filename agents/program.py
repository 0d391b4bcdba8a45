"""What the programs of other libraries' agents share: settings, budget, exploration, and what is left at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from redif_env import Student
from redif_env.envs.task import Task
from redif_env.judging.baselines import Which
from redif_env.training.command import DEFAULT_REWARD
from redif_env.training.options import arguments_of, options_of
from redif_env.training.report import judge
from redif_env.training.runs import unfinished

TaskOptions: Any = options_of(Task, reward=DEFAULT_REWARD)


@dataclass(frozen=True)
class Settings(TaskOptions):
    """Settings of the environment and of the run."""

    seed: int = 0
    """Seed of the agent and of everything that is drawn."""
    out: Path = Path("runs/agent")
    """Folder for config.json, student/, result.json and samples.png."""
    network_calls: int = 60_000
    """Training budget in network calls."""
    num_envs: int = 128
    """Episodes that run together."""
    group_size: int = 8
    """Sub-environments that share their initial noise; 1 turns the group-relative reward off."""
    epochs: int = 4
    """Passes of an update over its rollout."""
    batches: int = 4
    """Minibatches per rollout."""
    learning_rate: float = 1e-3
    """Learning rate at the start; it falls linearly to zero."""
    exploration: tuple[float, float] = (0.8, 0.25)
    """Standard deviation of the actions at the start and at the end, divided by the number of steps."""
    test_size: int | None = None
    """Number of noises of the report."""
    baselines: Which = "quick"
    """Training-free solvers in the report."""
    resume: bool = False
    """Start the run in `out` again if it did not end; a finished run is kept."""

    @property
    def task(self) -> dict[str, Any]:
        """The environment's arguments."""
        return arguments_of(self, Task)

    @property
    def frames(self) -> int:
        """Environment steps of a rollout: one episode of every sub-environment."""
        return self.num_envs * self.num_steps

    def rollouts(self, calls: int) -> int:
        """How many the budget pays for, at ``calls`` network calls a step."""
        return max(1, self.network_calls // (self.frames * calls))

    def std(self, done: float) -> float:
        """Deviation of the actions when a share ``done`` of the training is over; it falls geometrically."""
        first, last = self.exploration
        return first * (last / first) ** done / self.num_steps


Given = TypeVar("Given", bound=Settings)


def finish(
    args: Given, program: str, train: Callable[[Given], tuple[Student, dict[str, Any]]], name: str | None = None
) -> None:
    """Train, export and judge, unless that is done already; ``name`` is the student's, by default the program's."""
    if unfinished(args, program):
        student, facts = train(args)
        judge(f"redif-{name or program}", student, args, facts)
