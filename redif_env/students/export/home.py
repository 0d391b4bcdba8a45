"""A student goes home: into the pipeline that it was trained in, as a scheduler or with its policy in the loop."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST, full_precision, stock_defaults
from redif_env.mdp.observations import OBSERVATIONS
from redif_env.mdp.policies import Policy
from redif_env.mdp.process import DenoisingMDP
from redif_env.mdp.sampling import trajectory
from redif_env.students.export.folder import read_student, write_student
from redif_env.students.export.policy import PolicyModel
from redif_env.students.export.redif_scheduler import ReDiFScheduler, loras_of, weights_digest
from redif_env.students.export.saved_process import process_of, scheduler_of
from redif_env.students.record import Record
from redif_env.teachers.driven.drive import Drive
from redif_env.teachers.driven.wave import Answer, Place, Wave
from redif_env.teachers.teacher import PipelineTeacher, Teacher

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

_OF_THE_CALL = {"latents", "generator", "output_type", "return_dict", "batch_size"}
_EACH = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")


def scheduler_at_home(mdp: DenoisingMDP, actions: Tensor | None) -> ReDiFScheduler:
    """The scheduler of a pipeline's student, which knows what it was trained with.

    Args:
        mdp: of the student; its teacher is a pipeline.
        actions: mean action of each step ``(num_steps, A)``; None where the number of steps is decided.
    """
    assert isinstance(mdp.teacher, PipelineTeacher)
    scheduler: ReDiFScheduler = scheduler_of(mdp, actions, trained_with(mdp.teacher))
    return scheduler


def save_at_home(
    folder: str | Path, mdp: DenoisingMDP, policy: Policy | None, actions: Tensor | None, record: Record
) -> None:
    """Write the folder of a pipeline's student: its scheduler and its policy, without the pipeline's weights.

    Raises:
        ValueError: if a part of the process cannot be written to a file, or the folder holds something that is not a
            student's.
    """
    scheduler = scheduler_at_home(mdp, actions)
    with write_student(folder, scheduler, mdp, record) as fresh:
        scheduler.save_pretrained(str(fresh / "scheduler"))
        if policy is not None:
            PolicyModel.of(policy).save_pretrained(str(fresh / "policy"))


def with_policy(pipe: DiffusionPipeline, student: str | Path, allow_imports: bool = False) -> DiffusionPipeline:
    """A copy of ``pipe`` whose calls let the policy of a student's folder decide each step.

    Raises:
        ValueError: if it is no student of a pipeline.
    """
    folder = Path(student).expanduser()
    content = read_student(folder)
    scheduler, policy = ReDiFScheduler.from_pretrained(str(folder)), None
    if scheduler.config.trained_with is None:
        raise ValueError(
            f"{folder} is a student of {content['teacher']!r}, which is no pipeline that drives itself: use "
            "ReDiFPipeline.from_pretrained(folder)"
        )
    if (folder / "policy").is_dir():
        with stock_defaults():
            policy = PolicyModel.from_pretrained(folder / "policy", low_cpu_mem_usage=False).policy
    return deciding(pipe, scheduler, policy, allow_imports)


def deciding(
    pipe: DiffusionPipeline, scheduler: ReDiFScheduler, policy: Policy | None, allow_imports: bool = False
) -> DiffusionPipeline:
    """A copy of ``pipe`` whose calls let ``policy`` decide each step; the scheduler's mean actions if it is None."""
    if isinstance(pipe.scheduler, ReDiFScheduler):  # driven by the one that it was trained with
        stock, pipe = _stock_scheduler(pipe.scheduler), copy.copy(pipe)
        pipe.__dict__["scheduler"] = stock
    made = copy.copy(pipe)
    made.__class__ = _deciding_class(type(pipe))  # type: ignore[assignment, arg-type]
    made.__dict__["policy_loop"] = PolicyLoop(pipe, scheduler, policy, allow_imports)
    return made


def _stock_scheduler(scheduler: ReDiFScheduler) -> SchedulerMixin:
    """The scheduler that the pipeline had in training.

    Raises:
        ValueError: if the folder names none of diffusers' schedulers.
    """
    trained = scheduler.config.trained_with or {}
    kind = getattr(diffusers, str(trained.get("scheduler_class")), None)
    if not (inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ValueError(
            f"scheduler_class={trained.get('scheduler_class')!r} of the student is no scheduler of diffusers "
            f"{diffusers.__version__}: give the pipeline its own scheduler before ReDiFPipeline.of"
        )
    return kind.from_config(trained["scheduler"])  # type: ignore[attr-defined, no-any-return]


class PolicyLoop:
    """Calls of a pipeline in which a policy decides each step.

    Args:
        pipe: the pipeline.
        scheduler: of the student.
        policy: what decides; the scheduler's mean actions if None.
        allow_imports: whether parts of one's own may be imported.
    """

    def __init__(
        self, pipe: DiffusionPipeline, scheduler: ReDiFScheduler, policy: Policy | None, allow_imports: bool
    ) -> None:
        self.pipe, self.scheduler, self.policy, self.allow_imports = pipe, scheduler, policy, allow_imports
        self._known: dict[str, tuple[PipelineTeacher, DenoisingMDP]] = {}

    def __call__(self, *args: Any, price: float | None = None, **given: Any) -> Any:
        """What the pipeline returns; ``price`` of a network call is for students trained at many."""
        names = [name for name in inspect.signature(type(self.pipe).__call__).parameters if name != "self"]
        arguments = {**self.scheduler.arguments, **dict(zip(names, args, strict=False)), **given}
        saved, asked = self.scheduler.config.process, arguments.pop("num_inference_steps", None)
        if asked not in (None, saved["num_steps"] + self.scheduler.config.skipped):
            raise ValueError(
                f"num_inference_steps={asked}, but this student has learned {saved['num_steps']}: leave it out"
            )
        condition, shared, count = split(arguments)
        teacher, mdp = self._process(condition, shared)
        wave = teacher.drive.call(arguments, count, teacher.drive.start(mdp.num_steps))
        wave.start_size = self.scheduler.config.init_noise_sigma
        mdp = _in_one_call(mdp, teacher, wave)
        policy = self.policy or Policy.from_table(
            torch.tensor(saved["actions"], dtype=torch.float32, device=HOST), mdp.observation_size
        )
        noise = torch.zeros(count, *teacher.sample_shape, device=teacher.device)
        try:
            with torch.no_grad(), full_precision(noise.device):
                *_, last = trajectory(mdp, policy, noise, mdp.constant_price(count, price))
                wave.skipping = True  # of samples that were finished early, the other steps
                while wave.predict(Place(last.x)) is not None:
                    pass
        finally:
            wave.close()
        return wave.output

    def _process(self, condition: dict[str, Any], shared: dict[str, Any]) -> tuple[PipelineTeacher, DenoisingMDP]:
        """The teacher and the process of calls with such arguments: watched once."""
        key = f"{shared} { {name: getattr(value, 'shape', type(value)) for name, value in condition.items()} }"
        if key not in self._known:
            if OBSERVATIONS[self.scheduler.config.process["observation"]].shows_condition:
                raise ValueError(
                    "this student's policy sees which of its training's conditions a sample has, so no other can be "
                    "asked for: train with observation='features'"
                )
            self.scheduler.check(self.pipe, **shared)
            teacher = Teacher.from_pipeline(self.pipe, [condition], **shared)
            mdp = process_of(self.scheduler, teacher, allow_imports=self.allow_imports)
            self._known[key] = teacher, mdp
        return self._known[key]


def split(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Of a call: arguments of its first sample, those that are common, and the number of samples."""
    condition: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    counts = [int(arguments.get("batch_size") or 1)]
    for name, value in arguments.items():
        if name in _OF_THE_CALL or name in _EACH or name.startswith("callback_"):
            continue
        parts = isinstance(value, list | tuple) and bool(value)
        if parts and all(isinstance(part, Tensor) and part.ndim > 3 for part in value):
            condition[name] = [part[:1] for part in value]  # one for each of several networks
            counts.append(len(value[0]))
        elif isinstance(value, Tensor) or (parts and isinstance(value, list)):
            condition[name] = value[:1]
            counts.append(len(value))
        elif (isinstance(value, str) and "prompt" in name) or hasattr(value, "mode"):
            condition[name] = value
        else:
            shared[name] = value
    each = next((int(arguments[name]) for name in _EACH if arguments.get(name)), 1)
    latents = arguments.get("latents")
    return condition, shared, max(counts) * each if latents is None else len(latents)


def _in_one_call(mdp: DenoisingMDP, teacher: PipelineTeacher, wave: Wave) -> DenoisingMDP:
    """The process whose predictions are those of one call, and whose samples begin where that does."""
    made = copy.copy(teacher)
    made.waves = _OneCall(wave)  # type: ignore[assignment]
    made.initial_sample = lambda noise, *_: noise  # type: ignore[method-assign]
    return replace(mdp, teacher=made)


class _OneCall:
    """Stands for a teacher's waves: each sample has the number of its row in the one call, counted from 1."""

    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        self._place = Place()

    def predict(self, place: Place, _: Tensor, __: Tensor, ___: Tensor, number: Tensor) -> list[Any]:
        """As :meth:`redif_env.teachers.driven.waves.Waves.predict`."""
        rows = number - 1 if self._place.x is not None else torch.arange(len(number))
        self._place = place if len(rows) == self.wave.rows else _updated(self._place, place, rows)
        answer = self.wave.predict(self._place)
        assert answer is not None
        return [
            ([index], row + 1, Answer(answer.output[row : row + 1], answer.x[row : row + 1], answer.timestep))
            for index, row in enumerate(rows.tolist())
        ]


def _updated(whole: Place, part: Place, rows: Tensor) -> Place:
    def put(old: Tensor | None, new: Tensor | None) -> Tensor:
        assert old is not None
        assert new is not None
        return old.index_copy(0, rows.to(old.device), new)

    return Place(put(whole.x, part.x), put(whole.half_logsnr, part.half_logsnr), put(whole.timestep, part.timestep))


@functools.cache
def _deciding_class(kind: Any) -> type:
    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **given: Any) -> Any:
        return self.policy_loop(*args, **given)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


def trained_with(teacher: PipelineTeacher) -> dict[str, Any]:
    """What a student remembers of the pipeline that it was trained in, as JSON values."""
    pipe, drive = teacher.source, teacher.drive
    assert pipe is not None
    config = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    return {
        "pipeline": teacher.probe.pipeline,
        "base_model": _hub_id(pipe),
        "task": _task(drive),
        "arguments": {key: value for key, value in _with_defaults(drive).items() if _plain(value)},
        "loras": loras_of(pipe),
        "networks": {name: weights_digest(getattr(pipe, name)) for name in drive.called},
        "sample_shape": list(teacher.sample_shape),
        "scheduler_class": type(pipe.scheduler).__name__,
        "scheduler": {key: value for key, value in config.items() if _json(value)},
    }


def _with_defaults(drive: Drive) -> dict[str, Any]:
    """Arguments common to all samples, and the default of the guidance."""
    guidance = {name: drive.takes[name].default for name in ("guidance_scale", "true_cfg_scale") if name in drive.takes}
    return {**guidance, **drive.shared}


def _hub_id(pipe: DiffusionPipeline) -> str | None:
    """Where the pipeline came from, if that is the hub."""
    name = str(getattr(pipe, "name_or_path", None) or "")
    return name if name.count("/") == 1 and not Path(name).exists() else None


def _task(drive: Drive) -> str:
    """What the pipeline does, by the hub's names."""
    given = {name for condition in drive.conditions for name in condition} | set(drive.shared)
    shown = "video" if "num_frames" in drive.takes else "audio" if "audio_length_in_s" in drive.takes else "image"
    if any("image" in name and "num_" not in name for name in given):
        return f"image-to-{shown}"
    return f"text-to-{shown}" if any("prompt" in name for name in given) else f"unconditional-{shown}-generation"


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)


def _json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
