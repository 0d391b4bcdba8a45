"""A reward without a gradient, optimised: the bytes of each sample's PNG file.

    python -m experiments.png_size --seeds 3 --out runs/png-size

Stock PPO trains a student for the endpoint reward and, with a weight, for small files, which nothing differentiable
knows about. Writes ``png-size.json``, ``png-size.png`` (the curves) and ``samples.png`` (the same noises down the
rows: teacher, student without the term, student with it).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import torch
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from torch import Tensor

from experiments.stored import write_json
from redif_env.diffusion.types import Transition
from redif_env.envs.environments import ReDiFVectorEnv
from redif_env.envs.wrappers import CallableReward, GroupRelativeReward
from redif_env.judging.evaluation import Evaluator
from redif_env.measures.rendering import tile, to_pixels
from redif_env.sb3 import ReDiFVecEnv
from redif_env.sb3.training.callbacks import AnnealedExploration, linear_to_zero
from redif_env.storage.files import write_file
from redif_env.students.student import Student
from redif_env.teachers.references import VALIDATION_SEED
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder

PICTURED = 12


@dataclass(frozen=True)
class Args:
    teacher: str = "digits"
    num_steps: int = 4
    solver: str = "dpm++3m"
    grid: str = "time^1.5"
    """Of the base solver: without a late start, as when the tables of the docs were made."""
    seeds: int = 3
    network_calls: int = 60_000
    weight: float = 0.2
    """Price of a byte, in units of the base solver's distance to the endpoint."""
    num_envs: int = 128
    group_size: int = 8
    every: int = 10
    """Rollouts between two points of the curve."""
    held_out_size: int = 512
    """Noises of the curve; they take no part in training, and nothing is chosen by them."""
    out: Path = Path("runs/png-size")


def png_bytes(samples: Tensor) -> Tensor:
    """Size of each sample's PNG file, ``(B,)``; samples ``(B, C, H, W)`` in [-1, 1]."""
    sizes = []
    for pixels in to_pixels(samples):
        file = BytesIO()
        Image.fromarray(pixels).convert("L").save(file, format="PNG", optimize=True)
        sizes.append(file.tell())
    return torch.tensor(sizes, dtype=samples.dtype, device=samples.device)


def small_files(transition: Transition) -> Tensor:
    """Minus the bytes of each finished sample, 0 before the end."""
    rewards = torch.zeros(len(transition.live), dtype=transition.endpoint.dtype, device=transition.endpoint.device)
    if transition.terminated.any():
        rewards[transition.terminated] = -png_bytes(transition.next_state.x[transition.terminated])
    return rewards


@dataclass
class Curve(BaseCallback):
    """The deterministic student's file size and error on held-out noise, every few rollouts."""

    evaluator: Evaluator
    every: int
    points: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._rollouts = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self._rollouts % self.every == 0:
            self.judge()
        self._rollouts += 1

    def _on_training_end(self) -> None:
        self.judge()

    def judge(self) -> None:
        samples = Student.from_agent(self.model)(noise=self.evaluator.noise)
        row = self.evaluator.row("", "", 0, samples)
        self.points.append(
            {
                "network_calls": self.num_timesteps,
                "bytes": png_bytes(samples).mean().item(),
                "mse_teacher": row.mse_teacher,
                "fd_teacher": row.fd_teacher,
            }
        )


def train(args: Args, weight: float, seed: int, evaluator: Evaluator) -> tuple[Student, list[dict[str, float]]]:
    """A student at this price of a byte, and its curve."""
    env = ReDiFVectorEnv(
        args.num_envs,
        teacher=args.teacher,
        num_steps=args.num_steps,
        solver=args.solver,
        grid=args.grid,
        group_size=args.group_size,
    )
    wrapped = GroupRelativeReward(CallableReward(env, small_files, name="png_bytes", weight=weight))
    agent = PPO(
        "MlpPolicy",
        ReDiFVecEnv(wrapped),
        n_steps=args.num_steps,
        batch_size=args.num_envs,
        n_epochs=4,
        learning_rate=linear_to_zero(3e-3),
        gamma=1.0,
        gae_lambda=1.0,
        seed=seed,
    )
    agent.set_logger(configure(None, []))
    curve = Curve(evaluator, args.every)
    exploration = AnnealedExploration(0.8 / args.num_steps, 0.25 / args.num_steps)
    agent.learn(args.network_calls, callback=[exploration, curve], progress_bar=True)
    return Student.from_agent(agent), curve.points


def draw(path: Path, curves: dict[str, list[list[dict[str, float]]]], teacher_bytes: float) -> None:
    """File size and paired error over training, with the term and without, a line a seed."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    labels = {"bytes": "bytes of a sample's PNG file", "mse_teacher": "mean squared error to the endpoint"}
    for axis, (metric, label) in zip(axes, labels.items(), strict=True):
        for (name, seeds), color in zip(curves.items(), ("tab:orange", "tab:blue"), strict=True):
            for index, points in enumerate(seeds):
                x, y = [point["network_calls"] for point in points], [point[metric] for point in points]
                axis.plot(x, y, color=color, label=name if index == 0 else None)
        axis.set(xlabel="network calls of training", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].axhline(teacher_bytes, color="black", linestyle=":", label="the teacher's samples")
    axes[0].legend()
    axes[1].set_yscale("log")
    with write_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def main(args: Args) -> None:
    prepare_folder(args.out)
    teacher = ReDiFVectorEnv(1, teacher=args.teacher, num_steps=args.num_steps).mdp.teacher
    evaluator = Evaluator(teacher, args.held_out_size, VALIDATION_SEED)
    curves: dict[str, list[Any]] = {}
    students = []
    for name, weight in ((f"endpoint, and {args.weight} a byte", args.weight), ("endpoint alone", 0.0)):
        trained = [train(args, weight, seed, evaluator) for seed in range(args.seeds)]
        curves[name] = [points for _, points in trained]
        students.append(trained[0][0])
    teacher_bytes = png_bytes(evaluator.endpoints).mean().item()
    write_json(args.out / "png-size.json", {"teacher_bytes": teacher_bytes, "curves": curves})
    draw(args.out / "png-size.png", curves, teacher_bytes)
    noise = evaluator.noise[:PICTURED]
    small, plain = (student(noise=noise) for student in students)
    pictures = torch.stack([evaluator.endpoints[:PICTURED], plain, small])
    with write_file(args.out / "samples.png") as temporary:
        Image.fromarray(tile(to_pixels(pictures))).save(temporary, format="PNG")
    print(
        f"{args.teacher}, {args.num_steps} NFE, {len(evaluator.noise)} held-out noises, {args.seeds} seeds (min to max)"
    )
    print(f"the teacher's samples: {teacher_bytes:.1f} bytes")
    first = curves["endpoint alone"][0][0]
    print(f"before training: {first['bytes']:.1f} bytes, MSE {first['mse_teacher']:.4f}, FD {first['fd_teacher']:.3f}")
    for name, seeds in curves.items():
        last = {key: [points[-1][key] for points in seeds] for key in ("bytes", "mse_teacher", "fd_teacher")}
        cells = [
            f"{label} {min(last[key]):.{digits}f} to {max(last[key]):.{digits}f}"
            for key, label, digits in (("bytes", "bytes", 1), ("mse_teacher", "MSE", 4), ("fd_teacher", "FD", 3))
        ]
        print(f"{name}: {', '.join(cells)}")


if __name__ == "__main__":
    run(main, Args)
