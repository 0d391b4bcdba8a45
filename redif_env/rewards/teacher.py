"""Rewards that evaluate the teacher's network and need no endpoint."""

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
from redif_env.rewards.reward import check_scale, terminal_values
from redif_env.teachers.references import ReferenceSet
from redif_env.teachers.teacher import Teacher


@dataclass(frozen=True)
class ScoreAgreement:
    """Minus the relative error of each step's noise prediction against the teacher's at the same state: a dense reward.

    Averaged over ``num_steps``: DDIM, which uses the teacher's prediction, has a return of exactly 0, and a noise
    prediction of zero has -1. Costs one extra network call per step, which is not counted in the student's NFE.
    """

    teacher: Teacher
    num_steps: int
    name: str = "score"

    def __call__(self, transition: Transition) -> Tensor:
        state, schedule = transition.state, self.teacher.schedule
        level = schedule.level(state.half_logsnr)
        stepped = noise_estimate(state.x, transition.decision.x0, level)
        timestep = schedule.timestep(state.half_logsnr)
        eps = self.teacher.predict(state.x, state.half_logsnr, timestep, state.condition).eps
        return root_mean_square(stepped, eps) / root_mean_square(eps, torch.zeros_like(eps)) * (-1 / self.num_steps)

    @classmethod
    def calibrated(cls, mdp: DenoisingMDP, reference: ReferenceSet, name: str = "score") -> ScoreAgreement:
        """Make the reward for a decision process; the reference set is not used."""
        return cls(mdp.teacher, mdp.num_steps, name)


@dataclass(frozen=True)
class TeacherResidual:
    """Minus the teacher's denoising error on the final sample with noise added again; 0 before the last step.

    The residual is the MSE of the teacher's noise prediction at L levels: the denoising bound on the negative log
    likelihood (Ho et al. 2020, Eq. 14). With ``floor`` and ``scale`` of :meth:`calibrated`, the mean is 0 for the
    teacher's endpoints and -1 for the base solver. Smooth samples are easy to denoise, so a reward above 0 can mean
    less detail than the teacher's. Costs L network calls per sample, which are not counted in the student's NFE.

    Args:
        teacher: the teacher.
        noise: ``(L, *S)``, shared by all samples.
        half_logsnr: levels ``(L,)``.
        floor, scale: the reward is ``(floor - residual) / scale``.
        name: name of the reward.
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
        """MSE ``(N,)`` of the noise predicted for noised samples ``(N, *S)`` under ``condition`` ``(N,)``."""
        errors = []
        for noise, half_logsnr in zip(self.noise.to(samples), self.half_logsnr, strict=True):
            levels = half_logsnr.expand(len(samples))
            level = self.teacher.schedule.level(levels)
            x = place(level.alpha, samples) * self.teacher.clip(samples) + place(level.sigma, samples) * noise
            predicted = self.teacher.predict(x, levels, self.teacher.schedule.timestep(levels), condition).eps
            errors.append(squared_error(predicted, noise.expand_as(predicted)))
        return torch.stack(errors).mean(dim=0)

    def __call__(self, transition: Transition) -> Tensor:
        condition = transition.state.condition[transition.terminated]
        values = terminal_values(self.name, transition, lambda x, _: self.floor - self.residual(x, condition))
        return values / self.scale

    @classmethod
    def calibrated(
        cls,
        mdp: DenoisingMDP,
        reference: ReferenceSet,
        times: tuple[float, ...] = (0.1, 0.3),
        name: str = "residual",
    ) -> TeacherResidual:
        """Make the reward with levels at these fractions of the schedule's time.

        Raises:
            ValueError: if the base solver's samples have a smaller residual than the teacher's endpoints.
        """
        schedule = mdp.teacher.schedule
        fractions = torch.tensor(times, dtype=torch.float64, device=HOST)
        half_logsnr = schedule.half_logsnr_at(fractions)
        generator, shape = torch.Generator().manual_seed(0), (len(times), *mdp.teacher.sample_shape)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32, device=HOST)
        bare = cls(mdp.teacher, noise, half_logsnr)
        base, endpoints = base_pairs(mdp, reference)
        condition = reference.condition[: len(base)]
        with torch.no_grad(), full_precision(base.device):
            floor, of_base = (float(bare.residual(samples, condition).mean()) for samples in (endpoints, base))
        if of_base <= floor:
            raise ValueError(
                f"reward {name!r}: the base solver's samples have a smaller residual ({of_base:.4f}) than the "
                f"teacher's own ({floor:.4f}) at times={times}, so it would lead away from the teacher: choose others"
            )
        return cls(mdp.teacher, noise, half_logsnr, floor, of_base - floor, name)
