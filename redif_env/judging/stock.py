"""The rivals of a driven pipeline: itself, called with its own scheduler and with the best stock ones."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST
from redif_env.diffusion.schedules import FlowSchedule, VarianceExplodingSchedule
from redif_env.mdp.settings import OWN
from redif_env.teachers.driven.stock import stock_samples
from redif_env.teachers.teacher import PipelineTeacher, Teacher

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

TRIED = 2
"""Samples and steps by which is found out whether a pipeline takes a scheduler."""


@dataclass(frozen=True)
class StockBaseline:
    """A scheduler of diffusers in the pipeline's own call, on the timesteps that it sets itself.

    ``method`` is its name in tables; ``scheduler`` is left as it is.
    """

    method: str
    scheduler: SchedulerMixin = field(compare=False, repr=False)
    grid: ClassVar[str] = OWN

    def called(self, num_steps: int) -> int:
        """With how many steps a pipeline is called that is to make ``num_steps`` predictions at most."""
        return next(
            (steps for steps in range(num_steps, 1, -1) if self._predictions(steps) <= num_steps), min(1, num_steps)
        )

    def predictions(self, num_steps: int) -> int:
        """Those of ``num_steps`` that it makes: schedulers of second order make an odd number."""
        return self._predictions(self.called(num_steps))

    def _predictions(self, steps: int) -> int:
        scheduler: Any = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(steps, **({"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}))
        return len(scheduler.timesteps)

    @torch.inference_mode()
    def __call__(self, teacher: Teacher, noise: Tensor, num_steps: int, condition: Tensor | None = None) -> Tensor:
        """Samples ``(B, *S)`` from ``noise``, with ``num_steps`` predictions each at most."""
        assert isinstance(teacher, PipelineTeacher)
        rows = torch.zeros(len(noise), dtype=torch.int64, device=HOST) if condition is None else condition
        called = self.called(num_steps)
        parts = zip(noise.split(teacher.run_size), rows.split(teacher.run_size), strict=True)
        return torch.cat(
            [stock_samples(teacher.drive, self.scheduler, part, index.tolist(), called) for part, index in parts]
        )


def stock_baselines(teacher: PipelineTeacher) -> list[StockBaseline]:
    """The pipeline's own scheduler, and the best stock ones that it takes; none where it begins from an image."""
    drive = teacher.drive
    if teacher.probe.from_image or drive.injection.kind not in ("latents", "drawn"):
        return []
    own = drive.pipe.scheduler
    every = [StockBaseline(type(own).__name__.removesuffix("Scheduler"), own), *_rivals(teacher, own)]
    return [baseline for baseline in every if _fits(baseline, teacher)]


def _rivals(teacher: PipelineTeacher, own: SchedulerMixin) -> list[StockBaseline]:
    """Schedulers of the same noise schedule, with the settings that are best in few steps."""
    import diffusers as d

    config = own.config
    if isinstance(teacher.schedule, FlowSchedule):
        shifted = {"flow_shift": config.get("shift") or 1.0, "use_flow_sigmas": True}
        flow = shifted | {"prediction_type": "flow_prediction"}
        made = {
            "FlowMatchEuler": d.FlowMatchEulerDiscreteScheduler.from_config(config),
            "FlowMatchHeun": d.FlowMatchHeunDiscreteScheduler.from_config(config),
            "DPM-Solver++ 2M": d.DPMSolverMultistepScheduler.from_config(config, **flow),
            "UniPC": d.UniPCMultistepScheduler.from_config(config, **flow),
        }
    elif isinstance(teacher.schedule, VarianceExplodingSchedule):
        made = {
            "EDMEuler": d.EDMEulerScheduler.from_config(config),
            "DPM-Solver++ 2M": d.EDMDPMSolverMultistepScheduler.from_config(config),
        }
    else:
        spaced = {"timestep_spacing": "trailing"}
        karras = {**spaced, "use_karras_sigmas": True}
        made = {
            "DDIM": d.DDIMScheduler.from_config(config, **spaced),
            "DPM-Solver++ 2M": d.DPMSolverMultistepScheduler.from_config(config, **spaced),
            "DPM-Solver++ 2M Karras": d.DPMSolverMultistepScheduler.from_config(config, **karras),
            "UniPC": d.UniPCMultistepScheduler.from_config(config, **spaced),
            "UniPC Karras": d.UniPCMultistepScheduler.from_config(config, **karras),
            "Heun": d.HeunDiscreteScheduler.from_config(config, **spaced),
        }
    owned = type(own).__name__.removesuffix("Scheduler")
    return [StockBaseline(name, scheduler) for name, scheduler in made.items() if name != owned]


def _fits(baseline: StockBaseline, teacher: PipelineTeacher) -> bool:
    """Whether the pipeline runs with the scheduler."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(TRIED, *teacher.sample_shape, generator=generator).to(teacher.device)
    try:
        found = bool(baseline(teacher, noise, TRIED + 1).isfinite().all())
    except Exception as error:  # each pipeline raises its own
        print(f"{teacher.name} does not run with {baseline.method}, which is left out: {error}", flush=True)
        return False
    return found
