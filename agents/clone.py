"""Clone the teacher into a student's own network: the warm start of reinforcement learning, as a student.

python -m agents.clone --teacher digits --num-steps 4 --out runs/clone-4
python -m agents.ppo --action noise --network.init runs/clone-4/student --out runs/digits-4-noise
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stable_baselines3.common.utils import set_random_seed

from redif_env.envs.spaces import action_space, observation_space
from redif_env.judging.baselines import Which
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.sb3 import StudentPolicy
from redif_env.sb3.export import student_of
from redif_env.sb3.training.networks import NoiseSettings, noise_map, policy_kwargs, warm_start
from redif_env.students.student import Student
from redif_env.training.command import run, with_sizes
from redif_env.training.options import arguments_of, options_of
from redif_env.training.report import judge
from redif_env.training.runs import begin, unfinished

PROGRAM = "clone"
DECIDED = ("action", "observation", "min_steps", "prices", "learn_guidance", "dtype")
"""Arguments that a clone does not leave open."""
MDPOptions: Any = options_of(MDPSettings, without=DECIDED)


@dataclass(frozen=True)
class Args(MDPOptions):
    """Settings: those of the decision process, and these."""

    network: NoiseSettings = field(default_factory=NoiseSettings)
    seed: int = 0
    out: Path = Path("runs/clone")
    """Folder for config.json, student/, result.json and samples.png."""
    teacher_steps: int | None = None
    """Predictions that the teacher spends on an endpoint of the report."""
    test_size: int | None = None
    """Noises of the report."""
    baselines: Which = "quick"
    """Training-free solvers in the report: none, the few that are best at 4 to 8 network calls, or all on all grids."""
    license: str | None = None
    """Of the teacher's weights, for the model card; by default that of a built-in teacher, else unknown."""
    resume: bool = False
    """Take an unfinished run's folder; it starts again, with its settings."""


def make(args: Args) -> tuple[Student, dict[str, Any]]:
    """The clone, and what it cost."""
    arguments = arguments_of(args, MDPSettings)
    mdp = build_mdp(MDPSettings(**arguments, action=noise_map(args.network), observation="sample"))
    set_random_seed(args.seed)
    spaces = observation_space(mdp), action_space(mdp)
    policy = StudentPolicy(*spaces, lambda _: 0.0, **policy_kwargs(args.network, mdp)).to(mdp.teacher.device)
    begin(args, PROGRAM)
    facts = warm_start(args.network, mdp, policy, args.seed)
    return student_of(policy, mdp), {"train_seconds": facts["clone_seconds"], "environment_steps": 0}


def main(args: Args) -> None:
    if unfinished(args, PROGRAM):
        student, facts = make(args)
        judge("clone", student, args, facts)


if __name__ == "__main__":
    run(main, Args, with_sizes)
