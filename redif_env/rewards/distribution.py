"""The reward that compares distributions, not samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from redif_env.diffusion.placement import double, full_precision
from redif_env.diffusion.types import Transition
from redif_env.mdp.process import DenoisingMDP
from redif_env.measures.kernels import (
    Kernel,
    RationalQuadraticKernel,
    median_lengths,
    squared_discrepancy,
    witness,
)
from redif_env.rewards.calibration import base_pairs
from redif_env.rewards.feature import embed_samples, placed_features
from redif_env.rewards.reward import check_scale, when_finished
from redif_env.teachers.references import ReferenceSet


class DistributionAlignment:
    """Minus the distance between the student's distribution and the teacher's, a sample's own share; 0 before the end.

    The squared maximum mean discrepancy of a kernel in feature space, between a moving set of the last finished samples
    and the teacher's endpoints of the same noises. A sample at features ``z`` earns
    ``-(2 * witness(z) + E k(y, y') - E k(x, x')) / scale``: on average over the moving set that is minus the squared
    discrepancy over ``scale``, and its policy gradient is that of the discrepancy, since the terms without ``z`` are a
    baseline. With :class:`~redif_env.measures.kernels.EnergyKernel` the discrepancy is the energy distance.

    The moving set starts as the base solver's samples, for which the mean is -1; a student that makes the teacher's
    endpoints earns 0. The reward depends on past episodes: two environments agree if they saw the same ones, and
    seeding an environment starts the set afresh.

    Args:
        kernel, features: what is compared, and how.
        samples, endpoints: the base solver's samples and the teacher's endpoints of the same noises, both
            ``(M, *S)``; M is the size of the moving set. Keeping noises in common leaves their chance out of the
            witness, which else would be larger than what a good student has left to improve.
    """

    def __init__(self, kernel: Kernel, features: nn.Module, samples: Tensor, endpoints: Tensor, name: str) -> None:
        self.kernel, self.features, self.name = kernel, features, name
        self._first = (self._embed(samples), self._embed(endpoints))
        self.scale = float(squared_discrepancy(kernel, *self._first))
        check_scale(self.scale)
        self.restart()

    def restart(self) -> None:
        """The moving set as at construction."""
        self._samples, self._endpoints = (bank.clone() for bank in self._first)
        self._oldest = 0

    def __call__(self, transition: Transition) -> Tensor:
        return when_finished(self.name, transition, self._pay)

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self._samples, "endpoints": self._endpoints, "oldest": self._oldest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Copies: the set is updated in place.
        self._samples, self._endpoints = (state[key].to(self._samples).clone() for key in ("samples", "endpoints"))
        self._oldest = state["oldest"]

    def shares(self, at: Tensor) -> Tensor:
        """What samples with features ``at`` ``(B, D)`` earn against the moving set, ``(B,)``."""
        kernel, samples, endpoints = self.kernel, self._samples, self._endpoints
        baseline = kernel(endpoints, endpoints).mean() - kernel(samples, samples).mean()
        return -(2 * witness(kernel, at, samples, endpoints) + baseline) / self.scale

    def _pay(self, samples: Tensor, endpoints: Tensor) -> Tensor:
        """What finished samples earn against the moving set, which they then join."""
        finished = self._embed(samples)
        shares = self.shares(finished)
        self._remember(finished, self._embed(endpoints))
        return shares

    def _embed(self, samples: Tensor) -> Tensor:
        # A good student's samples lie so near their endpoints that single precision would lose the difference.
        return double(embed_samples(self.features, samples))

    def _remember(self, samples: Tensor, endpoints: Tensor) -> None:
        """Put new pairs in the places of the oldest ones."""
        size = len(self._samples)
        samples, endpoints = samples[-size:], endpoints[-size:]
        places = (self._oldest + torch.arange(len(samples), device=samples.device)) % size
        self._samples[places], self._endpoints[places] = samples, endpoints
        self._oldest = (self._oldest + len(samples)) % size

    @classmethod
    def calibrated(
        cls,
        mdp: DenoisingMDP,
        reference: ReferenceSet,
        kernel: Kernel | None = None,
        features: nn.Module | None = None,
        name: str = "mmd",
    ) -> DistributionAlignment:
        """For a decision process; the default kernel is rational quadratic, its lengths around the median distance."""
        network = placed_features(features, mdp.teacher)
        base, endpoints = base_pairs(mdp, reference)
        with full_precision(base.device):
            kernel = kernel or RationalQuadraticKernel(median_lengths(embed_samples(network, endpoints)))
            return cls(kernel, network, base, endpoints, name)
