"""Train a few-step student with RLlib's PPO, on as many environment runners as Ray has room for.

    python -m agents.rllib --teacher digits --num-steps 4 --runners 2 --out runs/ray
    python -m agents.rllib --address auto --gpus-per-runner 1 --device cuda --runners 8 --out runs/ray     # a cluster
    python -m agents.rllib --resume --out runs/ray                                 # after whatever stopped it

Each runner holds one batched environment. What is costly (endpoints, fitted maps) is made once, here, and reaches the
runners through Ray's object store. A runner that is lost is replaced. Read ``train`` from top to bottom.
"""

from __future__ import annotations

import copy
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import ray
import torch
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.tune.registry import register_env
from torch.utils.tensorboard import SummaryWriter

from agents.program import Settings, finish
from redif_env import ReDiFVectorEnv, Student
from redif_env.judging.baselines import baselines_of
from redif_env.judging.evaluation import Evaluator
from redif_env.rllib import CalmModule, ReDiFCallback, make_env, shared_tensors, student_of_module
from redif_env.storage.checkpoints import add_state, newest_state
from redif_env.storage.files import write_folder
from redif_env.teachers.references import VALIDATION_SEED
from redif_env.training.command import run, teacher_of, with_sizes
from redif_env.training.plan import Sizes, plan, print_plan
from redif_env.training.runs import begin

PROGRAM = "rllib"


@dataclass(frozen=True)
class Args(Settings):
    """Settings of the environment, of Ray and of the run."""

    out: Path = Path("runs/ray")
    """Folder for config.json, checkpoints/, student/, result.json, samples.png and TensorBoard logs."""
    network_calls: int = 120_000
    """Training budget in network calls."""
    runners: int = 2
    """Processes with environments."""
    gpus_per_runner: float = 0.0
    """With device "cuda"."""
    cpus_per_runner: float = 1.0
    """That Ray reserves."""
    address: str | None = None
    """Of a Ray cluster, "auto" for the one of this machine; by default a Ray of its own is started."""
    average: float = 0.98
    """Decay of the policy's moving average over rollouts, which is what is evaluated and exported."""
    held_out_size: int | None = None
    """Noises by which the best student is chosen."""
    held_out_every: int = 20
    """Rollouts between two evaluations on them, and between two checkpoints."""
    resume: bool = False
    """Go on with the run in out, with its settings; start it if there is none."""
    dry_run: bool = False
    """Print what the run would cost, and stop."""


class Best:
    """The moving average of the policy, and the best student so far on held-out noises."""

    def __init__(self, evaluator: Evaluator, decay: float) -> None:
        self.evaluator, self.decay = evaluator, decay
        self.average: Student | None = None
        self.best: dict[str, torch.Tensor] = {}
        self.fd = float("inf")

    def update(self, student: Student) -> None:
        """Take one rollout's policy into the average."""
        if self.average is None:
            self.average = Student(student.mdp, copy.deepcopy(student.policy))
            return
        for own, new in zip(self.average.policy.parameters(), student.policy.parameters(), strict=True):
            own.lerp_(new, 1 - self.decay)

    def judge(self) -> float:
        """The distance of the average; it is stored if it is the smallest."""
        row = self.evaluator.student_row("redif", self.average)
        if row.fd_teacher < self.fd:
            self.fd = row.fd_teacher
            self.best = {name: tensor.clone() for name, tensor in self.average.policy.state_dict().items()}
        return row.fd_teacher

    def student(self) -> Student:
        policy = copy.deepcopy(self.average.policy)
        policy.load_state_dict(self.best)
        return Student(self.average.mdp, policy)

    def state_dict(self) -> dict[str, Any]:
        return {"average": dict(self.average.policy.state_dict()), "best": self.best, "fd": self.fd}

    def load_state_dict(self, state: dict[str, Any], like: Student) -> None:
        self.average = Student(like.mdp, copy.deepcopy(like.policy))
        self.average.policy.load_state_dict(state["average"])
        self.best, self.fd = state["best"], state["fd"]


def config_of(args: Args, settings: dict[str, Any], tensors: list[Any], total: int) -> PPOConfig:
    frames = args.frames
    each = args.num_envs // max(1, args.runners)
    register_env("redif", make_env)
    config = PPOConfig().environment("redif", env_config={**settings, "tensors": tensors})
    config.env_runners(
        num_env_runners=args.runners,
        num_envs_per_env_runner=each,
        gym_env_vectorize_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT,
        rollout_fragment_length=args.num_steps,
        num_cpus_per_env_runner=args.cpus_per_runner,
        num_gpus_per_env_runner=args.gpus_per_runner,
        sample_timeout_s=600,
    )
    config.learners(num_learners=0, num_gpus_per_learner=0)
    config.rl_module(rl_module_spec=CalmModule.spec())
    config.callbacks(ReDiFCallback)
    config.training(
        lr=[[0, args.learning_rate], [frames * total, 0.0]],
        gamma=1.0,
        lambda_=1.0,
        num_epochs=args.epochs,
        minibatch_size=max(2, frames // args.batches),
        train_batch_size_per_learner=frames,
        clip_param=0.2,
        vf_clip_param=1e6,
        use_kl_loss=False,
        entropy_coeff=0.0,
        grad_clip=0.5,
    )
    config.fault_tolerance(
        restart_failed_env_runners=True,
        delay_between_env_runner_restarts_s=0.5,
        num_consecutive_env_runner_failures_tolerance=100,
    )
    config.debugging(seed=args.seed, log_level="ERROR")
    return config


def train(args: Args) -> tuple[Student, dict[str, Any]]:
    """The best student on held-out noise, and what it cost; in a cluster, or a Ray of its own."""
    if args.num_envs % (max(1, args.runners) * args.group_size):
        raise ValueError(
            f"num_envs={args.num_envs} must be a multiple of runners={args.runners} times "
            f"group_size={args.group_size}, so that each group lives on one runner"
        )
    # Ray's processes run at the lowest priority by default, behind everything else on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    local = {} if args.address else {"num_cpus": max(2, args.runners + 1), "include_dashboard": False}
    ray.init(address=args.address, log_to_driver=False, **local)
    try:
        return train_on_ray(args)
    finally:
        ray.shutdown()


def train_on_ray(args: Args) -> tuple[Student, dict[str, Any]]:
    """:func:`train` once Ray is there."""
    settings = {**args.task, "group_size": args.group_size}
    begin(args, PROGRAM)
    best = Best(Evaluator(teacher_of(args), args.held_out_size, VALIDATION_SEED, args.teacher_steps), args.average)
    tensors = shared_tensors(args.runners, args.gpus_per_runner, **settings)
    env = ReDiFVectorEnv(8, **args.task)
    total = args.rollouts(env.mdp.calls)
    budget = total * args.frames
    algorithm: PPO = config_of(args, settings, tensors, total).build_algo()
    done, steps, seconds, folder = 0, 0, 0.0, args.out / "checkpoints"
    stored = newest_state(folder) if args.resume else None
    if stored is not None:
        algorithm.restore_from_path(str((args.out / stored["rllib"]).absolute()))
        best.load_state_dict(stored["driver"], student_of_module(algorithm.get_module(), env))
        done, steps, seconds = stored["rollouts"], stored["steps"], stored["seconds"]
    writer = SummaryWriter(args.out / "tensorboard", purge_step=steps + 1 if steps else None)
    start = time.monotonic() - seconds
    while steps < budget:
        std = args.std(steps / budget)
        algorithm.learner_group.foreach_learner(lambda learner, std=std: set_std(learner.module, std))
        result = algorithm.train()
        done += 1
        # What was sampled: a lost runner's share of a rollout is made up for later.
        steps += int(result["env_runners"].get("num_env_steps_sampled", 0))
        best.update(student_of_module(algorithm.get_module(), env))
        for name, value in result["env_runners"].get("rewards", {}).items():
            writer.add_scalar(f"rewards/{name}", float(value), steps)
        if done % args.held_out_every == 0 or steps >= budget:
            fd = best.judge()
            writer.add_scalar("held_out/fd_teacher", fd, steps)
            print(f"{steps:>11,} steps: fd_teacher {fd:.4f} (best {best.fd:.4f})", flush=True)
            save(args.out, algorithm, best, {"rollouts": done, "steps": steps, "seconds": time.monotonic() - start})
    writer.close()
    algorithm.stop()
    facts = {"train_seconds": round(time.monotonic() - start, 1)}
    return best.student(), {**facts, "environment_steps": steps}


def set_std(module: Any, std: float) -> None:
    """The exploration of the next rollout's update."""
    module["default_policy"].set_std(std)


def save(out: Path, algorithm: PPO, best: Best, progress: dict[str, Any]) -> None:
    """A checkpoint: RLlib's folder first, then the record that names it, so that half of one is never used.

    Episodes that were under way and what chance would have drawn are not in it: a resumed run is as good, but not the
    same bit for bit.
    """
    name = f"rllib-{progress['rollouts']:06d}"
    shutil.rmtree(out / name, ignore_errors=True)
    with write_folder(out / name) as fresh:
        algorithm.save_to_path(str(fresh.absolute()))
    add_state(
        out / "checkpoints",
        progress["rollouts"],
        {"rllib": name, "driver": best.state_dict(), **progress},
        keep=2,
    )
    for old in sorted(out.glob("rllib-*"))[:-2]:
        shutil.rmtree(old)


def print_cost(args: Args) -> None:
    teacher = teacher_of(args)
    total = args.rollouts(teacher.calls)
    sizes = Sizes(args.reference_size, args.held_out_size, args.test_size, args.teacher_steps)
    evaluations, solvers = total // args.held_out_every + 1, len(baselines_of(args.baselines, teacher))
    items = plan(teacher, args.num_steps, args.network_calls, evaluations, sizes, solvers)
    print_plan(items, teacher, args.num_envs // max(1, args.runners), sizes)


def main(args: Args) -> None:
    if args.dry_run:
        print_cost(args)
    else:
        finish(args, PROGRAM, train)


if __name__ == "__main__":
    run(main, Args, with_sizes)
