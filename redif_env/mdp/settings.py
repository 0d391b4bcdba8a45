"""The arguments of a denoising process, and from the names they may be to the objects they stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch

from redif_env.diffusion.grids import GRIDS, Grid
from redif_env.diffusion.placement import has_float64
from redif_env.diffusion.solvers import SOLVERS, Solver
from redif_env.fitted.initial_maps import LinearInitialMap, fit_initial_map
from redif_env.fitted.linear_solver import LinearSolver, fit_solver
from redif_env.mdp.actions import ACTION_MAPS, ActionMap
from redif_env.mdp.observations import OBSERVATIONS, Observation, Sample
from redif_env.mdp.process import DenoisingMDP
from redif_env.storage.checks import check_argument, check_at_least, check_fields
from redif_env.storage.files import ASSETS
from redif_env.teachers.conditions import ConditionsLike, spread
from redif_env.teachers.driven.arguments import read_conditions
from redif_env.teachers.fingerprint import contents_of
from redif_env.teachers.pipelines import BUILT_IN, drives_itself, whole_pipeline
from redif_env.teachers.references import SetSizes, sizes_named
from redif_env.teachers.teacher import PipelineTeacher, Teacher, load_teacher

T = TypeVar("T")

OWN = "own"
"""The name of the grid that a pipeline has of its own."""

DTYPES = ("float32", "float64", "bfloat16", "float16")

LINEAR = "linear"
"""The name of what is fitted to a teacher's trajectories: an initial map, the steps of a solver."""


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """The arguments that decide which teacher it is, and how it is called."""

    teacher: str | Path | Teacher = "digits"
    """The many-step model: a built-in name (`"digits"`, `"digits-classes"`, `"mnist"`, `"cifar10"`,
    `"gaussian-ring"`), the path of a diffusers folder, or a hub id."""
    conditions: ConditionsLike | None = None
    """Class labels or prompts that the conditions of episodes are drawn from; in Python also a dict with weights. All
    labels if not given."""
    prompts: str | Path | None = None
    """A file of conditions, instead of `conditions`. Each line is a prompt, or a JSON object of arguments of the
    pipeline's call, in which `"weight"` says how often it is drawn."""
    null_label: int | None = None
    """The label that a class-conditional `UNet2DModel` was trained with for no condition."""
    guidance_scale: float | None = None
    """Scale of classifier-free guidance, which makes each prediction two network calls."""
    variant: str | None = None
    """Variant of the teacher's files, as in diffusers, such as `"fp16"`."""
    driven: bool | None = None
    """Whether a pipeline's own call makes the predictions (true) or its network is called directly (false). If not
    given, a pipeline is driven if `prompts`, `height`, `width` or `call_arguments` are given, or if its network cannot
    be called directly."""
    height: int | None = None
    """Height of a driven pipeline's images in pixels; `width` if only that is given."""
    width: int | None = None
    """Width of a driven pipeline's images in pixels; `height` if only that is given."""
    call_arguments: Mapping[str, int | float | bool | str] | None = None
    """Further arguments of every call of a driven pipeline, such as `num_frames` or `negative_prompt`."""
    run_size: int | None = None
    """Largest number of samples in one call of a driven pipeline; 8 if not given."""
    device: str = "cpu"
    """Where networks run and samples are stored. `"auto"` chooses the machine's accelerator (cuda, xpu, mps), or the
    CPU if there is none."""
    dtype: str = "float32"
    """`"float32"` or `"float64"` for networks and samples; `"bfloat16"` or `"float16"` for networks, with samples in
    float32."""

    @property
    def call(self) -> dict[str, Any]:
        """Arguments of every call of a driven pipeline."""
        # Pipelines take their defaults for both where one of the two is missing.
        height, width = self.height or self.width, self.width or self.height
        named = {"height": height, "width": width, "guidance_scale": self.guidance_scale}
        return {name: value for name, value in named.items() if value is not None} | dict(self.call_arguments or {})

    @property
    def drives(self) -> bool:
        """Whether the teacher is a pipeline that makes predictions by its own call."""
        if isinstance(self.teacher, Teacher):
            return isinstance(self.teacher, PipelineTeacher)
        if self.driven is not None:
            return self.driven
        asked = (self.prompts, self.height, self.width, self.call_arguments)
        built_in = str(self.teacher) in BUILT_IN
        return asked != (None,) * len(asked) or (not built_in and drives_itself(self.teacher, self.variant))

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, height=self.height, width=self.width, run_size=self.run_size)
        if self.conditions is not None and self.prompts is not None:
            raise ValueError(f"conditions and prompts={str(self.prompts)!r} are both conditions: give one of them")
        parse_dtype(self.dtype)


@dataclass(frozen=True, kw_only=True)
class MDPSettings(TeacherSettings):
    """The arguments that decide a denoising process: each is written here and nowhere else.

    The environments' signatures and page, and the options of the training programs, are made of these fields.
    """

    num_steps: int = 4
    """Steps of an episode. Each makes one prediction: one network call, or two with guidance."""
    action: str | ActionMap = "solver"
    """What the policy decides: `"solver"` (step size and corrections of the base solver), `"step"` (only the step
    size), or `"noise"` (step size and the whole noise prediction: the policy's network is the student)."""
    observation: str | Observation | Sample = "features"
    """What the policy sees: `"features"`, `"features+condition"`, `"steps"` (only the number of steps left), or
    `"sample"` (for action `"noise"`)."""
    solver: str | Solver = "ipndm"
    """The base solver, which the zero action reproduces: `"ddim"`, `"dpm++2m"`, `"dpm++3m"`, `"ipndm1"` to `"ipndm4"`,
    `"ipndm"` (order 2 up to 4 steps, else order 3), or `"linear"` (matrices fitted to the teacher's trajectories, for
    samples of up to a few hundred numbers)."""
    grid: str | Grid = "time^1.5@20"
    """The base solver's grid: `"time"`, `"time^1.5"`, `"time^2"`, `"logsnr"`, `"karras"` or `"ays"`. The first two also
    have late starts at sigma / alpha of 60, 20, 8 or 4 (`"time@60"`). `"time^1.25@2.5"` is for linear steps. `"own"` is
    the timesteps of a teacher that is a pipeline."""
    initial_map: str | LinearInitialMap | None = None
    """How a late start makes its first sample from the noise, without a network call: the noise itself (None), or
    `"linear"`, a linear map fitted to the teacher's trajectories."""
    min_steps: int | None = None
    """Smallest number of steps of an episode. If it is below `num_steps`, the policy chooses the number."""
    prices: tuple[float, float] | None = None
    """Range of the price of a network call, in units of reward. Each episode draws a price, which the policy sees and
    the reward term `"price"` charges."""
    learn_guidance: bool = False
    """Let the policy choose the guidance scale."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, num_steps=self.num_steps, min_steps=self.min_steps)


OF_NAMED = ("conditions", "prompts", "null_label", "guidance_scale", "variant", "driven", "height", "width",
            "call_arguments", "run_size")  # fmt: skip
"""What belongs to a teacher that is named."""

DEFAULT_SOLVER, DEFAULT_GRID = str(MDPSettings.solver), str(MDPSettings.grid)
"""iPNDM of order 3 (in up to 4 steps of order 2): from 6 steps on PPO brings the digits' samples nearer to their own
endpoints from it than from DPM-Solver++ 3M, in a quarter of the calls (docs/results-full.md)."""


def look_up(argument: str, name: str, known: Mapping[str, T]) -> T:
    """The object called ``name``.

    Raises:
        ValueError: naming the argument, the value and what is known.
    """
    if name not in known:
        raise ValueError(f"{argument}={name!r} is unknown: choose one of {', '.join(map(repr, known))}")
    return known[name]


def shown(part: T, known: Mapping[str, T]) -> str:
    """The name under which an equal part is known; else what it is."""
    return next((name for name, candidate in known.items() if candidate == part), repr(part))


PARTS: dict[str, tuple[type[Any], Mapping[str, Any]]] = {
    "action": (ActionMap, ACTION_MAPS),
    "observation": (Observation, OBSERVATIONS),
    "solver": (Solver, SOLVERS),
    "grid": (Grid, GRIDS),
}
"""The parts of a process that users may bring along: their classes, and those that have names."""


def part_entry(argument: str, part: Any) -> str | dict[str, Any]:
    """How a file says which part it is: by its name, or by its class's import path and arguments.

    Raises:
        ValueError: if its class cannot be imported, or its arguments are no JSON values.
    """
    for name, known in PARTS[argument][1].items():
        if known == part:
            return name
    path = f"{type(part).__module__}:{type(part).__qualname__}"
    try:
        arguments = json.loads(json.dumps(asdict(part)))
        if _imported(path)(**{name: _tuples(value) for name, value in arguments.items()}) == part:
            return {"import": path, "arguments": arguments}
        reason = "made again from its fields, it is another"
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        reason = str(error)
    raise ValueError(
        f"{argument}={part!r} cannot be written to a student's file ({reason}): make its class a dataclass of plain "
        "values at the top of a module"
    )


def part_of(argument: str, entry: str | Mapping[str, Any], allow_imports: bool) -> Any:
    """The part of a file's entry.

    Raises:
        ValueError: if the name is unknown, or an import path is not to be imported or leads to no such part.
    """
    kind, known = PARTS[argument]
    if isinstance(entry, str):
        return look_up(argument, entry, known)
    path = str(entry["import"])
    try:
        # Without permission nothing is imported or called but this library's own classes of that kind.
        found: Any = _imported(path) if allow_imports or path.startswith("redif_env.") else None
        right = isinstance(found, type) and issubclass(found, kind)
        if not allow_imports and not (right and found.__module__.startswith("redif_env.")):
            raise ValueError(
                f"{argument}={path!r} is code outside this library, which the student's file asks to be imported: if "
                "you trust it, load with allow_imports=True"
            )
        if not right:
            raise ValueError(f"{argument}={path!r} is no {kind.__name__}")
        return found(**{name: _tuples(value) for name, value in entry["arguments"].items()})
    except (AttributeError, ImportError, TypeError) as error:
        raise ValueError(f"{argument}={path!r} cannot be imported ({error}): install or copy the module") from error


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    found = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def parse_dtype(dtype: str) -> torch.dtype:
    """The type of an environment's networks."""
    return look_up("dtype", dtype, {name: getattr(torch, name) for name in DTYPES})


def sample_dtype(dtype: str) -> torch.dtype:
    """The type of an environment's samples, which are float32 at least."""
    return torch.promote_types(parse_dtype(dtype), torch.float32)


def parse_device(device: str | torch.device) -> torch.device:
    """A torch device that this machine has; ``"auto"`` is its accelerator (cuda, xpu, mps), or the CPU without one.

    Raises:
        ValueError: if it has not.
    """
    check_argument("device", device, str | torch.device)
    if device == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        parsed = torch.device(device)
        torch.empty(1, device=parsed)
        if parsed.type == "cpu" and parsed.index:  # torch takes any number
            raise RuntimeError("there is one CPU device")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} cannot be used here ({error}): try 'auto' or 'cpu'") from error
    return parsed


def default_sizes(settings: TeacherSettings) -> SetSizes:
    """The sizes of reference sets for a teacher where none are given."""
    name = settings.teacher.name if isinstance(settings.teacher, Teacher) else str(settings.teacher)
    return sizes_named(name, settings.drives)


@dataclass(frozen=True)
class _Requested:
    """Settings of a teacher, and a key of all that they name."""

    key: str
    settings: TeacherSettings = field(compare=False)


def shared_teacher(settings: TeacherSettings) -> Teacher:
    """The named teacher of ``settings``, shared by all of this process: it is frozen, and networks are large.

    A folder or a file of prompts that has changed since is loaded anew.
    """
    given = {item.name: getattr(settings, item.name) for item in fields(TeacherSettings)}
    if settings.conditions is not None:
        given["conditions"] = spread(settings.conditions)
    if isinstance(settings.call_arguments, Mapping):
        given["call_arguments"] = sorted(settings.call_arguments.items())
    files = [contents_of(str(name)) for name in (settings.teacher, settings.prompts) if name is not None]
    # A folder is what it is, however it is written.
    return _shared_teacher(_Requested(repr((files, given | {"teacher": None, "prompts": None})), settings))


@lru_cache(maxsize=8)
def _shared_teacher(requested: _Requested) -> Teacher:
    settings = requested.settings
    device, dtype = parse_device(settings.device), parse_dtype(settings.dtype)
    if settings.drives:
        return _driven_teacher(settings, device, dtype)
    if settings.run_size is not None:
        raise ValueError(f"run_size={settings.run_size} belongs to pipelines that are driven: give driven=True")
    teacher = load_teacher(
        settings.teacher if isinstance(settings.teacher, Path) else str(settings.teacher),
        conditions=settings.conditions,
        null_label=settings.null_label,
        guidance_scale=settings.guidance_scale,
        variant=settings.variant,
    )
    return teacher.to(device, dtype)


def _driven_teacher(settings: TeacherSettings, device: torch.device, dtype: torch.dtype) -> Teacher:
    """The teacher that the named pipeline is, on a device, in a floating point type."""
    if settings.null_label is not None:
        raise ValueError(f"null_label={settings.null_label} is nothing that a pipeline's own call takes: leave it out")
    name = str(settings.teacher)
    if name == "gaussian-ring":
        asked = ("driven", "prompts", "height", "width", "call_arguments")
        given = ", ".join(f"{key}={getattr(settings, key)!r}" for key in asked if getattr(settings, key) is not None)
        raise ValueError(f"{given} cannot be given to teacher={name!r}, which is no pipeline: leave that out")
    conditions: Any = settings.conditions
    if settings.prompts is not None:
        conditions = read_conditions(Path(settings.prompts).expanduser())
    pipe = whole_pipeline(ASSETS / name if name in BUILT_IN else name, name, dtype, settings.variant)
    if pipe.device != device:  # quantised parts, which are where they are to be, cannot be moved
        pipe.to(device)
    size: dict[str, Any] = {} if settings.run_size is None else {"run_size": settings.run_size}
    return Teacher.from_pipeline(pipe, conditions, name=name, **size, **settings.call)


def initial_map_of(initial_map: str | LinearInitialMap | None, teacher: Teacher, grid: Grid) -> LinearInitialMap | None:
    """The initial map that a name stands for: fitted if it is "linear".

    Raises:
        ValueError: if the name is unknown, or no linear map can be fitted.
    """
    if initial_map is None or isinstance(initial_map, LinearInitialMap):
        return initial_map
    return look_up("initial_map", initial_map, {LINEAR: fit_initial_map})(teacher, grid)


def grid_of(grid: str | Grid, teacher: Teacher, num_steps: int) -> Grid:
    """The grid that a name stands for; a pipeline's own timesteps if it is "own".

    Raises:
        ValueError: if the name is unknown, or the teacher is no pipeline that drives itself.
    """
    if isinstance(grid, Grid):
        return grid
    if grid != OWN:
        return look_up("grid", grid, GRIDS)
    if not isinstance(teacher, PipelineTeacher):
        raise ValueError(f"grid={OWN!r} needs a teacher from a pipeline, got {teacher.name!r}: choose another grid")
    return teacher.own_grid(num_steps)


def solver_of(
    solver: str | Solver, teacher: Teacher, grid: Grid, num_steps: int, initial_map: LinearInitialMap | None
) -> Solver:
    """The solver that a name stands for; fitted to the grid, the steps and the initial map if it is "linear".

    Raises:
        ValueError: if the name is unknown, or no linear steps can be fitted.
    """
    if isinstance(solver, Solver):
        return solver
    if solver.lower().startswith(("unipc", "deis")):
        raise ValueError(
            f"solver={solver!r} is one of diffusers' own, which tables compare with and whose steps no action changes: "
            f"choose one of {', '.join(map(repr, (*SOLVERS, LINEAR)))}"
        )
    return look_up("solver", solver, {**SOLVERS, LINEAR: None}) or fit_solver(teacher, grid, num_steps, initial_map)


def solver_name(solver: Solver) -> str:
    """What a solver is called, for people."""
    return LINEAR if isinstance(solver, LinearSolver) else shown(solver, SOLVERS)


def build_mdp(settings: MDPSettings) -> DenoisingMDP:
    """The decision process that ``settings`` describe.

    Raises:
        ValueError: if a setting is unknown or does not fit the others; it names the argument and the value.
    """
    placed = parse_device(settings.device)
    if settings.dtype == "float64" and not has_float64(placed):
        raise ValueError(
            f"dtype='float64' cannot be used on device={settings.device!r}, which has no such type: use 'float32'"
        )
    if not isinstance(settings.teacher, Teacher):
        teacher = shared_teacher(settings)
    elif not (given := [name for name in OF_NAMED if getattr(settings, name) is not None]):
        teacher = settings.teacher.to(placed)
    else:
        raise ValueError(
            f"{', '.join(given)} belong to a teacher that is named: a Teacher has its own, give them to "
            "Teacher.from_pretrained or Teacher.from_pipeline"
        )
    action, observation, prices = settings.action, settings.observation, settings.prices
    for argument, (kind, _) in PARTS.items():
        part = getattr(settings, argument)
        if isinstance(part, kind) and not isinstance(part, LinearSolver):
            part_entry(argument, part)  # refused now, rather than when the trained student is saved
    grid = grid_of(settings.grid, teacher, settings.num_steps)
    initial_map = initial_map_of(settings.initial_map, teacher, grid)
    return DenoisingMDP(
        teacher=teacher,
        solver=solver_of(settings.solver, teacher, grid, settings.num_steps, initial_map),
        grid=grid,
        num_steps=settings.num_steps,
        action_map=look_up("action", action, ACTION_MAPS) if isinstance(action, str) else action,
        observation=look_up("observation", observation, OBSERVATIONS) if isinstance(observation, str) else observation,
        min_steps=settings.min_steps,
        prices=None if prices is None else (float(prices[0]), float(prices[1])),
        learn_guidance=settings.learn_guidance,
        initial_map=initial_map,
    )
