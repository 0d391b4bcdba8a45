"""Teachers: the frozen many-step models, behind one interface.

A teacher is a network, the schedule it was trained on, and what its output means (``prediction_type``, as in
diffusers). Whatever it was made from, the rest of the library sees ``predict``, ``endpoint`` and ``sample_shape``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redif_env.files import ASSETS, write_folder
from redif_env.grids import TimeGrid
from redif_env.mixtures import GaussianMixture
from redif_env.pipelines import Pipeline, read_pipeline, write_pipeline
from redif_env.predictions import read_output
from redif_env.schedules import Schedule, VariancePreservingSchedule
from redif_env.solvers import DPMSolverPP, sample
from redif_env.types import Prediction, PredictionType

ENDPOINT_BATCH = 512
"""Rows that a teacher's many-step run takes through the network together."""


class Teacher:
    """A frozen diffusion model.

    Args:
        network: called as ``network(x, timestep)`` with ``(B, *S)`` and ``(B,)``; answers ``(B, *S)`` or an object with
            ``.sample``, as diffusers' models do. It is frozen and put in evaluation mode.
        schedule: the noise schedule it was trained on.
        sample_shape: S.
        prediction_type: what it predicts.
        name: for tables and messages.

    Copies (``copy.deepcopy``) share the teacher: it never changes, and networks are large.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        sample_shape: Sequence[int],
        prediction_type: PredictionType = PredictionType.EPSILON,
        name: str = "teacher",
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.schedule = schedule
        self.sample_shape = tuple(sample_shape)
        self.prediction_type = PredictionType(prediction_type)
        self.name = name

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self

    def __repr__(self) -> str:
        return f"Teacher({self.name!r}, sample_shape={self.sample_shape}, {self.prediction_type.value})"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(_tensors(self.network)).device

    @property
    def dtype(self) -> torch.dtype:
        """The network's floating point type."""
        return next(_tensors(self.network)).dtype

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides its predictions: the key under which its samples are cached."""
        digest = hashlib.sha256(f"{self.prediction_type.value} {self.sample_shape} {self.dtype}".encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            content = tensor.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
            digest.update(content.view(torch.uint8).numpy().tobytes())
        times = torch.linspace(0, self.schedule.max_timestep, 64, dtype=torch.float64, device=self.device)
        digest.update(self.schedule.half_logsnr(times).cpu().numpy().round(9).tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Teacher:
        """This teacher with its network moved to a device and, if given, a floating point type (in place)."""
        device = torch.device(device)
        if dtype is not None and dtype != self.dtype:
            self.network.to(dtype)
        self.network.to(device)
        self.schedule = self.schedule.to(device)
        return self

    def predict(self, x: Tensor, half_logsnr: Tensor, timestep: Tensor) -> Prediction:
        """One network call on ``x`` ``(B, *S)`` at level ``half_logsnr``, telling it ``timestep`` (both ``(B,)``).

        The time told may differ from the level's own; the answer is read at the level.
        """
        answer = self.network(x.to(self.dtype), timestep.to(self.dtype))
        output: Tensor = getattr(answer, "sample", answer).to(x.dtype)
        return read_output(output, x, self.schedule.level(half_logsnr), self.prediction_type)

    @torch.inference_mode()
    def endpoint(self, noise: Tensor, num_steps: int = 100, progress: Callable[[int], object] | None = None) -> Tensor:
        """What the teacher makes of ``noise`` ``(B, *S)``: DPM-Solver++(2M), uniform time, ``num_steps`` calls each.

        Args:
            noise: standard normal.
            num_steps: network calls spent on each sample.
            progress: called with the number of samples finished, after each batch.
        """
        if noise.shape[1:] != self.sample_shape:
            raise ValueError(f"noise must have shape (batch, {self.sample_shape}), got {tuple(noise.shape)}")
        ends = []
        for part in noise.to(self.device).split(ENDPOINT_BATCH):
            ends.append(sample(self, DPMSolverPP(2), TimeGrid(), part, num_steps))
            if progress is not None:
                progress(len(part))
        return torch.cat(ends) if ends else noise

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a diffusers pipeline folder that :func:`load_teacher` and diffusers read.

        Raises:
            TypeError: if the network is no diffusers model and no Gaussian mixture, or the schedule is not
                variance-preserving.
        """
        pipeline = Pipeline(self.network, self.schedule, self.sample_shape, self.prediction_type)
        with write_folder(Path(folder)) as half_written:
            write_pipeline(pipeline, half_written)


class GaussianMixtureTeacher(Teacher):
    """The exact teacher: the noise prediction of a Gaussian mixture, in closed form, for any schedule and dimension.

    Args:
        means: ``(K, *S)``.
        stds: standard deviations, broadcast against ``means`` (axis-aligned covariances).
        weights: ``(K,)``, positive; normalised. Equal if not given.
        schedule: any schedule; linear variance-preserving if not given.
    """

    network: GaussianMixture

    def __init__(
        self,
        means: Tensor,
        stds: Tensor | float,
        weights: Tensor | None = None,
        schedule: Schedule | None = None,
        name: str = "gaussian-mixture",
    ) -> None:
        schedule = schedule or VariancePreservingSchedule.from_diffusers()
        network = GaussianMixture(means, stds, weights, schedule)
        super().__init__(network, schedule, means.shape[1:], PredictionType.EPSILON, name)

    @classmethod
    def ring(cls) -> GaussianMixtureTeacher:
        """Eight Gaussians of standard deviation 0.05 on a circle of radius 0.8: the toy of many papers."""
        angles = torch.arange(8, dtype=torch.float64) * (torch.pi / 4)
        return cls(0.8 * torch.stack([angles.cos(), angles.sin()], dim=1).float(), 0.05, name="gaussian-ring")

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> GaussianMixtureTeacher:
        super().to(device, dtype)
        self.network.schedule = self.schedule
        return self


def load_teacher(name_or_path: str | Path) -> Teacher:
    """The teacher of a built-in name, or of a diffusers pipeline on disk or on the hub.

    Args:
        name_or_path: ``"digits"`` (8x8 images), ``"gaussian-ring"`` (two dimensions, exact), the path of a diffusers
            folder with an unconditional ``UNet2DModel`` and a variance-preserving scheduler, or such a model's hub id;
            also what :meth:`Teacher.save_pretrained` wrote, and a student's folder (its network).

    Raises:
        ValueError: if there is no such teacher, or it is of a kind that cannot be used; the message says which.
    """
    name = str(name_or_path)
    if name == "gaussian-ring":
        return GaussianMixtureTeacher.ring()
    pipeline = read_pipeline(ASSETS / "digits" if name == "digits" else name, name)
    return Teacher(pipeline.network, pipeline.schedule, pipeline.sample_shape, pipeline.prediction_type, name)


def _tensors(network: nn.Module) -> Any:
    yield from network.parameters()
    yield from network.buffers()
    yield torch.empty(0)
