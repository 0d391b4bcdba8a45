"""A Gaussian mixture as a diffusers model: pipelines hold, save and load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from redif_env.diffusion.noise_schedulers import Parameterization, read_scheduler, scheduler_config
from redif_env.diffusion.placement import HOST
from redif_env.teachers.mixtures import GaussianMixture


class GaussianMixtureModel(ModelMixin, ConfigMixin):
    """The exact predictions of :class:`~redif_env.teachers.mixtures.GaussianMixture`, called as a ``UNet2DModel`` is.

    Args:
        num_components: number K of Gaussians.
        sample_shape: shape S of a sample; for images ``(channels, height, width)``.
        noise: config of a diffusers scheduler, with ``_class_name``: the schedule and the form of the output.
        double: whether means and standard deviations are float64.
        sample_size, in_channels: of images, for pipelines that read them.
    """

    @register_to_config
    def __init__(
        self,
        num_components: int,
        sample_shape: Sequence[int],
        noise: Mapping[str, Any],
        double: bool = False,
        sample_size: int | None = None,
        in_channels: int | None = None,
    ) -> None:
        super().__init__()
        dtype = torch.float64 if double else torch.float32
        means = torch.zeros(num_components, *sample_shape, dtype=dtype, device=HOST)
        parameterization = read_scheduler(noise, "gaussian-mixture")
        self.mixture = GaussianMixture(
            means,
            1.0,
            None,
            parameterization.schedule,
            parameterization.prediction_type,
            parameterization.preconditioning,
        )

    def forward(self, sample: Tensor, timestep: Tensor | float, return_dict: bool = True) -> UNet2DOutput | tuple:
        """Output ``(B, *S)`` at ``sample`` ``(B, *S)``, at a timestep or ``(B,)`` of them."""
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        output = self.mixture(sample, timesteps)
        return UNet2DOutput(sample=output) if return_dict else (output,)

    @classmethod
    def of(cls, mixture: GaussianMixture) -> GaussianMixtureModel:
        """The model of a mixture.

        Raises:
            TypeError: if no diffusers scheduler has its schedule.
        """
        noise = scheduler_config(Parameterization(mixture.schedule, mixture.prediction_type, mixture.preconditioning))
        shape, double = tuple(mixture.means.shape[1:]), mixture.means.dtype == torch.float64
        image = (shape[-1], shape[0]) if len(shape) == 3 else ()
        model = cls(len(mixture.means), shape, noise, double, *image)
        model.mixture.load_state_dict(mixture.state_dict())
        return model.to(mixture.means.device).eval()
