"""What happens beside training: evaluation on held-out noise, the best student so far, TensorBoard."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image, Logger, TensorBoardOutputFormat
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from redif_env.envs.environments import terms_of
from redif_env.judging.evaluation import Evaluator
from redif_env.mdp.process import DenoisingMDP
from redif_env.measures.rendering import tile, to_pixels
from redif_env.sb3.export import student_of
from redif_env.students.student import Student
from redif_env.training.report import PICTURED


class HeldOutCallback(BaseCallback):
    """Every ``every`` rollouts: evaluate the deterministic student on held-out noise, log it, and store the best.

    The student's policy is the moving average of the agent's over rollouts (weight ``1 - decay`` for the newest), which
    averages out the noise of the last few updates; the agent itself is not changed. ``best`` is the student with the
    smallest ``fd_teacher`` so far, ``best_fd`` that distance; with adaptive step counts, where that would be the one
    with the most calls, it is the last one. A student that knows prices is evaluated at their geometric mean. Prints a
    line an evaluation; logs each reward term, the network calls, and the mean timesteps that the student steps to.
    Training's own random state is not touched.

    Args:
        evaluator: with the held-out noises.
        mdp: that the agent is trained in.
        policy: the agent's, before training.
        every: rollouts between two evaluations.
        decay: of the moving average.
    """

    def __init__(
        self, evaluator: Evaluator, mdp: DenoisingMDP, policy: BasePolicy, every: int = 10, decay: float = 0.98
    ) -> None:
        super().__init__()
        self.evaluator, self.mdp, self.every = evaluator, mdp, every
        self.best_fd = float("inf")
        self._average = AveragedModel(policy, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._best: dict[str, Any] | None = None
        self._rollouts = 0
        self._terms: dict[str, list[float]] = {}

    @property
    def best(self) -> Student | None:
        """The student with the smallest distance so far; None before the first evaluation."""
        if self._best is None:
            return None
        policy = copy.deepcopy(self._average.module)
        policy.load_state_dict(self._best)
        return student_of(policy, self.mdp)

    def state_dict(self) -> dict[str, Any]:
        """The average, the best policy so far and the count of rollouts; taken between two rollouts."""
        average = dict(self._average.state_dict())
        return {"rollouts": self._rollouts, "best_fd": self.best_fd, "best": self._best, "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._rollouts, self.best_fd, self._best = state["rollouts"], state["best_fd"], state["best"]
        self._average.load_state_dict(state["average"])

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            for name, value in terms_of(info).items():
                self._terms.setdefault(name, []).append(value)
        return True

    def _on_rollout_end(self) -> None:
        for name, values in self._terms.items():
            self.logger.record(f"rewards/{name}", float(np.mean(values)))
            self.logger.record(f"rewards/{name}_std", float(np.std(values)))
        self._terms.clear()
        self._rollouts += 1
        if self._rollouts % self.every == 1 or self.every == 1:
            self.evaluate()

    def _on_rollout_start(self) -> None:
        self._average.update_parameters(self.model.policy)

    def _on_training_end(self) -> None:
        self._average.update_parameters(self.model.policy)
        self.evaluate()

    def evaluate(self) -> None:
        """Evaluate the student as it stands."""
        student = student_of(self._average.module, self.mdp)
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
            self.best_fd = row.fd_teacher
            self._best = {name: tensor.clone() for name, tensor in self._average.module.state_dict().items()}
        self.logger.record("held_out/best_fd_teacher", self.best_fd)
        calls = self.num_timesteps * self.mdp.calls
        print(
            f"{calls:>11,} calls: fd_teacher {row.fd_teacher:.4f} (best {self.best_fd:.4f}), "
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
    """Lower a Gaussian policy's standard deviation geometrically from ``start`` to ``end`` over training.

    Trained by the gradient it falls early, and then PPO's clipped updates hardly move the mean. Both are numbers, or
    tensors of the shape of the policy's ``log_std`` (:func:`redif_env.sb3.student_exploration`).
    """

    def __init__(self, start: float | Tensor, end: float | Tensor) -> None:
        super().__init__()
        self.start, self.end = (torch.as_tensor(value, dtype=torch.float64) for value in (start, end))
        if not bool(((self.end > 0) & (self.end <= self.start)).all()):
            raise ValueError(f"exploration must fall from start to end, both above 0, got {start} to {end}")

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        remaining = self.model._current_progress_remaining
        log_std = self.model.policy.log_std.requires_grad_(False)
        log_std.copy_((remaining * self.start.log() + (1 - remaining) * self.end.log()).expand_as(log_std))


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
