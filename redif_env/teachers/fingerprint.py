"""The digest of all that decides a teacher's predictions: the key under which its samples are cached.

What can be read is hashed: weights, the network's config, the source of what a user wrote, schedule, conditions. What
cannot (a number that a module holds, a variable of a function, the scale of an adapter) shows in a probe: predictions
at fixed inputs, stored beside the cache and compared with a tolerance, since machines differ in the last digits.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from redif_env.diffusion.placement import HOST, place
from redif_env.diffusion.predictions import PLAIN, Preconditioning
from redif_env.diffusion.schedules import Schedule, VariancePreservingSchedule
from redif_env.diffusion.types import Prediction, PredictionType
from redif_env.storage.cache import cached_files, read_tensor, store
from redif_env.teachers.conditions import Conditions

TOLERANCE = {torch.float64: 1e-3, torch.float32: 5e-3}
"""Largest difference between probes that are the same, as a share of their root mean square: machines differ by what
TensorFloat-32 leaves of a network's sums."""
HALF_TOLERANCE = 3e-2
"""The same of networks in half precision."""
PROBE_SEED, PROBE_TIMES = 20_000, (0.3, 0.6)
OWN_PROBE_TIMES = tuple((index + 0.5) / 16 for index in range(16))
"""Of networks or calls of a user's own, which may do at some levels, or for some conditions, what they do not at
others."""

_LIBRARIES = ("diffusers", "peft", "redif_env", "torch", "transformers")
"""Packages whose code is not hashed: their classes and configs say what they compute."""


Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Prediction]
"""From samples, levels, timesteps and rows of conditions to predictions."""


class Described(Protocol):
    """What is read of a teacher (:class:`redif_env.teachers.teacher.Teacher`)."""

    network: nn.Module
    schedule: Schedule
    sample_shape: tuple[int, ...]
    prediction_type: PredictionType
    preconditioning: Preconditioning
    conditions: Conditions
    guidance_scale: float | None
    call: Any

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...


def fingerprint_of(teacher: Described, predict: Predict) -> str:
    """SHA-256 of all that decides a teacher's predictions, which ``predict`` makes."""
    return keyed(_readable(teacher), probe_of(teacher, predict), teacher.dtype)


def keyed(described: str, probe: Tensor, dtype: torch.dtype) -> str:
    """The key of what has this digest and makes these predictions ``(2, N, ...)``; those of another are stored."""
    for path in cached_files(f"{described}.probe.*"):
        try:
            if _same(read_tensor(path), probe, dtype):
                return _key(described, path.name.split(".")[2])
        except OSError as error:
            warnings.warn(f"cache file {path} cannot be read ({error}): it is left out", stacklevel=3)
    own = hashlib.sha256(probe.numpy().tobytes()).hexdigest()[:16]
    store(f"{described}.probe.{own}", probe)
    return _key(described, own)


@torch.no_grad()
def probe_of(teacher: Described, predict: Predict) -> Tensor:
    """Clean estimates and noise predictions ``(2, N, *S)`` float32 of fixed samples, on the host.

    There are two of a library's networks, whose configs say the rest, and 16 of a user's own.
    """
    generator = torch.Generator().manual_seed(PROBE_SEED)
    times = PROBE_TIMES if all(map(_of_library, _written(teacher))) else OWN_PROBE_TIMES
    count = len(times)
    shape = (count, *teacher.sample_shape)
    x = torch.randn(shape, generator=generator, dtype=torch.float32, device=HOST).to(teacher.device)
    schedule = teacher.schedule
    levels = schedule.half_logsnr_at(torch.tensor(times, dtype=torch.float64, device=HOST))
    rows = torch.linspace(0, len(teacher.conditions) - 1, count, device=HOST).round().long()
    found = predict(place(schedule.size(levels), x) * x, levels, schedule.timestep(levels), rows)
    return torch.stack([found.x0, found.eps]).float().cpu()


def _same(stored: Tensor, probe: Tensor, dtype: torch.dtype) -> bool:
    if stored.shape != probe.shape:
        return False
    rows, others = stored.flatten(2), probe.flatten(2)
    tolerance = TOLERANCE.get(dtype, HALF_TOLERANCE) * rows.square().mean(dim=2, keepdim=True).sqrt()
    return bool((((rows - others).abs() <= tolerance) | (rows.isnan() & others.isnan())).all())


def _key(described: str, probe: str) -> str:
    return hashlib.sha256(f"{described} {probe}".encode()).hexdigest()


def _readable(teacher: Described) -> str:
    """Digest of what can be read of a teacher."""
    digest = hashlib.sha256(f"{teacher.prediction_type.value} {teacher.sample_shape} {teacher.dtype}".encode())
    for described in (*described_part(teacher.network), _code(teacher.call), repr(teacher.preconditioning != PLAIN)):
        digest.update(described.encode())
    for name, tensor in sorted(teacher.network.state_dict().items()):
        _add(digest, name, tensor)
    times = torch.linspace(0, 1, 64, dtype=torch.float64, device=HOST)
    levels = teacher.schedule.half_logsnr_at(times)
    digest.update(levels.numpy().round(9).tobytes())
    if not isinstance(teacher.schedule, VariancePreservingSchedule):
        digest.update(teacher.schedule.timestep(levels).numpy().round(9).tobytes())
    if teacher.preconditioning != PLAIN:
        digest.update(repr(teacher.preconditioning).encode())
    for name, tensor in sorted(teacher.conditions.inputs.items()):
        _add(digest, name, tensor)
    if teacher.guidance_scale is not None:
        digest.update(str(teacher.guidance_scale).encode())
        for name, tensor in sorted((teacher.conditions.null or {}).items()):
            _add(digest, name, tensor)
    return digest.hexdigest()


def described_part(part: Any) -> list[str]:
    """What is known of a network, or another part of a pipeline, beside its weights: class, config, a user's source."""
    kinds = {type(module) for module in part.modules()} if isinstance(part, nn.Module) else {type(part)}
    own = sorted(_code(kind) for kind in kinds if not _of_library(kind))
    return [type(part).__qualname__, _config(part), *own]


def _config(part: Any) -> str:
    """The settings of an object of diffusers that are not its class's defaults, which releases add to."""
    config = getattr(part, "config", None)
    if not isinstance(config, dict):
        return ""
    taken = inspect.signature(type(part).__init__).parameters
    given = json.loads(json.dumps({key: value for key, value in config.items() if key in taken}, default=repr))
    defaults = json.loads(json.dumps({key: taken[key].default for key in given}, default=repr))
    return json.dumps({key: value for key, value in given.items() if value != defaults[key]}, sort_keys=True)


def _written(teacher: Described) -> set[Any]:
    """The classes and the function whose code makes a teacher's predictions."""
    return {_kind(teacher.call), *(type(module) for module in teacher.network.modules())}


def _kind(written: Any) -> Any:
    """A class or function itself; the class of another object."""
    return written if isinstance(written, type) or inspect.isroutine(written) else type(written)


def _code(written: Any) -> str:
    """Name and source of a class or function; of a library's the name, without the module that it stands in."""
    kind = _kind(written)
    if _of_library(kind):
        return str(kind.__qualname__)
    name = f"{kind.__module__}.{kind.__qualname__}"
    try:
        return name + inspect.getsource(kind)
    except (OSError, TypeError):  # typed into an interpreter: the probe must do
        return name


def _of_library(kind: Any) -> bool:
    return str(kind.__module__).split(".")[0] in _LIBRARIES


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(name.encode())
    digest.update(content(tensor))


def content(value: Any) -> bytes:
    """All that a tensor, an image or another argument holds, for a digest."""
    if isinstance(value, Tensor):
        return _content_of_tensor(value)
    if isinstance(value, list | tuple):
        return b"".join(map(content, value))
    if hasattr(value, "tobytes"):
        return bytes(value.tobytes())
    return repr(value).encode()


def _content_of_tensor(tensor: Tensor) -> bytes:
    if tensor.is_meta:  # weights that are offloaded: the probe tells them apart
        return repr(tensor.shape).encode()
    if hasattr(tensor, "__tensor_flatten__"):  # a quantised weight, which stands for several tensors
        parts, _ = tensor.__tensor_flatten__()
        return content([getattr(tensor, part) for part in parts])
    raw = tensor.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
    return raw.view(torch.uint8).numpy().tobytes()


def contents_of(name_or_path: str) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """What a name stands for now: its resolved path, and name, size and time of each file; if none, itself."""
    folder = Path(name_or_path).expanduser()
    if not folder.exists():
        return name_or_path, ()
    found = [(path, path.stat()) for path in sorted(folder.rglob("*")) or [folder] if path.is_file()]
    files = tuple((path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns) for path, stat in found)
    return str(folder.resolve()), files
