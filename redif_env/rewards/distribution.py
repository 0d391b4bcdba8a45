"""Rewards that compare the distribution of samples with the teacher's."""

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
    squared_mmd,
    witness,
)
from redif_env.rewards.calibration import base_pairs
from redif_env.rewards.feature import embed_samples, frozen_features
from redif_env.rewards.reward import check_scale, terminal_values
from redif_env.teachers.references import ReferenceSet


class DistributionAlignment:
    """Each final sample's contribution to minus the squared MMD between student and teacher; 0 before the last step.

    The MMD is taken in feature space between a buffer of the last final samples ``x`` and the teacher's endpoints ``y``
    of the same noises. A sample with features ``z`` gets ``-(2 * witness(z) + E k(y, y') - E k(x, x')) / scale``. The
    mean over the buffer is minus the squared MMD over ``scale``. The policy gradient is that of the squared MMD,
    because the terms without ``z`` are a baseline. With :class:`~redif_env.measures.kernels.EnergyKernel` the squared
    MMD is the energy distance.

    The buffer initially holds the base solver's samples, whose mean reward is -1; the teacher's endpoints get 0. The
    reward depends on past episodes. Seeding an environment resets the buffer.

    Args:
        kernel: kernel on features.
        features: feature network.
        samples, endpoints: the base solver's samples and the teacher's endpoints of the same noises, both
            ``(M, *S)``; M is the size of the buffer. Shared noises reduce the variance of the witness.
        name: name of the reward.
    """

    def __init__(self, kernel: Kernel, features: nn.Module, samples: Tensor, endpoints: Tensor, name: str) -> None:
        self.kernel, self.features, self.name = kernel, features, name
        self._initial = (self._embed(samples), self._embed(endpoints))
        self.scale = float(squared_mmd(kernel, *self._initial))
        check_scale(self.scale)
        self.reset()

    def reset(self) -> None:
        """Reset the buffer to the base solver's samples."""
        self._samples, self._endpoints = (features.clone() for features in self._initial)
        self._oldest = 0

    def __call__(self, transition: Transition) -> Tensor:
        return terminal_values(self.name, transition, self._evaluate)

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self._samples, "endpoints": self._endpoints, "oldest": self._oldest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Copies, because the buffer is updated in place.
        self._samples, self._endpoints = (state[key].to(self._samples).clone() for key in ("samples", "endpoints"))
        self._oldest = state["oldest"]

    def values(self, at: Tensor) -> Tensor:
        """Rewards ``(B,)`` of samples with features ``at`` ``(B, D)``, given the buffer."""
        kernel, samples, endpoints = self.kernel, self._samples, self._endpoints
        baseline = kernel(endpoints, endpoints).mean() - kernel(samples, samples).mean()
        return -(2 * witness(kernel, at, samples, endpoints) + baseline) / self.scale

    def _evaluate(self, samples: Tensor, endpoints: Tensor) -> Tensor:
        """Rewards of final samples, which are then added to the buffer."""
        features = self._embed(samples)
        values = self.values(features)
        self._add(features, self._embed(endpoints))
        return values

    def _embed(self, samples: Tensor) -> Tensor:
        # Float64: a good student's samples differ from their endpoints by less than float32 resolves.
        return double(embed_samples(self.features, samples))

    def _add(self, samples: Tensor, endpoints: Tensor) -> None:
        """Replace the oldest pairs of the buffer by new ones."""
        size = len(self._samples)
        samples, endpoints = samples[-size:], endpoints[-size:]
        index = (self._oldest + torch.arange(len(samples), device=samples.device)) % size
        self._samples[index], self._endpoints[index] = samples, endpoints
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
        """Make the reward; the default kernel is rational quadratic with lengths around the median distance."""
        network = frozen_features(features, mdp.teacher)
        base, endpoints = base_pairs(mdp, reference)
        with full_precision(base.device):
            kernel = kernel or RationalQuadraticKernel(median_lengths(embed_samples(network, endpoints)))
            return cls(kernel, network, base, endpoints, name)
