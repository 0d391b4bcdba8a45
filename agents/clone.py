"""Clone the teacher into a student's own network: the warm start of reinforcement learning, as a student.

python -m agents.clone --teacher digits --num-steps 4 --out runs/clone-4
python -m agents.ppo --action noise --network.init runs/clone-4/student --out runs/digits-4-noise
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stable_baselines3.common.utils import set_random_seed

from agents.command import prepare_folder, run, teacher_of, wanted
from agents.evaluate import RESULT, report
from agents.networks import NoiseSettings, noise_map, policy_kwargs, warm_start
from agents.runs import begin, check, settings_json
from redif_env.envs.spaces import action_space, observation_space
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.settings import DEFAULT_GRID, DEFAULT_SOLVER, build_mdp
from redif_env.sb3 import StudentPolicy
from redif_env.sb3.export import student_of
from redif_env.students.student import Student

PROGRAM = "agents.clone"


@dataclass(frozen=True)
class Args:
    """Settings."""

    teacher: str = "digits"
    """A built-in name, a diffusers folder, or a hub id."""
    conditions: tuple[str, ...] | None = None
    """Class labels; all if not given."""
    null_label: int | None = None
    guidance_scale: float | None = None
    """Of classifier-free guidance: the student makes in one call what the teacher makes in two."""
    num_steps: int = 4
    """Steps, and so network calls, a sample."""
    solver: str = DEFAULT_SOLVER
    """Base solver, on whose way the student is to know what to say."""
    grid: str = DEFAULT_GRID
    initial_map: str | None = None
    network: NoiseSettings = field(default_factory=NoiseSettings)
    seed: int = 0
    out: Path = Path("runs/clone")
    """Folder for config.json, student/, result.json and samples.png."""
    teacher_steps: int = 100
    """Predictions that the teacher spends on an endpoint, to judge by."""
    test_size: int = 2000
    license: str | None = None
    """Of the teacher's weights, for the model card."""
    device: str = "cpu"
    """Or "auto": the machine's accelerator, if it has one."""
    resume: bool = False
    """Take an unfinished run's folder; it starts again, with its settings."""


def make(args: Args) -> tuple[Student, dict[str, Any]]:
    """The clone, and what it cost."""
    mdp = build_mdp(
        args.teacher,
        args.num_steps,
        noise_map(args.network),
        "sample",
        args.solver,
        args.grid,
        args.device,
        "float32",
        conditions=wanted(args.conditions),
        null_label=args.null_label,
        guidance_scale=args.guidance_scale,
        initial_map=args.initial_map,
    )
    set_random_seed(args.seed)
    spaces = observation_space(mdp), action_space(mdp)
    policy = StudentPolicy(*spaces, lambda _: 0.0, **policy_kwargs(args.network, mdp)).to(mdp.teacher.device)
    begin(args, PROGRAM)
    facts = warm_start(args.network, mdp, policy, args.seed)
    return student_of(policy, mdp), {"train_seconds": facts["clone_seconds"], "environment_steps": 0}


def main(args: Args) -> None:
    prepare_folder(args.out)
    check(args, PROGRAM)
    if (args.out / RESULT).exists():
        print(f"{args.out} is finished: {args.out / RESULT} holds its table, {args.out / 'student'} its student")
        return
    student, facts = make(args)
    evaluator = Evaluator(teacher_of(args), args.test_size, teacher_steps=args.teacher_steps, train_size=args.test_size)
    report("clone", student, settings_json(args), facts, args.out, evaluator)


if __name__ == "__main__":
    run(main, Args)
