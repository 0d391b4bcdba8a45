"""One table of actions for all samples, by the Gauss-Newton method on the distance to the endpoints.

python -m agents.gauss_newton --teacher mnist --num-steps 4 --solver ipndm2 --grid time@20 --out runs/mnist-4-table
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redif_env.envs.task import Task
from redif_env.mdp.policies import Policy
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.storage.checkpoints import add_state, newest_state
from redif_env.students.student import Student
from redif_env.teachers.references import reference_set
from redif_env.training.command import run, with_sizes
from redif_env.training.gauss_newton import GaussNewton, Rates
from redif_env.training.options import RunOptions, arguments_of, options_of
from redif_env.training.report import judge
from redif_env.training.runs import begin, unfinished

PROGRAM = "gauss_newton"
TaskOptions: Any = options_of(Task, without=("reward", "autocast", "min_steps", "prices"), observation="steps")


@dataclass(frozen=True)
class Args(Rates, RunOptions, TaskOptions):
    """Settings: those of the decision process, of every run, and these."""

    out: Path = Path("runs/gauss-newton")
    """Folder for config.json, checkpoints/, student/, result.json and samples.png."""
    network_calls: int = 10_000
    """Training budget in network calls. The last step may exceed it."""
    checkpoint_every: int = 4
    """Steps between two checkpoints."""


def train(args: Args) -> tuple[Student, dict[str, Any]]:
    """The student of the table found, and what it cost."""
    mdp = build_mdp(MDPSettings(**arguments_of(args, MDPSettings)))
    found = GaussNewton.at_base(mdp)
    begin(args, PROGRAM)
    folder = args.out / "checkpoints"
    stored = newest_state(folder) if args.resume else None
    seconds = 0.0
    if stored is not None:
        found, seconds = GaussNewton(**stored["method"]), stored["seconds"]
    reference = reference_set(mdp.teacher, args.reference_size, num_steps=args.teacher_steps)
    start = time.monotonic()
    for _ in found.until(args.network_calls, mdp, reference, Rates(**arguments_of(args, Rates)), args.seed):
        if found.steps % args.checkpoint_every == 0 or found.network_calls >= args.network_calls:
            spent = seconds + time.monotonic() - start
            add_state(folder, found.steps, {"method": vars(found), "seconds": spent}, keep=2)
    facts = {
        "train_seconds": round(seconds + time.monotonic() - start, 1),
        "environment_steps": found.network_calls // mdp.calls,
    }
    return Student(mdp, Policy.from_table(found.table.float(), mdp.observation_size)), facts


def main(args: Args) -> None:
    if unfinished(args, PROGRAM):
        student, facts = train(args)
        judge("gauss-newton", student, args, facts)


if __name__ == "__main__":
    run(main, Args, with_sizes)
