"""Where the networks of an experiment run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redif_env.mdp.settings import TeacherSettings, shared_teacher
from redif_env.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Arguments of the experiments that can run on an accelerator."""

    device: str = "cpu"
    """Of networks, in training and evaluation; "auto" is the machine's accelerator (cuda, xpu, mps)."""
    dtype: str = "float32"
    """Of the teacher's network, as in agents.ppo: "bfloat16" is faster on most accelerators."""

    @property
    def options(self) -> tuple[str, ...]:
        """The same at another program's command line."""
        return "--device", self.device, "--dtype", self.dtype

    def teacher_named(self, name: str) -> Teacher:
        """The teacher, shared by all of this process."""
        return shared_teacher(TeacherSettings(teacher=name, device=self.device, dtype=self.dtype))


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
