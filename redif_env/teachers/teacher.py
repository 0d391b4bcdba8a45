"""Teachers: the frozen many-step models, behind one interface.

A teacher is a network, the schedule it was trained on, the meaning of its output (``prediction_type``, as in diffusers)
and its conditions. The rest of the library uses ``predict``, ``endpoint``, ``images`` and ``sample_shape``.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from redif_env.diffusion.grids import LevelsGrid, TimeGrid
from redif_env.diffusion.noise_schedulers import Parameterization
from redif_env.diffusion.placement import HOST, full_precision, has_float64, stock_defaults
from redif_env.diffusion.predictions import PLAIN, Preconditioning
from redif_env.diffusion.schedules import FlowSchedule, Schedule, VariancePreservingSchedule
from redif_env.diffusion.solvers import DPMSolverPP, sample
from redif_env.diffusion.types import Prediction, PredictionType, State
from redif_env.storage.checks import check_argument
from redif_env.storage.files import ASSETS, write_folder
from redif_env.teachers.conditions import UNCONDITIONAL, Conditions, ConditionsLike, guide
from redif_env.teachers.driven.arguments import Condition, call_arguments
from redif_env.teachers.driven.drive import PROBED, Drive, Probe
from redif_env.teachers.driven.wave import Answer, Place
from redif_env.teachers.driven.waves import Waves
from redif_env.teachers.fingerprint import fingerprint_of
from redif_env.teachers.mixtures import GaussianMixture
from redif_env.teachers.networks import call_by_name
from redif_env.teachers.pipelines import BUILT_IN, read_pipeline, write_bounds, write_pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

DECODED_BATCH = 16
"""Latents of one call of the decoder."""

Call = Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""How a network is called: network, ``x`` ``(B, *S)``, timestep ``(B,)``, inputs of its condition, to ``(B, *S)``."""


class Decoder(Protocol):
    """From latents ``(B, *S)`` to images ``(B, *image_shape)`` in about [-1, 1]."""

    @property
    def image_shape(self) -> tuple[int, ...]: ...

    def __call__(self, latents: Tensor) -> Tensor: ...


def positional(network: nn.Module, x: Tensor, timestep: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """``network(x, timestep, *inputs)``, as a user's own module is called."""
    result = network(x, timestep, *inputs.values())
    output: Tensor = getattr(result, "sample", result)
    return output


class Teacher:
    """A frozen diffusion model.

    Args:
        network: called as ``network(x, timestep)``, or ``network(x, timestep, condition)`` with ``conditions``. ``x``
            ``(B, *S)`` has the network's type; ``timestep`` ``(B,)`` is float32, or float64 for a float64 network. It
            returns ``(B, *S)`` or an object with ``.sample``, as diffusers' models do. It is frozen and put in
            evaluation mode.
        schedule: the noise schedule that the network was trained on.
        sample_shape: shape S of one sample.
        prediction_type: what the network predicts.
        name: name in tables and messages.
        preconditioning: preconditioning of the network's input and output.
        conditions: class labels or prompts.
        guidance_scale: scale of classifier-free guidance, with which a prediction makes two network calls, one without
            the condition. None or 1 makes one call.
        call: another way to call the network.
        decoder: decoder of latents, for a latent model.
        source: the diffusers pipeline that the network is from.
        bounds: range of the data, such as ``(-1.0, 1.0)``, to which finished samples are clipped; None if not bounded.
        own_network: whether the network is a student's, which replaces the network of the teacher with this name.

    ``copy.deepcopy`` returns the same teacher, because it never changes and networks are large.
    """

    run_size = 512
    """Number of samples that run together when endpoints are made."""

    common_levels = False
    """Whether all samples of one call must be at the same level."""

    memoryless = True
    """Whether a prediction depends on the state alone, so that one serves all who are in the same."""

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        sample_shape: Sequence[int],
        prediction_type: PredictionType = PredictionType.EPSILON,
        name: str = "teacher",
        *,
        preconditioning: Preconditioning = PLAIN,
        conditions: Conditions = UNCONDITIONAL,
        guidance_scale: float | None = None,
        call: Call = positional,
        decoder: Decoder | None = None,
        source: DiffusionPipeline | None = None,
        bounds: tuple[float, float] | None = None,
        own_network: bool = False,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.schedule = schedule
        self.sample_shape = tuple(sample_shape)
        self.prediction_type = PredictionType(prediction_type)
        self.name = name
        self.preconditioning = preconditioning
        self.conditions = conditions.to(self.device, self.dtype)
        self.guidance_scale = None if guidance_scale == 1 else guidance_scale
        self.call = call
        self.decoder = decoder
        self.source = source
        self.bounds = check_bounds(bounds)
        self.own_network = own_network
        if self.guidance_scale is not None and conditions.null is None:
            raise ValueError(
                f"guidance_scale={guidance_scale} needs a prediction without condition, which teacher {name!r} has "
                "none of: leave it out, or name the null_label that it was trained with"
            )
        if self.guidance_scale is not None and not 0 < self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale must be above 0 and finite, got {guidance_scale}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self

    def __repr__(self) -> str:
        return f"Teacher({self.name!r}, sample_shape={self.sample_shape}, {self.prediction_type.value})"

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return next(_tensors(self.network)).device

    @property
    def dtype(self) -> torch.dtype:
        """The network's floating point type."""
        return next(_tensors(self.network)).dtype

    @property
    def parameterization(self) -> Parameterization:
        """Schedule, prediction type and preconditioning together, as in a scheduler's config."""
        return Parameterization(self.schedule, self.prediction_type, self.preconditioning)

    @property
    def calls(self) -> int:
        """Network calls (NFE) per prediction: two with guidance."""
        return 1 if self.guidance_scale is None else 2

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of the image that :meth:`images` returns for one sample."""
        return self.sample_shape if self.decoder is None else self.decoder.image_shape

    @property
    def vae(self) -> nn.Module | None:
        """The pipeline's model that encodes images as latents; None if there is none."""
        named = (getattr(self.source, name, None) for name in ("vae", "vqvae"))
        encodes = (part for part in named if hasattr(part, "encoder") and len(self.image_shape) > 2)
        return next(encodes, None)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that affects its predictions; the key of its cached samples."""
        # By this class's own method, whatever a subclass counts or records.
        return fingerprint_of(self, partial(Teacher.predict, self))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Teacher:
        """Move the network to a device and, if given, a floating point type, in place. Returns this teacher."""
        device = torch.device(device)
        if (dtype or self.dtype) == torch.float64 and not has_float64(device):
            raise ValueError(f"teacher {self.name!r} is float64, which {device} has not: give torch.float32 as dtype")
        if dtype is not None and dtype != self.dtype:
            self.network.to(dtype)
        self.network.to(device)
        if isinstance(self.decoder, nn.Module):
            self.decoder.to(device)
        self.conditions = self.conditions.to(device, self.dtype)
        return self

    def on(self, device: torch.device) -> Teacher:
        """This teacher if it is on ``device``, else a copy of it there."""
        if torch.empty(0, device=device).device == self.device:
            return self
        moved = copy.copy(self)
        moved.network, moved.decoder = copy.deepcopy((self.network, self.decoder))
        return moved.to(device)

    def predict(
        self,
        x: Tensor,
        half_logsnr: Tensor,
        timestep: Tensor,
        condition: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Prediction:
        """One prediction for ``x`` ``(B, *S)`` at level ``half_logsnr``, with the network conditioned on ``timestep``.

        The conditioning timestep may differ from the timestep of the level. The level is used to convert the output.

        Args:
            x: the sample, on the teacher's device.
            half_logsnr, timestep: its level and the conditioning timestep, ``(B,)`` float64 on the CPU.
            condition: indices ``(B,)`` int64 of ``conditions``, on the CPU; the first if not given.
            guidance: guidance scale ``(B,)`` on the CPU; the teacher's if not given. Ignored without guidance.
        """
        level, dtype = self.schedule.level(half_logsnr), self.dtype
        given = self.preconditioning.inputs(x, level).to(dtype)
        # Half precision has no 999 (bfloat16 makes 1000 of it): networks convert the embedding of it themselves.
        placed = timestep.to(x.device, torch.promote_types(dtype, torch.float32))
        rows = torch.zeros(len(x), dtype=torch.int64, device=HOST) if condition is None else condition
        inputs = self.conditions.select(rows)
        if self.guidance_scale is None:
            output = self.call(self.network, given, placed, inputs).to(x.dtype)
        else:
            scale = torch.full_like(half_logsnr, self.guidance_scale) if guidance is None else guidance
            without = self.conditions.unconditional(len(x))
            both = {name: torch.cat([without[name], tensor]) for name, tensor in inputs.items()}
            twice = self.call(self.network, torch.cat([given, given]), torch.cat([placed, placed]), both).to(x.dtype)
            free, conditional = twice.chunk(2)
            output = guide(free, conditional, scale)
        return self.preconditioning.read(output, x, level, self.prediction_type)

    def initial_sample(self, noise: Tensor, condition: Tensor | None, half_logsnr: Tensor) -> Tensor:
        """What runs begin with for ``noise`` ``(B, *S)``, at the level ``(1,)`` of the first step: the noise."""
        return noise

    def predict_at(self, state: State) -> Prediction:
        """The prediction that the episodes of ``state`` need next."""
        return self.predict(state.x, state.half_logsnr, state.timestep, state.condition, state.guidance)

    @torch.inference_mode()
    def endpoint(
        self,
        noise: Tensor,
        num_steps: int = 100,
        condition: Tensor | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """The teacher's samples ``(B, *S)`` from ``noise``, by DPM-Solver++(2M) on uniform time.

        Args:
            noise: standard normal ``(B, *S)``.
            num_steps: number of predictions for each sample.
            condition: indices ``(B,)`` of ``conditions``, on the CPU; the first if not given.
            progress: called after each batch with its number of samples.
        """
        if noise.shape[1:] != self.sample_shape:
            raise ValueError(f"noise must have shape (batch, {self.sample_shape}), got {tuple(noise.shape)}")
        rows = torch.zeros(len(noise), dtype=torch.int64, device=HOST) if condition is None else condition
        ends = []
        # Samples are float32 at least, whatever the network is.
        noise = noise.to(self.device, torch.promote_types(noise.dtype, torch.float32))
        for part, own in zip(noise.split(self.run_size), rows.split(self.run_size), strict=True):
            with full_precision(part.device):
                ends.append(sample(self, DPMSolverPP(2), TimeGrid(), part, num_steps, own))
            if progress is not None:
                progress(len(part))
        return torch.cat(ends) if ends else noise

    def clip(self, samples: Tensor) -> Tensor:
        """``samples`` ``(B, *S)``, clipped to the ``bounds`` of the data if there are any."""
        return samples if self.bounds is None else samples.clamp(*self.bounds)

    @torch.no_grad()
    def images(self, samples: Tensor) -> Tensor:
        """Images ``(B, *image_shape)`` of ``samples`` ``(B, *S)``: latents are decoded to [-1, 1], others clipped."""
        if self.decoder is None:
            return self.clip(samples)
        decoder = self.decoder
        decoded = [decoder(part).to(samples.dtype) for part in samples.split(DECODED_BATCH)]
        return torch.cat(decoded).clamp(-1, 1) if decoded else samples.new_zeros(0, *self.image_shape)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        conditions: ConditionsLike | None = None,
        null_label: int | None = None,
        guidance_scale: float | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        bounds: tuple[float, float] | None = None,
        name: str | None = None,
    ) -> Teacher:
        """Load a teacher from a diffusers folder or hub id: a pipeline, or a model with its scheduler's config.

        The schedule and the prediction type are read from the scheduler. Supported networks: ``UNet2DModel``,
        unconditional or with class labels; ``DiTTransformer2DModel``; ``UNet2DConditionModel`` of Stable Diffusion;
        ``SD3Transformer2DModel``.

        Args:
            name_or_path: folder or hub id.
            conditions: prompts or class labels, all labels if not given; a mapping gives them weights.
            null_label: the label that a ``UNet2DModel`` was trained with for no condition; other networks have one.
            guidance_scale: scale of classifier-free guidance; no guidance if not given.
            torch_dtype: type of the network; float32 if not given.
            variant: variant of the files, as in diffusers (``"fp16"``).
            bounds: range of the data, to which finished samples are clipped. By default the range of the scheduler's
                ``clip_sample``, or [-1, 1] for diffusers' pixel pipelines. ``(-inf, inf)`` does not clip.
            name: name in messages; the path if not given.

        Raises:
            ValueError: if there is no such model, the weights are pickled, a condition is missing or unknown, or the
                model or scheduler is not supported; the message says why.
        """
        check_argument("name_or_path", name_or_path, str | Path)
        check_argument("null_label", null_label, int | None)
        check_argument("guidance_scale", guidance_scale, float | None)
        check_argument("torch_dtype", torch_dtype, torch.dtype | None)
        check_argument("variant", variant, str | None)
        check_argument("name", name, str | None)
        check_bounds(bounds)
        called = name or str(name_or_path)
        with stock_defaults():
            found = read_pipeline(name_or_path, called, conditions, null_label, torch_dtype, variant)
        return cls(
            found.network,
            found.parameterization.schedule,
            found.sample_shape,
            found.parameterization.prediction_type,
            called,
            preconditioning=found.parameterization.preconditioning,
            conditions=found.conditions,
            guidance_scale=guidance_scale,
            call=call_by_name,
            decoder=found.decoder,
            source=found.source,
            bounds=found.bounds if bounds is None else bounds,
        )

    @classmethod
    def from_pipeline(
        cls,
        pipe: DiffusionPipeline,
        conditions: Sequence[Condition] | Mapping[Condition, float] | None = None,
        *,
        name: str | None = None,
        run_size: int = 8,
        bounds: tuple[float, float] | None = None,
        **arguments: Any,
    ) -> PipelineTeacher:
        """Make a teacher of a diffusers pipeline as it is, with its LoRAs, guidance, ControlNets and offloading.

        Works with any class that loops over ``scheduler.step``. Every prediction is made by calling a shallow copy of
        the pipeline with another scheduler. A few calls first find out how (:attr:`PipelineTeacher.probe`).

        Args:
            pipe: the pipeline.
            conditions: prompts, class labels, or dicts of the call's arguments (tensors with a leading dimension of 1).
                A mapping, or a ``"weight"`` in the dicts, gives weights. A single empty condition if not given.
            name: name in messages; the pipeline's class if not given.
            run_size: largest number of samples in one call.
            bounds: range to which finished samples are clipped if they are not latents; [-1, 1] if not given, as
                pipelines clip their images. ``(-inf, inf)`` does not clip.
            arguments: arguments of every call, such as ``height`` and ``guidance_scale``.

        Raises:
            TypeError: if ``pipe`` is not a pipeline.
            ValueError: if the pipeline cannot be driven or does not take an argument; the message says why.
        """
        check_bounds(bounds)
        asked, values = call_arguments(conditions, arguments)
        drive = Drive(pipe, asked, arguments)
        teacher = PipelineTeacher(drive, values, name or type(pipe).__name__, run_size)
        if bounds is not None:
            teacher.bounds = check_bounds(bounds)
        return teacher

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a diffusers pipeline folder that :meth:`from_pretrained` and diffusers read.

        Raises:
            TypeError: if the network is neither a diffusers model nor a Gaussian mixture, or no diffusers scheduler has
                such a schedule.
        """
        with write_folder(Path(folder)) as half_written:
            if self.source is not None:
                self.source.save_pretrained(str(half_written), safe_serialization=True)
            else:
                write_pipeline(self.network, self.parameterization, half_written)
            write_bounds(half_written, self.bounds, self.decoder is not None)


class GaussianMixtureTeacher(Teacher):
    """A teacher with exact predictions: those of a Gaussian mixture in closed form, for any schedule and dimension.

    Args:
        means: means of the K components ``(K, *S)``.
        stds: standard deviations, broadcast against ``means`` (axis-aligned covariances).
        weights: weights ``(K,)``, positive; they are normalised. Equal if not given.
        schedule: any schedule; linear variance-preserving if not given.
        prediction_type: form of the output; if not given, ``flow_prediction`` on flow schedules and ``epsilon`` on
            others.
        preconditioning: preconditioning of input and output.
        bounds: as in :class:`Teacher`.
    """

    network: GaussianMixture

    def __init__(
        self,
        means: Tensor,
        stds: Tensor | float,
        weights: Tensor | None = None,
        schedule: Schedule | None = None,
        name: str = "gaussian-mixture",
        *,
        prediction_type: PredictionType | None = None,
        preconditioning: Preconditioning = PLAIN,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        schedule = schedule or VariancePreservingSchedule.from_diffusers()
        if prediction_type is None:
            flow = isinstance(schedule, FlowSchedule)
            prediction_type = PredictionType.FLOW_PREDICTION if flow else PredictionType.EPSILON
        network = GaussianMixture(means, stds, weights, schedule, prediction_type, preconditioning)
        super().__init__(
            network,
            schedule,
            means.shape[1:],
            prediction_type,
            name,
            preconditioning=preconditioning,
            bounds=bounds,
        )

    @classmethod
    def ring(cls) -> GaussianMixtureTeacher:
        """Eight Gaussians of standard deviation 0.05 on a circle of radius 0.8, a common toy example."""
        angles = torch.arange(8, dtype=torch.float64, device=HOST) * (torch.pi / 4)
        return cls(0.8 * torch.stack([angles.cos(), angles.sin()], dim=1).float(), 0.05, name="gaussian-ring")


class PipelineTeacher(Teacher):
    """A diffusers pipeline that makes its predictions by its own call (:mod:`redif_env.teachers.driven`).

    The pipeline does not change: nothing is moved, cast or hooked. Guidance and everything else is up to its call.

    Args:
        drive: the pipeline and the arguments of its call.
        conditions: the conditions of episodes, one for each condition of ``drive``.
        name: name in tables and messages.
        run_size: largest number of samples in one call.
    """

    memoryless = False

    def __init__(self, drive: Drive, conditions: Conditions, name: str, run_size: int) -> None:
        found = drive.parameterization
        self.schedule, self.prediction_type, self.preconditioning = (
            found.schedule,
            found.prediction_type,
            found.preconditioning,
        )
        self.drive, self.conditions, self.name, self.run_size = drive, conditions, name, run_size
        self.sample_shape, self.network, self.source = drive.probe.sample_shape, drive.network, drive.pipe
        self.guidance_scale, self.own_network = None, False
        self.decoder = PipelineDecoder(drive, run_size) if drive.decodes else None
        self.bounds = None if drive.decodes else (-1.0, 1.0)
        self.waves = Waves(drive, run_size)
        self.common_levels = bool(drive.probe.common)
        weakref.finalize(self, self.waves.close)

    @property
    def probe(self) -> Probe:
        """What was found out about the pipeline by calling it; printable."""
        return self.drive.probe

    @property
    def begins_with_noise(self) -> bool:
        """Whether the pipeline's first sample is standard normal, whatever its level is."""
        return isinstance(self.schedule, FlowSchedule)

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return self.drive.device

    @property
    def calls(self) -> int:
        return self.probe.calls

    @property
    def fingerprint(self) -> str:
        return self.drive.fingerprint

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> PipelineTeacher:
        """This teacher as it is: a pipeline is moved and cast by whom it belongs to."""
        return self

    def on(self, device: torch.device) -> PipelineTeacher:
        if device.type != self.device.type:
            raise ValueError(
                f"teacher {self.name!r} computes where its pipeline does, on {self.device}: call "
                f"pipe.to({device.type!r}) and make the teacher of it again"
            )
        return self

    def close(self) -> None:
        """End all suspended calls; the next prediction opens another."""
        self.waves.close()

    def own_grid(self, num_steps: int) -> LevelsGrid:
        """The pipeline's own timesteps for so many steps."""
        levels = self.drive.own_levels(num_steps)
        if self.probe.from_image:
            # Few steps would begin an image at another level than many, and so solve another problem.
            first = self.schedule.half_logsnr_at(torch.ones(1, dtype=torch.float64))
            levels = (float(first), *levels[1:])
        return LevelsGrid(levels)

    def initial_sample(self, noise: Tensor, condition: Tensor | None, half_logsnr: Tensor) -> Tensor:
        if not self.probe.from_image:
            # Pipelines of flows begin with the noise as it is, at whatever level.
            return noise / float(self.schedule.size(half_logsnr)) if self.begins_with_noise else noise
        rows = [0] * len(noise) if condition is None else condition.tolist()
        images, level = self.drive.images(rows).to(noise), self.schedule.level(half_logsnr)
        mixed = float(level.alpha) * images + float(level.sigma) * noise
        return mixed / float(self.schedule.size(half_logsnr))

    def predict_at(self, state: State) -> Prediction:
        return self._predicted(
            Place(state.x, state.half_logsnr.cpu(), state.timestep.cpu()),
            state.condition,
            state.predictions,
            state.predictions + state.steps_left,
            state.wave,
        )

    def predict(
        self,
        x: Tensor,
        half_logsnr: Tensor,
        timestep: Tensor,
        condition: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Prediction:
        """As the first prediction of a call of its own; ``guidance`` is without effect."""
        rows = torch.zeros(len(x), dtype=torch.int64)
        place = Place(x, half_logsnr.cpu(), timestep.cpu())
        found = self._predicted(place, rows if condition is None else condition, rows, rows + PROBED, rows)
        assert found.wave is not None
        self.waves.drop(found.wave.tolist())
        return found

    def _predicted(self, place: Place, condition: Tensor, index: Tensor, num_steps: Tensor, wave: Tensor) -> Prediction:
        assert place.x is not None
        assert place.half_logsnr is not None
        x, level = place.x, self.schedule.level(place.half_logsnr)
        output, seen = torch.empty_like(x), torch.empty_like(x)
        numbers = torch.zeros(len(x), dtype=torch.int64)
        for rows, number, answer in self.waves.predict(place, condition, index, num_steps, wave):
            output[rows], seen[rows], numbers[rows] = answer.output.to(x), answer.x.to(x), number
            self._check(answer, rows, condition, index)
        # What was only rounded on its way is no other sample.
        half = x.to(self.drive.dtype).to(x)
        seen = torch.where(seen == half, x, seen)
        read = self.preconditioning.read(output, seen, level, self.prediction_type)
        return replace(read, x=seen, wave=numbers)

    def _check(self, answer: Answer, rows: list[int], condition: Tensor, index: Tensor) -> None:
        finite = answer.output.isfinite()
        if bool(finite.all()):
            return
        row = rows[int((~finite.flatten(1).all(dim=1)).nonzero()[0, 0])]
        raise ValueError(
            f"teacher {self.name!r} predicted NaN or infinity at step {int(index[row]) + 1} for "
            f"{self.conditions.names[int(condition[row])]!r}: half precision may be too small for this network, try "
            "bfloat16 or float32"
        )


class PipelineDecoder:
    """What a pipeline shows of its latents, decoded by its own call.

    Args:
        drive: of the pipeline.
        run_size: samples that are decoded together at most.
    """

    def __init__(self, drive: Drive, run_size: int) -> None:
        self.drive, self.run_size = drive, run_size

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self(torch.zeros(1, *self.drive.probe.sample_shape, device=self.drive.device)).shape[1:])

    def __call__(self, latents: Tensor) -> Tensor:
        return torch.cat([self.drive.decoded(part, [0] * len(part)) for part in latents.split(self.run_size)])


def config_of(teacher: Teacher) -> dict[str, Any]:
    """The config of a teacher's network, with its ``_class_name``.

    Raises:
        ValueError: if it is no diffusers model.
    """
    config = getattr(teacher.network, "config", None)
    if config is None:
        raise ValueError(
            f"teacher={teacher.name!r} has a {type(teacher.network).__name__}, which is no diffusers model: give the "
            "student's network a config"
        )
    return {**config, "_class_name": type(teacher.network).__name__}


def own_teacher(teacher: Teacher, network: nn.Module, parameterization: Parameterization) -> Teacher:
    """A teacher with a student's own ``network`` and its parameterization: one call a prediction, the same conditions.

    It is never guided: a student learns the samples of the guided teacher.
    """
    return Teacher(
        network,
        parameterization.schedule,
        teacher.sample_shape,
        parameterization.prediction_type,
        teacher.name,
        preconditioning=parameterization.preconditioning,
        conditions=teacher.conditions,
        call=call_by_name,
        decoder=teacher.decoder,
        source=teacher.source,
        bounds=teacher.bounds,
        own_network=True,
    )


def check_bounds(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    """Two numbers, the smaller first; None where neither bounds anything.

    Raises:
        ValueError: if they are something else.
    """
    if bounds is None:
        return None
    try:
        low, high = (float(end) for end in bounds)
    except (TypeError, ValueError):
        raise ValueError(f"bounds must be two numbers, the smaller first, got {bounds!r}") from None
    if not low < high:
        raise ValueError(f"bounds must be two numbers, the smaller first, got {bounds!r}")
    return None if (low, high) == (-math.inf, math.inf) else (low, high)


def load_teacher(
    name_or_path: str | Path,
    *,
    conditions: ConditionsLike | None = None,
    null_label: int | None = None,
    guidance_scale: float | None = None,
    variant: str | None = None,
) -> Teacher:
    """Load a built-in teacher, or a diffusers pipeline from disk or from the hub.

    Args:
        name_or_path: ``"digits"`` (8x8 images, noise prediction), ``"digits-classes"`` (the same images by class,
            velocity prediction), ``"mnist"`` (28x28 images by class, flow matching), ``"cifar10"`` (32x32 images by
            class, EDM), ``"gaussian-ring"`` (two dimensions, exact), or a folder or hub id for
            :meth:`Teacher.from_pretrained`: a pipeline, the folder of :meth:`Teacher.save_pretrained`, or a student's
            folder, whose network is loaded.
        conditions, null_label, guidance_scale, variant: as in :meth:`Teacher.from_pretrained`.

    Raises:
        ValueError: if there is no such teacher, or it is not supported; the message says why.
    """
    name = str(name_or_path)
    if name == "gaussian-ring":
        given = {"conditions": conditions, "null_label": null_label, "guidance_scale": guidance_scale}
        unused = ", ".join(f"{key}={value!r}" for key, value in given.items() if value is not None)
        if unused:
            raise ValueError(f"{unused} cannot be given to teacher={name!r}, which takes none")
        return GaussianMixtureTeacher.ring()
    built_in = name in BUILT_IN
    return Teacher.from_pretrained(
        ASSETS / name if built_in else name,
        conditions=conditions,
        null_label=BUILT_IN[name] if built_in else null_label,
        guidance_scale=guidance_scale,
        variant=variant,
        name=name,
    )


def _tensors(network: nn.Module) -> Any:
    yield from network.parameters()
    yield from network.buffers()
    yield torch.empty(0, dtype=torch.float32, device=HOST)
