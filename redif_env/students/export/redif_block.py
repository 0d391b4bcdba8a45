# mypy: ignore-errors
"""A student's step as a block of diffusers' modular pipelines. This file needs diffusers and torch alone.

With the scheduler's config in it, it is copied beside ``redif_scheduler.py``, which makes a block repository.
"""

import copy

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, OutputParam

from .redif_scheduler import ReDiFScheduler

CONFIG = {}


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

    @property
    def scheduler(self):
        """The student's scheduler, for ``pipe.update_components(scheduler=...)`` where the pipeline loads its own."""
        return ReDiFScheduler.from_config(CONFIG)

    def put_into(self, blocks):
        """A copy of ``blocks`` in which this block has the place of every ``after_denoiser``.

        Raises:
            ValueError: if there is none.
        """
        blocks = copy.deepcopy(blocks)  # diffusers' own share their parts
        if not self._replace_in(blocks):
            raise ValueError(f"{type(blocks).__name__} has no block named after_denoiser, whose place this one takes")
        return blocks

    def _replace_in(self, blocks):
        found = 0
        for name, block in getattr(blocks, "sub_blocks", {}).items():
            if name == "after_denoiser":
                blocks.sub_blocks[name] = self
                found += 1
            else:
                found += self._replace_in(block)
        return found

    @torch.no_grad()
    def __call__(self, components, block_state, i, t):
        if type(components.scheduler).__name__ != "ReDiFScheduler":
            raise ValueError(
                f"the pipeline has a {type(components.scheduler).__name__}, whose timesteps are not this student's: "
                "pipe.update_components(scheduler=step.scheduler), where step is this block"
            )
        latents = block_state.latents
        (moved,) = components.scheduler.step(block_state.noise_pred, t, latents, return_dict=False)
        block_state.latents = moved.to(latents.dtype)
        return components, block_state
