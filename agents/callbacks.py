"""What happens beside training: judging on held-out noise, keeping the best, TensorBoard."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image, Logger, TensorBoardOutputFormat
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from agents.evaluate import PICTURED
from redif_env.evaluation import Evaluator
from redif_env.mdp import DenoisingMDP
from redif_env.policies import Policy, PolicyConfig
from redif_env.rendering import tile, to_pixels
from redif_env.sb3.export import actor_policy
from redif_env.students import Student


class HeldOutCallback(BaseCallback):
    """Every ``every`` rollouts: judge the deterministic student on held-out noise, log it, and keep the best.

    The student's policy is the moving average of the agent's over rollouts (weight ``1 - decay`` for the newest): what
    the last few updates did by chance averages out, and the agent trains on as it would. ``best`` is the student with
    the smallest ``fd_teacher`` so far, ``best_fd`` that distance; with adaptive step counts, where that would be the
    dearest, it is the last one. A student that knows prices is judged at their geometric mean. Prints a line a
    judgement; logs each reward term, the network calls, and the mean timesteps that the student steps to. Training's
    own random state is not touched.
    """

    def __init__(self, evaluator: Evaluator, mdp: DenoisingMDP, every: int = 10, decay: float = 0.98) -> None:
        super().__init__()
        self.evaluator, self.mdp, self.every, self.decay = evaluator, mdp, every, decay
        self.best: Student | None = None
        self.best_fd = float("inf")
        self._rollouts = 0
        self._terms: dict[str, list[float]] = {}
        self._average_state: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The average, the best student so far and the count of rollouts; taken between two rollouts."""
        best = self.best and {"config": self.best.policy.config.to_json(), "weights": self.best.policy.state_dict()}
        average = dict(self._average.state_dict())
        return {"rollouts": self._rollouts, "best_fd": self.best_fd, "best": best, "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._rollouts, self.best_fd, self._average_state = state["rollouts"], state["best_fd"], state["average"]
        if state["best"]:
            config = state["best"]["config"]
            policy = Policy(PolicyConfig(**{**config, "sizes": tuple(config["sizes"])}))
            policy.load_state_dict(state["best"]["weights"])
            self.best = Student(self.mdp, policy)

    def _on_training_start(self) -> None:
        self._average = AveragedModel(self.model.policy, multi_avg_fn=get_ema_multi_avg_fn(self.decay))
        if self._average_state is not None:
            self._average.load_state_dict(self._average_state)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            for name, value in info.get("rewards", {}).items():
                self._terms.setdefault(name, []).append(value)
        return True

    def _on_rollout_end(self) -> None:
        for name, values in self._terms.items():
            self.logger.record(f"rewards/{name}", float(np.mean(values)))
            self.logger.record(f"rewards/{name}_std", float(np.std(values)))
        self._terms.clear()
        self._rollouts += 1
        if self._rollouts % self.every == 1 or self.every == 1:
            self.judge()

    def _on_rollout_start(self) -> None:
        self._average.update_parameters(self.model.policy)

    def _on_training_end(self) -> None:
        self._average.update_parameters(self.model.policy)
        self.judge()

    def judge(self) -> None:
        """Judge the student as it stands."""
        student = Student(self.mdp, actor_policy(self._average.module))
        prices = student.mdp.prices
        price = math.sqrt(prices[0] * prices[1]) if prices else None
        states = student.trajectory(self.evaluator.noise, price, self.evaluator.condition)
        row = self.evaluator.row("redif", "learned", states[-1].nfe.double().mean().item(), states[-1].x)
        self.logger.record("held_out/nfe", row.nfe)
        self.logger.record("held_out/fd_teacher", row.fd_teacher)
        self.logger.record("held_out/mse_teacher", row.mse_teacher)
        if row.fd_data is not None:
            self.logger.record("held_out/fd_data", row.fd_data)
        for index, state in enumerate(states[:-1]):
            level = student.mdp.teacher.schedule.timestep(state.half_logsnr[state.half_logsnr.isfinite()])
            self.logger.record(f"schedule/timestep_{index + 1}", float(level.mean()))
        if states[-1].x.ndim == 4:
            shown = [states[-1].x[:PICTURED], self.evaluator.endpoints[:PICTURED]]
            pictures = torch.stack([self.evaluator.teacher.images(samples) for samples in shown])
            self.logger.record(
                "held_out/samples", Image(tile(to_pixels(pictures)), "HWC"), exclude=("stdout", "json", "csv")
            )
        if row.fd_teacher < self.best_fd or student.mdp.adaptive:
            self.best_fd, self.best = row.fd_teacher, student
        self.logger.record("held_out/best_fd_teacher", self.best_fd)
        print(
            f"{self.num_timesteps:>11,} calls: fd_teacher {row.fd_teacher:.4f} (best {self.best_fd:.4f}), "
            f"mse_teacher {row.mse_teacher:.5f}"
        )


class Stopwatch(BaseCallback):
    """Seconds spent in training, whatever interrupted it."""

    def __init__(self) -> None:
        super().__init__()
        self._before = 0.0
        self._start: float | None = None

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + (time.monotonic() - self._start if self._start is not None else 0.0)

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._before = state["seconds"]

    def _on_training_start(self) -> None:
        self._start = time.monotonic()

    def _on_training_end(self) -> None:
        self._before, self._start = self.seconds, None

    def _on_step(self) -> bool:
        return True


class AnnealedExploration(BaseCallback):
    """Take a Gaussian policy's standard deviation geometrically from ``start`` to ``end`` over training.

    Left to the gradient it falls early, and with it how far PPO's clipped updates can move the mean.
    """

    def __init__(self, start: float, end: float) -> None:
        super().__init__()
        if not 0 < end <= start:
            raise ValueError(f"exploration must fall from start to end, both above 0, got {start} to {end}")
        self.start, self.end = start, end

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        remaining = self.model._current_progress_remaining
        log_std = self.model.policy.log_std.requires_grad_(False)
        log_std.fill_(remaining * math.log(self.start) + (1 - remaining) * math.log(self.end))


def tensorboard_logger(folder: Path, steps_done: int) -> Logger:
    """A TensorBoard log in ``folder``; what a killed run logged after ``steps_done`` is dropped."""
    output = TensorBoardOutputFormat(str(folder))
    if steps_done:
        output.writer.close()
        output.writer = SummaryWriter(log_dir=str(folder), purge_step=steps_done + 1)
    return Logger(str(folder), [output])


def linear_to_zero(start: float) -> Any:
    """Learning rate that falls linearly from ``start`` to zero: SB3 passes the fraction of training that remains."""

    def rate(remaining: float) -> float:
        return start * remaining

    return rate
