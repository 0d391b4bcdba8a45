"""Linear steps: a multistep solver whose weights are matrices, fitted by least squares to the teacher's own ways.

A multistep solver weighs the past predictions by numbers that a polynomial prescribes. Over steps as long as those of
a few-step student no polynomial is right, and what is right differs from pixel to pixel. (DPM-Solver-v3, Zheng et al.
2023, arXiv 2310.13268, fits numbers for each pixel to the model's own statistics.) Here each step has a matrix for the
sample and for each prediction so far, such that it lands, in the mean square, where the teacher's way from the same
noise goes. What is foretold in the mean square varies less than what is true, so that samples would come out faint: the
last step's are moved, as little as can be, to the mean and covariance of the teacher's.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from tqdm import tqdm

from redif_env.diffusion.grids import Grid, next_position
from redif_env.diffusion.solvers import Solver, clean_target, initial_state, predict, step_to
from redif_env.diffusion.types import Decision, Level, State, expand
from redif_env.fitted.initial_maps import LinearInitialMap, check_fitted
from redif_env.fitted.regression import least_squares, moment_map
from redif_env.storage.cache import cached
from redif_env.teachers.references import (
    QUIET_BELOW,
    TRAIN_SEED,
    ReferencePaths,
    ReferenceSet,
    draw_starts,
    reference_key,
    reference_paths,
    reference_set,
)
from redif_env.teachers.teacher import Teacher

SIZE, RATIO = 4096, 4
"""Ways at least, and ways for each number that a step looks at."""
ROUNDS = 8
"""Times that clipped samples are moved towards the endpoints' moments: on the digits their covariance is within a
thousandth of the endpoints' by then."""
STEPS = 100
"""Predictions that the teacher spends on each way, as on the endpoints that environments have by default."""


@dataclass(frozen=True, eq=False, repr=False)
class LinearSolver(Solver):
    """The steps of one grid and one number of steps, n.

    ``half_logsnr`` are the n levels that steps start from. Step k takes for the clean estimate the sum of the sample
    (of the size that variance-preserving schedules have) times ``matrices[k, 0]``, of the prediction j calls ago times
    ``matrices[k, 1 + j]``, and of ``offset[k, c]`` for condition c: ``(n, n + 1, D, D)``, acting on flat samples from
    the right, and ``(n, C, D)``. Predictions are ``clipped`` to [-1, 1] first, where data have that range. An action
    that steps farther or less far steps with that same estimate.
    """

    half_logsnr: tuple[float, ...]
    matrices: Tensor
    offset: Tensor
    clipped: bool = False

    @property
    def order(self) -> int:  # type: ignore[override]
        """Predictions that it looks at: all."""
        return len(self.half_logsnr)

    def estimate(self, state: State, next_half_logsnr: Tensor, level: Level) -> Tensor:
        x0 = torch.zeros_like(state.x).flatten(1).double()
        seen = _seen(state, level, self.order, self.clipped)
        step = (state.predictions - 1).clamp(0, self.order - 1)
        for index in range(self.order):
            rows = step == index
            # A traced program cannot ask, and always computes all.
            if torch.compiler.is_compiling() or bool(rows.any()):
                x0 = torch.where(rows[:, None], self._made(index, seen, state.condition), x0)
        return x0.to(state.x.dtype).reshape(state.x.shape)

    def _made(self, index: int, seen: Tensor, condition: Tensor) -> Tensor:
        """Clean estimates ``(B, D)`` of step ``index``."""
        # In double precision, so that a row comes out the same whatever batch it is in.
        matrices, offset = (part[index].to(seen) for part in (self.matrices, self.offset))
        used = index + 2  # the sample, and as many predictions as there are by then
        return seen[:, :used].flatten(1) @ matrices[:used].flatten(0, 1) + offset[condition]

    @property
    def key(self) -> str:
        """A digest of all its numbers."""
        digest = hashlib.sha256(repr((self.half_logsnr, self.clipped)).encode())
        for tensor in (self.matrices, self.offset):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"LinearSolver(num_steps={self.order}, key={self.key[:16]!r})"


def fit_solver(
    teacher: Teacher, grid: Grid, num_steps: int, initial_map: LinearInitialMap | None = None
) -> LinearSolver:
    """The linear steps of ``grid``: from the cache, or fitted (with a progress bar) and kept there.

    Step by step on the ways of ``SIZE`` noises of the training set or more: each step's inputs are where the steps
    before it have led, its target is the teacher's way at the next level, and the last step's the endpoint.

    Args:
        teacher: whose ways they are.
        grid: of the steps.
        num_steps: how many.
        initial_map: where the steps begin; the noise itself if not given.

    Raises:
        ValueError: if samples are too large for so many steps, or the teacher takes prompts.
    """
    count = math.prod(teacher.sample_shape)
    numbers = (num_steps + 1) * count
    check_fitted(teacher, numbers, "solver='linear'", "solver='ipndm' or fewer steps")

    def compute() -> Tensor:
        reference = reference_set(teacher, _size(teacher, num_steps), num_steps=STEPS)
        return _fitted(teacher, grid, num_steps, initial_map, reference, reference_paths(teacher, reference)).float()

    fitted = cached(solver_key(teacher, grid, num_steps, initial_map), compute)
    matrices = fitted[:, :numbers].reshape(num_steps, num_steps + 1, count, count)
    levels = tuple(_levels(teacher, grid, num_steps).tolist())
    return LinearSolver(levels, matrices, fitted[:, numbers:], _clips(teacher))


def solver_key(teacher: Teacher, grid: Grid, num_steps: int, initial_map: LinearInitialMap | None = None) -> str:
    """Under what :func:`fit_solver` keeps its numbers (:func:`redif_env.storage.cache.cached_file`)."""
    noise, condition = draw_starts(teacher, _size(teacher, num_steps), TRAIN_SEED)
    ways = reference_key(teacher, noise, condition, STEPS)
    begun = "noise" if initial_map is None else initial_map.key
    # Rounded, since machines differ in a logarithm's last digit.
    levels = [f"{level:.6f}" for level in _levels(teacher, grid, num_steps).tolist()]
    described = f"moment-matched linear solver {ways} {levels} {begun}{' clipped' if _clips(teacher) else ''}"
    return hashlib.sha256(described.encode()).hexdigest()


def _clips(teacher: Teacher) -> bool:
    """Whether the teacher's data are in [-1, 1]."""
    return teacher.decoder is None


def _size(teacher: Teacher, num_steps: int) -> int:
    return max(SIZE, RATIO * (num_steps + 1) * math.prod(teacher.sample_shape))


def _levels(teacher: Teacher, grid: Grid, num_steps: int) -> Tensor:
    """``half_logsnr`` that steps start from, ``(num_steps,)``."""
    position = torch.arange(num_steps, dtype=torch.float64, device=teacher.device) / num_steps
    return grid.half_logsnr(position, teacher.schedule)


@torch.inference_mode()
def _fitted(
    teacher: Teacher,
    grid: Grid,
    num_steps: int,
    initial_map: LinearInitialMap | None,
    reference: ReferenceSet,
    paths: ReferencePaths,
) -> Tensor:
    """Matrices, one above the other, and offsets below them: ``(num_steps, (num_steps + 1) * D + C, D)``."""
    schedule, condition = teacher.schedule, reference.condition.to(teacher.device)
    noise = reference.noise.to(teacher.device)
    begun = noise if initial_map is None else initial_map(noise, condition)
    guidance = teacher.guidance_scale or 1.0
    state = initial_state(begun, schedule, grid, num_steps, num_steps, condition, guidance)
    pairs, maps, count = torch.arange(len(noise)), [], math.prod(teacher.sample_shape)
    bar = tqdm(range(num_steps), desc="linear steps", disable=len(noise) * num_steps < QUIET_BELOW)
    for index in bar:
        state = _predicted(teacher, state)
        position = next_position(state.position, state.steps_left, torch.zeros_like(state.position))
        there, level = grid.half_logsnr(position, schedule), schedule.level(state.half_logsnr)
        last = index == num_steps - 1
        landing = reference.endpoints if last else paths.at(pairs, there.cpu())
        landing = landing.to(state.x) * expand(schedule.size(there), state.x).to(state.x.dtype)
        wanted = clean_target(state.x, landing, level, schedule.level(there)).flatten(1)
        seen = _seen(state, level, num_steps, _clips(teacher))[:, : index + 2].flatten(1)
        prior = _newest(index, count)
        fitted = least_squares(seen.cpu(), wanted.cpu(), reference.condition, len(teacher.conditions), prior)
        if last:
            fitted = _moments_matched(fitted, seen.cpu(), reference.condition, wanted.cpu().double(), _clips(teacher))
        unused = torch.zeros((num_steps - index - 1) * count, count, dtype=torch.float64)
        rows = (index + 2) * count
        maps.append(torch.cat([fitted[:rows], unused, fitted[rows:]]))
        x0 = (seen @ fitted[:rows].to(seen) + fitted[rows:].to(seen)[condition]).to(state.x).reshape(state.x.shape)
        state = step_to(state, Decision(position, there, x0, schedule.timestep(there), state.steps_left), schedule)
    return torch.stack(maps)


def _predicted(teacher: Teacher, state: State) -> State:
    """All states with the teacher's answers, asked batch by batch."""
    rows = torch.arange(len(state.x), device=state.x.device).split(teacher.run_size)
    parts = [predict(teacher, state.rows(part)) for part in rows]
    return State(**{item.name: torch.cat([getattr(part, item.name) for part in parts]) for item in fields(State)})


def _seen(state: State, level: Level, order: int, clipped: bool) -> Tensor:
    """What a step looks at, ``(B, order + 1, D)`` float64: the sample, of normalised size, and predictions of it."""
    size = expand((level.alpha**2 + level.sigma**2).sqrt(), state.x)
    predicted = state.x0_history[:, :order].double()
    if clipped:
        predicted = predicted.clamp(-1, 1)
    return torch.cat([(state.x.double() / size)[:, None], predicted], dim=1).flatten(2)


def _moments_matched(fitted: Tensor, seen: Tensor, condition: Tensor, wanted: Tensor, clipped: bool) -> Tensor:
    """``fitted`` moved, so that what it makes of ``seen`` has the mean and covariance of ``wanted``, once both are
    ``clipped``: by and by then, since what is clipped depends on what is made."""

    def shown(samples: Tensor) -> Tensor:
        return samples.clamp(-1, 1) if clipped else samples

    rows = seen.shape[1]
    for _ in range(ROUNDS if clipped else 1):
        matrix, offset = moment_map(shown(seen @ fitted[:rows] + fitted[rows:][condition]), shown(wanted))
        fitted = fitted @ matrix
        fitted[rows:] += offset
    return fitted


def _newest(index: int, count: int) -> Tensor:
    """The map that takes the newest prediction as it is, as DDIM does: to it fits are drawn."""
    prior = torch.zeros((index + 2) * count, count, dtype=torch.float64)
    prior[count : 2 * count] = torch.eye(count, dtype=torch.float64)
    return prior
