"""Rewards that ask the teacher itself, and need no endpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST, full_precision, place
from redif_env.diffusion.predictions import noise_estimate
from redif_env.diffusion.types import Transition
from redif_env.mdp.process import DenoisingMDP
from redif_env.measures.distances import root_mean_square, squared_error
from redif_env.rewards.calibration import base_pairs
from redif_env.rewards.reward import check_scale, when_finished
from redif_env.teachers.references import ReferenceSet
from redif_env.teachers.teacher import Teacher


@dataclass(frozen=True)
class ScoreAgreement:
    """Minus the distance of each step's noise prediction to the teacher's own at the same state: a dense reward.

    Relative to the size of the teacher's prediction and averaged over the steps of the budget: DDIM, which steps with
    what the teacher predicts, earns exactly 0 an episode; stepping with no noise prediction at all -1. Costs one more
    network call a step, which the student does not pay.
    """

    teacher: Teacher
    num_steps: int
    name: str = "score"

    def __call__(self, transition: Transition) -> Tensor:
        state, schedule = transition.state, self.teacher.schedule
        level = schedule.level(state.half_logsnr)
        stepped = noise_estimate(state.x, transition.decision.x0, level)
        told = schedule.timestep(state.half_logsnr)
        answer = self.teacher.predict(state.x, state.half_logsnr, told, state.condition).eps
        zero = torch.zeros_like(answer)
        return root_mean_square(stepped, answer) / root_mean_square(answer, zero) * (-1 / self.num_steps)

    @classmethod
    def calibrated(cls, mdp: DenoisingMDP, reference: ReferenceSet, name: str = "score") -> ScoreAgreement:
        """For a decision process; its scale needs no reference set."""
        return cls(mdp.teacher, mdp.num_steps, name)


@dataclass(frozen=True)
class TeacherResidual:
    """Minus how badly the teacher denoises the finished sample once it is noised again; 0 before the end.

    The residual is the mean squared error of its noise prediction at a few levels: the denoising bound on the negative
    log likelihood (Ho et al. 2020, Eq. 14). No endpoint is needed. It is measured above ``floor``, the teacher's own
    endpoints' mean, so they earn 0 and the base solver -1 on average. Smooth samples are easy to denoise, so more than
    0 can be earned by what is less detailed than the teacher's.

    ``noise`` ``(L, *S)`` is the same for all samples, so that they differ by what they are; ``half_logsnr`` ``(L,)``
    are its levels. Costs L network calls a finished sample, which the student does not pay.
    """

    teacher: Teacher
    noise: Tensor
    half_logsnr: Tensor
    floor: float = 0.0
    scale: float = 1.0
    name: str = "residual"

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def residual(self, samples: Tensor, condition: Tensor | None = None) -> Tensor:
        """Mean squared error ``(N,)`` of the noise predicted in noised samples ``(N, *S)``, asked for ``condition``."""
        errors = []
        for noise, half_logsnr in zip(self.noise.to(samples), self.half_logsnr, strict=True):
            levels = half_logsnr.expand(len(samples))
            level = self.teacher.schedule.level(levels)
            x = place(level.alpha, samples) * self.teacher.clip(samples) + place(level.sigma, samples) * noise
            predicted = self.teacher.predict(x, levels, self.teacher.schedule.timestep(levels), condition).eps
            errors.append(squared_error(predicted, noise.expand_as(predicted)))
        return torch.stack(errors).mean(dim=0)

    def __call__(self, transition: Transition) -> Tensor:
        asked = transition.state.condition[transition.terminated]
        return when_finished(self.name, transition, lambda x, _: self.floor - self.residual(x, asked)) / self.scale

    @classmethod
    def calibrated(
        cls,
        mdp: DenoisingMDP,
        reference: ReferenceSet,
        times: tuple[float, ...] = (0.1, 0.3),
        name: str = "residual",
    ) -> TeacherResidual:
        """With levels at these fractions of the schedule's time.

        Raises:
            ValueError: if the teacher finds the base solver's samples easier to denoise than its own.
        """
        schedule = mdp.teacher.schedule
        fractions = torch.tensor(times, dtype=torch.float64, device=HOST)
        half_logsnr = schedule.half_logsnr_at(fractions)
        generator, shape = torch.Generator().manual_seed(0), (len(times), *mdp.teacher.sample_shape)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32, device=HOST)
        bare = cls(mdp.teacher, noise, half_logsnr)
        base, endpoints = base_pairs(mdp, reference)
        asked = reference.condition[: len(base)]
        with torch.no_grad(), full_precision(base.device):
            floor, reached = (float(bare.residual(samples, asked).mean()) for samples in (endpoints, base))
        if reached <= floor:
            raise ValueError(
                f"reward {name!r}: the base solver's samples have a smaller residual ({reached:.4f}) than the "
                f"teacher's own ({floor:.4f}) at times={times}, so it would lead away from the teacher: choose others"
            )
        return cls(mdp.teacher, noise, half_logsnr, floor, reached - floor, name)
