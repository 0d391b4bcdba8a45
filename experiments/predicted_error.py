"""How much of what siblings' returns differ by was decided before each step: what a privileged baseline takes.

    python -m agents.ppo --num-steps 4 --out runs/digits-4
    python -m experiments.predicted_error --student runs/digits-4/student

Siblings start from the same noise and differ by their exploration alone. The share is that of the variance of their
returns (reward "feature", less their mean) which the distance of the newest prediction to the endpoint explains.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from redif_env.envs.environments import ReDiFVectorEnv
from redif_env.envs.groups import relative
from redif_env.rewards.feature import feature_distance
from redif_env.students.student import Student
from redif_env.training.command import run


@dataclass(frozen=True)
class Args:
    student: Path
    """Folder of a student of the default action map and observation."""
    exploration: tuple[float, ...] = (0.8, 0.4, 0.25)
    """Standard deviations of the actions, times the number of steps: from the beginning of training to its end."""
    noises: int = 256
    group_size: int = 8
    seed: int = 0


@torch.no_grad()
def foretold(student: Student, std: float, noises: int, group_size: int, seed: int) -> list[float]:
    """The share of the returns' variance among siblings that is foretold at each step, ``num_steps`` numbers.

    Raises:
        ValueError: if the student has another action map or observation than the environment's defaults.
    """
    env = ReDiFVectorEnv(
        noises * group_size,
        teacher=student.mdp.teacher,
        num_steps=student.num_steps,
        solver=student.mdp.solver,
        grid=student.mdp.grid,
        reward="feature",
        group_size=group_size,
    )
    if env.mdp != student.mdp:
        raise ValueError("student was not trained in the default environment: choose one of agents.ppo's defaults")
    generator, distance = torch.Generator().manual_seed(seed), feature_distance(env.mdp.teacher)
    observations, _ = env.reset(seed=seed)
    distances = []
    for _ in range(student.num_steps):
        distances.append(distance(*env.privileged_information()).double().numpy())
        actions = student.policy(torch.as_tensor(observations))
        actions = actions + std * torch.randn(actions.shape, generator=generator)
        observations, rewards, *_ = env.step(actions.numpy())
    returns = relative(rewards, group_size)
    return [explained(relative(found, group_size), returns) for found in distances]


def explained(cause: NDArray[np.float64], effect: NDArray[np.float64]) -> float:
    """The square of the correlation of two centred ``(B,)``; 0 where the first does not vary."""
    size = np.square(cause).sum()
    return float((cause * effect).sum() ** 2 / (size * np.square(effect).sum())) if size > 0 else 0.0


def main(args: Args) -> None:
    student = Student.from_pretrained(args.student)
    table = Table("exploration", title=f"share of siblings' returns that is decided before a step, {args.student}")
    for step in range(student.num_steps):
        table.add_column(f"step {step + 1}", justify="right")
    for scale in args.exploration:
        std = scale / student.num_steps
        shares = foretold(student, std, args.noises, args.group_size, args.seed)
        table.add_row(f"{std:.4f}", *(f"{share:.3f}" for share in shares))
    Console(width=120).print(table)


if __name__ == "__main__":
    run(main, Args)
