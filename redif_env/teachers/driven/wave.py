"""One call of a pipeline for a batch of samples that go in lockstep, suspended at each of its scheduler's steps."""

from __future__ import annotations

import itertools
import math
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from redif_env.diffusion.noise_schedulers import Parameterization
from redif_env.diffusion.placement import place
from redif_env.diffusion.solvers import ddim_step
from redif_env.diffusion.types import Level
from redif_env.teachers.driven.injection import Injection
from redif_env.teachers.driven.networks import RUNNING, Blank
from redif_env.teachers.driven.scheduler import driven
from redif_env.teachers.driven.suspension import SuspendedCall
from redif_env.teachers.driven.timesteps import CallKey, Recorder, TimestepPlan

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

_NUMBERS = itertools.count(1)
_SESSION = secrets.randbits(30) << 32  # numbers of an earlier process mean no wave of this one


NONE = Injection()


@dataclass(frozen=True)
class Place:
    """Where samples are: ``x`` ``(B, *S)``, ``half_logsnr`` and ``timestep`` ``(B,)`` float64 on the host.

    What is None is the pipeline's own.
    """

    x: Tensor | None = None
    half_logsnr: Tensor | None = None
    timestep: Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """What the pipeline hands its scheduler: the network's ``output`` at ``x``, both ``(B, *S)``, and the timestep."""

    output: Tensor
    x: Tensor
    timestep: float


class Wave:
    """One call of a pipeline.

    Args:
        pipe: a copy of the pipeline that is this wave's own.
        stock: its scheduler's family.
        parameterization: of the networks.
        arguments: of the call.
        rows: number of samples B.
        first: index of the first timestep that the pipeline steps from, if it is known.
        plan: how each row is given a timestep of its own.
        injection: how samples enter the pipeline.
        blanks: stand for the networks' outputs while ``skipping``.
        recorder: is shown the arguments of every network call.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        stock: SchedulerMixin,
        parameterization: Parameterization,
        arguments: Mapping[str, Any],
        rows: int,
        *,
        first: int | None = None,
        plan: TimestepPlan | None = None,
        injection: Injection = NONE,
        blanks: dict[CallKey, Blank] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.number = _SESSION + next(_NUMBERS)
        self.parameterization, self.rows, self.first = parameterization, rows, first
        self.plan, self.injection, self.recorder = plan, injection, recorder
        self.blanks: dict[CallKey, Blank] = {} if blanks is None else blanks
        self.skipping = False
        self.follows = False  # whether a second state is stepped along
        self.start_size = 1.0  # what the pipeline multiplies its first noise with
        self.index = self.predicted = 0
        self.own_timesteps = torch.empty(0)
        self.own_sigmas: Tensor | None = None
        self.shift = 1.0
        self._pipe, self._arguments = pipe, dict(arguments)
        self._scheduler = driven(stock, self)
        pipe.__dict__["scheduler"] = self._scheduler
        self._place, self._before = Place(), Place()
        self._looping = False
        self.draws: list[tuple[int, ...]] = []
        self.noised_shape: tuple[int, ...] | None = None
        self._counts: Counter[str] = Counter()
        # What belongs to the opening thread is entered by the call's own.
        kind = pipe._execution_device.type
        self._autocast = kind, (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        self._suspended = SuspendedCall(self._run)
        self._suspend: Callable[[Any], Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether the call is over."""
        return self._suspended.finished

    @property
    def remaining(self) -> int:
        """Steps that the pipeline still takes, the pending one included."""
        return len(self.own_timesteps) - (self.first or 0) - self.index

    def predict(self, place: Place) -> Answer | None:
        """Run up to the pipeline's next step, with its samples at ``place``; None if there is none left."""
        self._before, self._place = self._place, place
        finished, answer = self._suspended.resume(place.x)
        if finished:
            self.output = answer
            return None
        assert isinstance(answer, Answer)
        self.predicted += 1
        return answer

    def close(self) -> None:
        """Unwind the call, wherever it is."""
        self._suspended.close()

    # In the pipeline's thread.

    def _run(self, suspend: Callable[[Any], Any]) -> Any:
        self._suspend = suspend
        arguments = self._arguments
        if self.injection.kind == "latents" and self._place.x is not None:
            arguments["latents"] = _ordinary(self._place.x.to(self.injection.dtype))
            if not self.injection.generator:
                arguments.pop("generator", None)
        RUNNING.wave = self
        kind, (enabled, dtype) = self._autocast
        with torch.no_grad(), torch.autocast(kind, dtype, enabled=enabled):
            return self._pipe(**arguments)

    def begin(self, scheduler: Any, mu: float | None) -> None:
        """The pipeline has set the timesteps."""
        if mu is not None and scheduler.config.get("use_dynamic_shifting"):
            exponential = scheduler.config.get("time_shift_type", "exponential") == "exponential"
            self.shift = math.exp(mu) if exponential else float(mu)
        else:
            self.shift = float(getattr(scheduler, "shift", None) or 1.0)
        self.own_timesteps = scheduler.timesteps.cpu().double()
        self.own_sigmas = getattr(scheduler, "sigmas", None)
        if self.own_sigmas is not None:
            scheduler.sigmas = self.own_sigmas.clone()
        if not scheduler.timesteps.is_floating_point():
            scheduler.timesteps = scheduler.timesteps.float()
        else:
            scheduler.timesteps = scheduler.timesteps.clone()
        self._looping, self.index, self._counts = True, 0, Counter()
        self._write_timestep()

    def scaled(self, sample: Tensor) -> Tensor:
        """What the network is given for a sample."""
        rows = sample.reshape(1) if sample.ndim == 0 else sample
        level = self._level(len(rows))
        if level is None:
            return sample
        return self.parameterization.preconditioning.inputs(rows, level).reshape(sample.shape)

    def noised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """A clean sample with noise: at the levels at which the samples are, or the samples themselves."""
        level = self._level(len(clean))
        if level is not None:
            alpha, sigma = (place(scale, noise) for scale in (level.alpha, level.sigma))
            clean = alpha * clean + sigma * noise
        if self.index == 0 and self.noised_shape is None:
            self.noised_shape = tuple(clean.shape)
            if self.injection.kind == "noised" and self._place.x is not None:
                return self.injection.fill(clean, self._place.x)
        return clean

    def drawn(self, noise: Tensor) -> Tensor:
        """What the pipeline gets for ``noise`` that it draws: the samples, where they belong."""
        self.draws.append(tuple(noise.shape))
        due = self.injection.kind == "drawn" and self.injection.number == len(self.draws) - 1
        return self.injection.fill(noise, self._place.x) if due and self._place.x is not None else noise

    def step(self, output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
        """The next sample: suspended until it is known."""
        given = float(torch.as_tensor(timestep).reshape(-1)[0])
        if self.first is None:
            matching = (self.own_timesteps == given).nonzero()
            self.first = int(matching[0, 0]) if len(matching) else 0
        copies = len(sample) // self.rows  # some pipelines carry every sample twice
        sample, predicted = sample[: self.rows], output[: self.rows]
        if predicted.shape[1] != sample.shape[1]:  # a variance beside the prediction
            predicted = predicted[:, : sample.shape[1]]
        assert self._suspend is not None
        moved = self._suspend(Answer(predicted, sample, given))
        if moved is None:
            moved = sample
        self.index += 1
        self._counts = Counter()
        self._looping = self.first + self.index < len(self.own_timesteps)
        self._write_timestep()
        moved = _ordinary(moved.to(device=output.device, dtype=output.dtype))
        return torch.cat([moved] * copies) if copies > 1 else moved

    def follow(self, output: Tensor, sample: Tensor) -> Tensor:
        """The next sample of a second state, by a first-order step between the same levels."""
        self.follows = True
        here, there = self._before.half_logsnr, self._place.half_logsnr
        if here is None or there is None:
            return sample
        schedule = self.parameterization.schedule
        level = schedule.level(here)
        x = sample.float()
        prediction = self.parameterization.preconditioning.read(
            output.float(), x, level, self.parameterization.prediction_type
        )
        return ddim_step(x, prediction.x0, level, schedule.level(there)).to(output.dtype)

    def call(self, name: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a network returns: each row given its own timestep."""
        if not self._looping:
            return forward(*args, **kwargs)
        key = (name, self._counts[name])
        self._counts[name] += 1
        if self.recorder is not None:
            self.recorder.record(self.index, key, args, kwargs)
        if self.skipping and key in self.blanks:
            return self.blanks[key](self.rows)
        if self.plan is not None and self._deviation is not None:
            args, kwargs = self.plan.rewrite(key, args, kwargs, self._deviation)
        output = forward(*args, **kwargs)
        if key not in self.blanks:
            self.blanks[key] = Blank.of(output, self.rows)
        return output

    def _level(self, count: int) -> Level | None:
        """The samples' levels, once for each of ``count`` rows; None where they are the pipeline's own."""
        half_logsnr = self._place.half_logsnr
        if half_logsnr is None:
            return None
        return self.parameterization.schedule.level(half_logsnr.repeat(-(-count // len(half_logsnr)))[:count])

    def _write_timestep(self) -> None:
        """Put the rows' mean timestep where the pipeline reads its own, and store each row's deviation from it."""
        self._deviation: Tensor | None = None
        timestep, index = self._place.timestep, (self.first or 0) + self.index
        if timestep is None or index >= len(self.own_timesteps):
            return
        common = bool((timestep == timestep[0]).all())
        written = timestep[0] if common else timestep.mean()
        self._scheduler.timesteps[index] = written.to(self._scheduler.timesteps.dtype)
        if self.own_sigmas is not None and self._place.half_logsnr is not None:
            sigma = self.parameterization.schedule.level(self._place.half_logsnr[:1]).sigma[0]
            inverted = self._scheduler.config.get("invert_sigmas")
            self._scheduler.sigmas[index] = 1 - sigma if inverted else sigma
        if not common:
            self._deviation = timestep - float(self._scheduler.timesteps[index])


def _ordinary(x: Tensor) -> Tensor:
    """What a caller in inference mode gave, as a tensor that may be changed in place."""
    return x.clone() if x.is_inference() else x
