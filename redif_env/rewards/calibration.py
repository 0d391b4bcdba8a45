"""Calibration of rewards: the base solver's samples and distance on the reference set."""

from __future__ import annotations

from torch import Tensor

from redif_env.diffusion.placement import HOST, full_precision
from redif_env.mdp.process import DenoisingMDP
from redif_env.measures.distances import Distance
from redif_env.teachers.references import ReferenceSet, base_samples


def base_pairs(mdp: DenoisingMDP, reference: ReferenceSet) -> tuple[Tensor, Tensor]:
    """The base solver's samples and the teacher's endpoints of the same noises, both ``(M, *S)``."""
    base = base_samples(mdp.teacher, reference, mdp.solver, mdp.grid, mdp.num_steps, mdp.initial_map)
    return base, reference.endpoints[: len(base)].to(base)


def base_distance(mdp: DenoisingMDP, reference: ReferenceSet, distance: Distance) -> float:
    """The base solver's mean distance to the teacher's endpoints."""
    base, endpoints = base_pairs(mdp, reference)
    with full_precision(base.device):
        return float(distance(base, endpoints).to(HOST).double().mean())
