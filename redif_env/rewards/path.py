"""The reward that compares every step with the teacher's own trajectory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST, full_precision
from redif_env.diffusion.schedules import Schedule
from redif_env.diffusion.solvers import trajectory
from redif_env.diffusion.types import State, Transition
from redif_env.mdp.process import DenoisingMDP
from redif_env.measures.distances import root_mean_square
from redif_env.rewards.reward import check_scale
from redif_env.teachers.references import BASE_SIZE, ReferencePaths, ReferenceSet, reference_paths


@dataclass(frozen=True)
class PathAlignment:
    """Minus the distance of where each step lands to where the teacher's own way from the same noise passes: dense.

    Each step is paid for by itself, so ``gamma`` may be small: then an action's reward no longer carries the chance of
    those that follow, which is what thousands of action numbers need. Distances are root mean squares of samples of the
    size that variance-preserving schedules have; ``scale`` is the base solver's mean sum over an episode, so it pays
    -1, and the teacher 0. The ways cost the teacher's many steps once more, and are cached like its endpoints.
    """

    paths: ReferencePaths
    schedule: Schedule
    scale: float
    name: str = "path"

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def __call__(self, transition: Transition) -> Tensor:
        return self.strayed(transition.next_state, transition.pair) * (-1 / self.scale)

    def strayed(self, state: State, pair: Tensor) -> Tensor:
        """How far ``state`` is from the ways of rows ``pair`` ``(B,)``, ``(B,)``."""
        x = self.schedule.normalised(state.x, state.half_logsnr)
        return root_mean_square(x, self.paths.at(pair, state.half_logsnr))

    @classmethod
    def calibrated(cls, mdp: DenoisingMDP, reference: ReferenceSet, name: str = "path") -> PathAlignment:
        """With the base solver's mean sum of distances over the reference set as scale."""
        bare = cls(reference_paths(mdp.teacher, reference), mdp.teacher.schedule, 1.0, name)
        noise, condition = reference.noise[:BASE_SIZE].to(mdp.teacher.device), reference.condition[:BASE_SIZE]
        pair = torch.arange(len(noise), device=HOST)
        with torch.no_grad(), full_precision(noise.device):
            first = mdp.initial_sample(noise, condition)
            steps = trajectory(mdp.teacher, mdp.solver, mdp.grid, first, mdp.num_steps, condition)
            scale = sum(float(bare.strayed(state, pair).to(HOST).double().mean()) for state in steps)
        return replace(bare, scale=scale)
