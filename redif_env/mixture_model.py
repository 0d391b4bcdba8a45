"""A Gaussian mixture as a diffusers model: what pipelines, savers and loaders of that library can hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from redif_env.mixtures import GaussianMixture
from redif_env.schedules import VariancePreservingSchedule


class GaussianMixtureModel(ModelMixin, ConfigMixin):
    """The exact noise prediction of :class:`~redif_env.mixtures.GaussianMixture`, called as a ``UNet2DModel`` is.

    Args:
        num_components: number K of Gaussians.
        sample_shape: shape S of a sample; for images ``(channels, height, width)``.
        trained_betas: variances of the forward process.
        double: whether means and standard deviations are float64.
    """

    @register_to_config
    def __init__(
        self, num_components: int, sample_shape: Sequence[int], trained_betas: Sequence[float], double: bool = False
    ) -> None:
        super().__init__()
        dtype = torch.float64 if double else torch.float32
        means = torch.zeros(num_components, *sample_shape, dtype=dtype)
        schedule = VariancePreservingSchedule(torch.tensor(trained_betas, dtype=torch.float64))
        self.mixture = GaussianMixture(means, 1.0, None, schedule)

    def forward(self, sample: Tensor, timestep: Tensor | float, return_dict: bool = True) -> UNet2DOutput | tuple:
        """Noise prediction ``(B, *S)`` at ``sample`` ``(B, *S)``, at a timestep or ``(B,)`` of them."""
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        eps = self.mixture(sample, timesteps)
        return UNet2DOutput(sample=eps) if return_dict else (eps,)

    @classmethod
    def of(cls, mixture: GaussianMixture) -> GaussianMixtureModel:
        """The model of a mixture on a variance-preserving schedule."""
        schedule = mixture.schedule
        if not isinstance(schedule, VariancePreservingSchedule):
            raise TypeError(f"mixture is on a {type(schedule).__name__}: only variance-preserving ones can be saved")
        shape, double = tuple(mixture.means.shape[1:]), mixture.means.dtype == torch.float64
        model = cls(len(mixture.means), shape, schedule.betas.tolist(), double)
        model.mixture.load_state_dict(mixture.state_dict())
        return model.to(mixture.means.device).eval()
