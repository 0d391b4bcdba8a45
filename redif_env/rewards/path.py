"""The reward that compares every step with the teacher's trajectory."""

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
from redif_env.teachers.references import ReferencePaths, ReferenceSet, reference_paths, sizes_of


@dataclass(frozen=True)
class PathAlignment:
    """Minus the distance of each next sample to the teacher's trajectory from the same noise, over ``scale``.

    A dense reward: each step is rewarded by itself, so a small ``gamma`` reduces the variance of the return. The
    distance is the RMSE of samples at variance-preserving scale. With the scale of :meth:`calibrated`, the base
    solver's mean return is -1 and the teacher's is 0. The trajectories cost as many network calls as the endpoints and
    are cached too.
    """

    paths: ReferencePaths
    schedule: Schedule
    scale: float
    name: str = "path"

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def __call__(self, transition: Transition) -> Tensor:
        return self.distance(transition.next_state, transition.pair) * (-1 / self.scale)

    def distance(self, state: State, pair: Tensor) -> Tensor:
        """Distance ``(B,)`` of states to the teacher's trajectories of the reference rows ``pair`` ``(B,)``."""
        x = self.schedule.normalised(state.x, state.half_logsnr)
        return root_mean_square(x, self.paths.at(pair, state.half_logsnr))

    @classmethod
    def calibrated(cls, mdp: DenoisingMDP, reference: ReferenceSet, name: str = "path") -> PathAlignment:
        """Make the reward with the base solver's mean sum of distances over the reference set as scale."""
        bare = cls(reference_paths(mdp.teacher, reference), mdp.teacher.schedule, 1.0, name)
        size = sizes_of(mdp.teacher).base_size
        noise, condition = reference.noise[:size].to(mdp.teacher.device), reference.condition[:size]
        pair = torch.arange(len(noise), device=HOST)
        with torch.no_grad(), full_precision(noise.device):
            initial = mdp.initial_sample(noise, condition)
            steps = trajectory(mdp.teacher, mdp.solver, mdp.grid, initial, mdp.num_steps, condition)
            scale = sum(float(bare.distance(state, pair).to(HOST).double().mean()) for state in steps)
        return replace(bare, scale=scale)
