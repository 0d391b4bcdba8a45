# mypy: ignore-errors
"""A student's step as a block of diffusers' modular pipelines. This file needs diffusers and torch alone.

It is copied beside ``redif_scheduler.py`` and ``redif_steps.py`` (the config), which makes a block repository.
"""

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, OutputParam

from .redif_scheduler import ReDiFScheduler
from .redif_steps import CONFIG


class ReDiFStep(ModularPipelineBlocks):
    """Takes the place of the block ``after_denoiser`` of a loop; brings its scheduler along."""

    @property
    def description(self):
        return f"Step of a student of {len(CONFIG['steps'])} steps, after the network."

    @property
    def expected_components(self):
        return [
            ComponentSpec("scheduler", ReDiFScheduler, config=FrozenDict(CONFIG), default_creation_method="from_config")
        ]

    @property
    def intermediate_outputs(self):
        return [OutputParam("latents", type_hint=torch.Tensor, description="The latents after the step")]

    @torch.no_grad()
    def __call__(self, components, block_state, i, t):
        latents = block_state.latents
        (moved,) = components.scheduler.step(block_state.noise_pred, t, latents, return_dict=False)
        block_state.latents = moved.to(latents.dtype)
        return components, block_state
