"""A reward without a gradient, optimised: the bytes of each sample's PNG file.

    python -m experiments.png_size --seeds 3 --out runs/png-size

Stock PPO trains students for the endpoint reward, with and without a weight on small files, which nothing
differentiable measures. Writes ``samples.png``: the same noises down the rows, of the teacher, a student without the
term and a student with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from torch import Tensor

from experiments.tables import print_table, spread
from redif_env.diffusion.types import Transition
from redif_env.envs.environments import ReDiFVectorEnv
from redif_env.envs.wrappers import CallableReward, GroupRelativeReward
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.settings import TeacherSettings, shared_teacher
from redif_env.measures.rendering import tile, to_pixels, write_png
from redif_env.sb3 import ReDiFVecEnv
from redif_env.sb3.training.callbacks import AnnealedExploration, linear_to_zero
from redif_env.students.student import Student
from redif_env.teachers.references import VALIDATION_SEED
from redif_env.training.command import run
from redif_env.training.runs import prepare_folder

STEPS, ENVS, PICTURED = 4, 128, 12


@dataclass(frozen=True)
class Args:
    seeds: int = 3
    network_calls: int = 60_000
    weight: float = 0.2
    """Price of a byte, in units of the base solver's distance to the endpoint."""
    held_out_size: int = 512
    """Noises of the table; they take no part in training, and nothing is chosen by them."""
    out: Path = Path("runs/png-size")
    device: str = "cpu"
    """Of the teacher; "auto" is the machine's accelerator (cuda, xpu, mps)."""


def png_bytes(samples: Tensor) -> Tensor:
    """Size of each sample's PNG file, ``(B,)``; samples ``(B, C, H, W)`` in [-1, 1]."""
    sizes = []
    for pixels in to_pixels(samples):
        file = BytesIO()
        Image.fromarray(pixels).convert("L").save(file, format="PNG", optimize=True)
        sizes.append(file.tell())
    return torch.tensor(sizes, dtype=torch.float64)


def small_files(transition: Transition) -> Tensor:
    """Minus the bytes of each finished sample, 0 before the end."""
    rewards = torch.zeros(len(transition.live), dtype=torch.float64)
    if transition.terminated.any():
        rewards[transition.terminated] = -png_bytes(transition.next_state.x.cpu()[transition.terminated])
    return rewards


def train(weight: float, seed: int, network_calls: int, device: str) -> Student:
    """A student at this price of a byte; without network calls, the base solver (no late start, as in the docs)."""
    env = ReDiFVectorEnv(
        ENVS,
        num_steps=STEPS,
        solver="dpm++3m",
        grid="time^1.5",
        group_size=8,
        device=device,
        autoreset_mode="SameStep",
    )
    wrapped = ReDiFVecEnv(GroupRelativeReward(CallableReward(env, small_files, name="png_bytes", weight=weight)))
    settings = {"n_steps": STEPS, "batch_size": ENVS, "n_epochs": 4, "gamma": 1.0, "gae_lambda": 1.0, "device": "cpu"}
    agent = PPO("MlpPolicy", wrapped, learning_rate=linear_to_zero(3e-3), seed=seed, **settings)
    agent.set_logger(configure(None, []))
    agent.learn(network_calls, callback=AnnealedExploration(0.8 / STEPS, 0.25 / STEPS), progress_bar=True)
    return Student.from_agent(agent)


def row(evaluator: Evaluator, name: str, students: list[Student]) -> list[str]:
    """Bytes, paired error and Frechet distance of students: a line of the table."""
    samples = [student(noise=evaluator.noise) for student in students]
    measured = [evaluator.row("", "", 0, found) for found in samples]
    sizes = spread([png_bytes(found).mean().item() for found in samples], 1)
    return [name, sizes, spread([one.mse_teacher for one in measured], 4), spread([one.fd_teacher for one in measured])]


def main(args: Args) -> None:
    prepare_folder(args.out)
    teacher = shared_teacher(TeacherSettings(teacher="digits", device=args.device))
    evaluator = Evaluator(teacher, args.held_out_size, VALIDATION_SEED)
    plain, small = (
        [train(weight, seed, args.network_calls, args.device) for seed in range(args.seeds)]
        for weight in (0.0, args.weight)
    )
    lines = [
        ["the teacher's samples", f"{png_bytes(evaluator.endpoints).mean():.1f}", "0", "0"],
        row(evaluator, "before training", [train(0.0, 0, 0, args.device)]),
        row(evaluator, "endpoint reward alone", plain),
        row(evaluator, f"endpoint reward and {args.weight} a byte", small),
    ]
    noise = evaluator.noise[:PICTURED]
    pictures = torch.stack([evaluator.endpoints[:PICTURED], plain[0](noise=noise), small[0](noise=noise)])
    write_png(args.out / "samples.png", tile(to_pixels(pictures)))
    title = f"digits, {STEPS} NFE, {args.held_out_size} held-out noises, {args.seeds} seeds"
    print_table(title, ("", "bytes of a PNG", "MSE to the endpoint", "FD to the teacher"), lines)


if __name__ == "__main__":
    run(main, Args)
