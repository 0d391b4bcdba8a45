"""How one pipeline is driven: found out once by watching it, then used for every wave."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from redif_env.diffusion.noise_schedulers import Parameterization
from redif_env.diffusion.schedules import FlowSchedule, Schedule
from redif_env.teachers.driven.arguments import bare, batched
from redif_env.teachers.driven.encoding import StoredEncodings
from redif_env.teachers.driven.injection import Injection, origin
from redif_env.teachers.driven.networks import RUNNING, Blank, shared_copy
from redif_env.teachers.driven.refused import REFUSED_PIPELINES
from redif_env.teachers.driven.scheduler import first_order, parameterization_of
from redif_env.teachers.driven.schedules import LaterSchedule, UnshiftedFlowSchedule
from redif_env.teachers.driven.timesteps import CallKey, Recorder, TimestepPlan, fit
from redif_env.teachers.driven.wave import NONE, Answer, Place, Wave
from redif_env.teachers.fingerprint import content, described_part, keyed

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

PROBED = 8
"""Steps of the probing calls."""
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
"""Error of rows at timesteps of their own, relative to the prediction's size, up to which they are trusted: in single
and in half precision."""
LONG = 100
"""Steps of a run by which the level is known that a pipeline begins an image at."""
_BESIDE = ("controlnet", "adapter", "encoder")
"""Parts of names of networks whose calls are no network calls of their own."""


@dataclass(frozen=True)
class Probe:
    """What was found out about a pipeline by calling it.

    Args:
        pipeline, scheduler, stepped_as: classes of the pipeline, of its scheduler, and of the stock scheduler whose
            steps it takes here.
        sample_shape: shape of one sample as the scheduler steps it.
        given: the inputs of each network at each step, in words.
        calls: network calls per prediction.
        injected: how samples enter the pipeline.
        from_image: whether the first sample is made from an image.
        common: why all samples of a batch must be at the same level; empty if they need not.
    """

    pipeline: str
    scheduler: str
    stepped_as: str
    sample_shape: tuple[int, ...]
    given: tuple[str, ...]
    calls: int
    injected: str
    from_image: bool
    common: str = ""

    def __str__(self) -> str:
        levels = f"common to a batch, since {self.common}" if self.common else "each sample's own"
        lines = [
            f"{self.pipeline} with {self.scheduler}, stepped as {self.stepped_as}",
            f"samples of shape {self.sample_shape}, {self.calls} network calls a prediction, levels {levels}",
            *self.given,
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Start:
    """How a pipeline takes a number of steps.

    ``called`` is the number that it is called with; ``first`` the index of the timestep that it steps from first (None
    if unknown); ``timesteps`` its own ones from there on, float64.
    """

    called: int
    first: int | None = None
    timesteps: Tensor = field(default_factory=lambda: torch.empty(0).double())


class Drive:
    """A pipeline and its call's arguments, ready to be called in waves.

    The pipeline object is never changed: each wave has a shallow copy of it, which shares the weights.

    Args:
        pipe: any diffusers pipeline that loops over ``scheduler.step``.
        conditions: arguments of the call that differ from sample to sample.
        shared: those that do not.

    Raises:
        TypeError: if ``pipe`` is no pipeline.
        ValueError: if it cannot be driven, or does not take an argument; the message says why.
    """

    def __init__(self, pipe: DiffusionPipeline, conditions: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]):
        from diffusers import DiffusionPipeline

        if not isinstance(pipe, DiffusionPipeline) or not callable(pipe):
            raise TypeError(
                f"pipe is a {type(pipe).__name__}, which is no diffusers pipeline: give what "
                "DiffusionPipeline.from_pretrained returns"
            )
        if type(pipe).__name__ in REFUSED_PIPELINES:
            raise ValueError(f"{type(pipe).__name__} cannot be driven: {REFUSED_PIPELINES[type(pipe).__name__]}")
        self.pipe, self.conditions, self.shared = pipe, list(conditions), dict(shared)
        self.takes = inspect.signature(type(pipe).__call__).parameters
        self._check_arguments()
        self.stock, self.parameterization = self._family(sigmas=False)
        self.plan: TimestepPlan | None = None
        self.injection = NONE
        self.blanks: dict[CallKey, Blank] = {}
        self._images: dict[int, Tensor] = {}
        self._encodings = StoredEncodings()
        self._starts: dict[int, Start] = {}
        self._probing = Start(PROBED)
        apart = "attn_processor(" in inspect.getsource(type(pipe))
        self.networks = {
            name: shared_copy(name, part, apart)
            for name, part in pipe.components.items()
            if isinstance(part, nn.Module)
        }
        try:
            self.probe = self._probe()
        except AttributeError as error:
            if "'sigmas'" not in str(error):
                raise
            # The pipeline computes with its scheduler's sigmas: stepped in their units.
            self.stock, self.parameterization = self._family(sigmas=True)
            self.probe = self._probe()
        except ValueError as error:
            if "class_labels should be provided" not in str(error):
                raise
            raise ValueError(
                f"{type(pipe).__name__} cannot be driven: its network asks for class labels, which its call does not "
                "take. Have the network called directly (driven=False, Teacher.from_pretrained), or give a pipeline "
                "whose call takes them"
            ) from error

    @property
    def _pair(self) -> list[int]:
        """The two conditions that are probed."""
        return [0, 1 % len(self.conditions)]

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        device = self.pipe._execution_device
        return device if isinstance(device, torch.device) else torch.device(device)

    def wave(
        self,
        rows: Sequence[int],
        start: Start,
        recorder: Recorder | None = None,
        injection: Injection | None = None,
        kind: type[Wave] = Wave,
    ) -> Wave:
        """A call for samples with the given rows of the conditions."""
        arguments = {**self.shared, **batched([self.conditions[row] for row in rows])}
        if "generator" in self.takes:
            # What else the pipeline draws is the same for every sample, so that a sample is its noise and condition.
            generators = [torch.Generator().manual_seed(0) for _ in rows]
            arguments["generator"] = generators if len(rows) > 1 else generators[0]
        if "batch_size" in self.takes and "batch_size" not in arguments and "prompt" not in arguments:
            arguments["batch_size"] = len(rows)
        if "output_type" in self.takes:
            arguments["output_type"] = "pt"
        return self.call(arguments, len(rows), start, recorder, injection or self.injection, quiet=True, kind=kind)

    def call(
        self,
        arguments: Mapping[str, Any],
        rows: int,
        start: Start,
        recorder: Recorder | None = None,
        injection: Injection = NONE,
        quiet: bool = False,
        kind: type[Wave] = Wave,
    ) -> Wave:
        """A call with these arguments, for so many samples; ``quiet`` without a progress bar."""
        pipe = self._copy()
        if quiet:
            pipe.__dict__["_progress_bar_config"] = {"disable": True}
        steps = {"num_inference_steps": start.called} if "num_inference_steps" in self.takes else {}
        return kind(
            pipe,
            self.stock,
            self.parameterization,
            {**arguments, **steps},
            rows,
            first=start.first,
            plan=self.plan,
            injection=injection,
            blanks=self.blanks,
            recorder=recorder,
        )

    def start(self, num_steps: int) -> Start:
        """How the pipeline takes ``num_steps`` steps: called with more where it begins from an image.

        Raises:
            ValueError: if it cannot.
        """
        called = num_steps
        while num_steps not in self._starts:
            found = self._started(called)
            if len(found.timesteps) > num_steps:
                raise ValueError(
                    f"{type(self.pipe).__name__} takes {len(found.timesteps)} steps when called with {called}: "
                    f"{num_steps} cannot be had"
                )
            self._starts[len(found.timesteps)] = found
            called += 1
        return self._starts[num_steps]

    def own_levels(self, num_steps: int) -> tuple[float, ...]:
        """``half_logsnr`` of the pipeline's own timesteps for so many steps."""
        return tuple(self.parameterization.schedule.half_logsnr(self.start(num_steps).timesteps).tolist())

    def _started(self, called: int) -> Start:
        """Where a call with so many steps begins."""
        wave = self.wave(self._pair, Start(called), injection=NONE)
        wave.skipping = True
        try:
            wave.predict(Place())
        finally:
            wave.close()
        return Start(called, wave.first, wave.own_timesteps[wave.first :])

    def _begin_later(self) -> None:
        """Take the level at which a long run begins for the first of all runs."""
        schedule = self.parameterization.schedule
        start = float(schedule.time(schedule.half_logsnr(self._started(LONG).timesteps[:1])))
        self.parameterization = replace(self.parameterization, schedule=LaterSchedule(schedule, start))

    @property
    def decodes(self) -> bool:
        """Whether samples are latents."""
        return any(hasattr(part, "decode") for part in self.networks.values())

    def images(self, rows: Sequence[int]) -> Tensor:
        """What the pipeline begins from, without noise, ``(B, *S)`` on the host: images of these conditions."""
        missing = sorted(set(rows) - set(self._images))
        for start in range(0, len(missing), 2):
            pair = (missing[start : start + 2] * 2)[:2]
            wave = self.wave(pair, self._probing, injection=NONE)
            wave.skipping = True
            try:
                answer = wave.predict(Place())
            finally:
                wave.close()
            assert answer is not None
            self._images.update(zip(pair, answer.x.float().cpu(), strict=True))
        return torch.stack([self._images[row] for row in rows])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the predictions: what can be read, and a probe, which shows scales of LoRAs."""
        return keyed(self._described, torch.stack(self._alone()), self.dtype)

    @cached_property
    def _described(self) -> str:
        """Digest of the parts' weights, classes and configs, the scheduler's config, and the calls' arguments."""
        digest = hashlib.sha256(f"{self.probe} {sorted(self.stock.config.items(), key=str)}".encode())
        parts = {name: part for name, part in self.pipe.components.items() if name != "scheduler"}
        for name, part in (("", self.pipe), *sorted(parts.items())):
            digest.update("\n".join((name, *described_part(part))).encode())
        for name in sorted(self.networks):
            for key, tensor in sorted(self.networks[name].state_dict().items()):
                digest.update(f"{name}.{key}".encode())
                digest.update(content(tensor))
        for arguments in (*self.conditions, self.shared):
            for key, value in sorted(arguments.items()):
                digest.update(key.encode())
                digest.update(content(value))
        return digest.hexdigest()

    def decoded(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """What samples ``x`` ``(B, *S)`` of these conditions show, as the pipeline itself returns it.

        Images ``(B, C, H, W)`` and frames ``(B, F, C, H, W)`` in [-1, 1], sounds as they are.
        """
        wave = self.wave(rows, Start(2))
        wave.skipping = True
        try:
            while wave.predict(Place(x)) is not None:
                pass
        finally:
            wave.close()
        return _shown(wave.output).to(x.device)

    def _family(self, sigmas: bool) -> tuple[SchedulerMixin, Parameterization]:
        scheduler = getattr(self.pipe, "scheduler", None)
        if scheduler is None:
            raise ValueError(f"{type(self.pipe).__name__} cannot be driven: it has no component named scheduler")
        stock = first_order(scheduler, sigmas)
        return stock, parameterization_of(stock)

    def _copy(self) -> DiffusionPipeline:
        pipe = copy.copy(self.pipe)
        pipe.__class__ = _drawing(type(self.pipe))  # type: ignore[arg-type]
        pipe.__dict__.update(self.networks)
        # Guiders count steps and keep momentum from one to the next: calls that are suspended have one each.
        guiders = {name: part for name, part in pipe.components.items() if hasattr(part, "prepare_models")}
        pipe.__dict__.update(copy.deepcopy(guiders))
        if hasattr(pipe, "encode_prompt"):
            pipe.__dict__["encode_prompt"] = self._encodings.around(pipe.encode_prompt)
        return pipe

    def _check_arguments(self) -> None:
        # Without their contents: what does not fit together is found before anything is run.
        batched([{name: bare(value) for name, value in condition.items()} for condition in self.conditions])
        given = {name for condition in self.conditions for name in condition} | set(self.shared)
        # Not among its keywords either, where it takes any: those are arguments of earlier versions.
        unknown = sorted(given - {name for name, value in self.takes.items() if value.kind is not value.VAR_KEYWORD})
        if unknown:
            raise ValueError(
                f"{type(self.pipe).__name__} does not take {', '.join(unknown)}: its call takes "
                f"{', '.join(name for name in self.takes if name != 'self')}"
            )

    # Finding out.

    def _probe(self) -> Probe:
        forwards, recorded, seen = self._watched()
        self._probing = Start(PROBED, forwards.first, forwards.own_timesteps[forwards.first :])
        taken = [answer.timestep for answer in seen]
        _, recorded_backwards, answered = self._watched(taken[::-1])
        if not torch.allclose(
            torch.tensor(taken[::-1]), torch.tensor([answer.timestep for answer in answered]), rtol=1e-2
        ):
            raise ValueError(
                f"{type(self.pipe).__name__} cannot be driven: it steps by timesteps of its own, not its scheduler's"
            )
        self.plan = fit([(recorded, taken), (recorded_backwards, taken[::-1])])
        self.parameterization = replace(self.parameterization, schedule=self._schedule(forwards))
        self.dtype = seen[0].x.dtype
        self.network = getattr(self.pipe, list(recorded.steps[0])[-1][0])
        self.follows = forwards.follows
        self.called = sorted({name for calls in recorded.steps.values() for name, _ in calls})
        if forwards.noised_shape is not None:
            self._begin_later()
        self._x = x = torch.randn(seen[0].x.shape, generator=torch.Generator().manual_seed(0)).to(seen[0].x)
        self.injection = self._injected(x, forwards)
        found = Probe(
            pipeline=type(self.pipe).__name__,
            scheduler=type(self.pipe.scheduler).__name__,
            stepped_as=type(self.stock).__name__,
            sample_shape=tuple(seen[0].x.shape[1:]),
            given=tuple(sorted(_described(self.plan))),
            calls=self._calls(recorded),
            injected=self.injection.kind,
            from_image=forwards.noised_shape is not None,
        )
        self.probe = found
        return replace(found, common=self._forces_common_levels(taken))

    def _watched(self, timesteps: Sequence[float] | None = None) -> tuple[Wave, Recorder, list[Answer]]:
        """A call whose samples stay where they are, up to its last step; networks are called once for each output."""
        recorder = Recorder()
        wave = self.wave(self._pair, self._probing, recorder, injection=NONE)
        answers: list[Answer] = []
        try:
            while not answers or wave.remaining > 1:
                timestep = None if timesteps is None else torch.full((2,), timesteps[len(answers)]).double()
                answer = wave.predict(Place(timestep=timestep))
                if answer is None:
                    break
                answers.append(answer)
                wave.skipping = True
        finally:
            wave.close()
        if len(answers) < 2:
            raise ValueError(
                f"{type(self.pipe).__name__} cannot be driven: its scheduler took {len(answers)} of {PROBED} steps"
            )
        return wave, recorder, answers

    def _schedule(self, wave: Wave) -> Schedule:
        """The schedule with the shift that the pipeline has set, and with the timesteps that it has put beside it."""
        schedule = self.parameterization.schedule
        if not isinstance(schedule, FlowSchedule):
            return schedule
        shift, count = wave.shift, schedule.num_train_timesteps
        shifted = type(schedule)(shift, count)
        assert wave.own_sigmas is not None
        sigmas = wave.own_sigmas[:-1].cpu().double()
        sigmas = 1 - sigmas if self.stock.config.invert_sigmas else sigmas
        levels = torch.log((1 - sigmas) / sigmas)
        for candidate in (shifted, UnshiftedFlowSchedule(shift, count)):
            if torch.allclose(candidate.timestep(levels), wave.own_timesteps, rtol=1e-4, atol=1e-2):
                return candidate
        raise ValueError(
            f"{type(self.pipe).__name__} cannot be driven: it gives its network timesteps "
            f"{[round(t, 3) for t in wave.own_timesteps.tolist()]} at sigmas {[round(s, 4) for s in sigmas.tolist()]}, "
            "of which neither is a known function of the other"
        )

    def _injected(self, x: Tensor, watched: Wave) -> Injection:
        """How ``x`` gets to where the pipeline begins."""
        if "latents" in self.takes:
            for generator in (True, False):
                direct = Injection("latents", generator=generator, dtype=x.dtype)
                try:
                    came = self._first(direct, x)
                except Exception:  # another shape is expected, whatever the pipeline says to that
                    continue
                if torch.equal(came, x):
                    return direct
        shapes = [("drawn", number, shape) for number, shape in enumerate(watched.draws)]
        if watched.noised_shape is not None:
            shapes.insert(0, ("noised", 0, watched.noised_shape))
        for kind, number, shape in shapes:
            if shape[0] != len(x):
                continue
            place = Injection(kind, number)

            def send(row: Tensor, place: Injection = place, shape: tuple[int, ...] = shape) -> Tensor:
                return self._first(place, row.to(x.device).expand(len(x), -1).reshape(shape))[0].flatten().cpu()

            index = origin(math.prod(shape[1:]), x.dtype, send)
            if index is not None:
                straight = shape[1:] == x.shape[1:] and torch.equal(index, torch.arange(len(index)))
                return Injection(kind, number, None if straight else index)
        raise ValueError(
            f"{type(self.pipe).__name__} cannot be driven: its first sample can be given neither as its latents nor in "
            "the place of noise that it draws"
        )

    def _first(self, injection: Injection, x: Tensor) -> Tensor:
        """The sample at the first step, of what was injected; networks are not called."""
        wave = self.wave(self._pair, self._probing, injection=injection)
        wave.skipping = True
        try:
            answer = wave.predict(Place(x))
        finally:
            wave.close()
        assert answer is not None
        return answer.x

    def _forces_common_levels(self, timesteps: Sequence[float]) -> str:
        """Why samples of a batch cannot be at levels of their own; empty if they can."""
        self._ends = torch.tensor([timesteps[0], timesteps[-1]], dtype=torch.float64)
        apart, alone = self._once(self._x, self._ends), self._alone()
        size = apart.square().mean().sqrt()
        error = max(float((apart[row] - alone[row][row]).abs().max() / size) for row in range(2))
        if error <= (TOLERANCE if apart.dtype == torch.float32 else HALF_TOLERANCE):
            return ""
        return f"predictions of samples at timesteps of their own differ by {error:.1e} from those of each alone"

    def _alone(self) -> list[Tensor]:
        """Predictions at the probed samples, all at the first of the probed timesteps, and all at the last."""
        return [self._once(self._x, self._ends[end].repeat(2)) for end in range(2)]

    def _once(self, x: Tensor, timestep: Tensor) -> Tensor:
        """The first prediction at ``x``, each row given its ``timestep`` ``(2,)``."""
        wave = self.wave(self._pair, self._probing)
        try:
            answer = wave.predict(Place(x, self.parameterization.schedule.half_logsnr(timestep), timestep))
        finally:
            wave.close()
        assert answer is not None
        return answer.output.float().cpu()

    def _calls(self, recorded: Recorder) -> int:
        """Network calls a prediction: how often a sample goes through the networks of the first step."""
        counted = [recorded.rows[key] // 2 for key in recorded.steps[0] if not any(part in key[0] for part in _BESIDE)]
        return max(1, sum(counted))


def _described(plan: TimestepPlan) -> list[str]:
    """What each network is given, in words."""
    lines = []
    for (name, number), slopes in plan.slopes.items():
        for path, slope in slopes.items():
            where = ".".join(str(part) for part in path)
            factor = f"{float(slope):g}" if slope.ndim == 0 else f"{float(slope.max()):g} (not to all tokens)"
            lines.append(f"{name}, call {number + 1}: argument {where} follows the timestep times {factor}")
    return lines


def _shown(output: Any) -> Tensor:
    """The images or frames of a pipeline's output in [-1, 1], or its sounds."""
    for name in ("images", "frames", "prediction", "audios"):
        found = getattr(output, name, None)
        if found is not None:
            break
    else:
        name, found = "images", output[0]
    if isinstance(found, list) and isinstance(found[0], Tensor):
        found = torch.stack(found)
    if not isinstance(found, Tensor):
        found = torch.as_tensor(np.asarray(found))
        found = found.movedim(-1, -3) if found.ndim > 3 else found  # numpy images have their channels last
    return found.detach().float() if name == "audios" else 2 * found.detach().float() - 1


@functools.cache
def _drawing(kind: Any) -> type:
    """The pipeline's class, with methods in which noise that is drawn goes past the thread's wave."""

    def drawn(*args: Any, **kwargs: Any) -> Tensor:
        from diffusers.utils.torch_utils import randn_tensor

        noise = randn_tensor(*args, **kwargs)
        wave = RUNNING.caller
        return wave.drawn(noise) if isinstance(wave, Wave) else noise

    methods = {}
    for name in dir(kind):
        found = inspect.getattr_static(kind, name)
        function = inspect.unwrap(found) if isinstance(found, types.FunctionType) else None
        if isinstance(function, types.FunctionType) and "randn_tensor" in function.__code__.co_names:
            changed = {**function.__globals__, "randn_tensor": drawn}
            made = types.FunctionType(
                function.__code__, changed, function.__name__, function.__defaults__, function.__closure__
            )
            made.__kwdefaults__ = function.__kwdefaults__
            methods[name] = functools.update_wrapper(made, function)
    return type(kind.__name__, (kind,), {**methods, "__module__": kind.__module__})
