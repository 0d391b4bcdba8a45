"""The least-squares multistep solver: matrices per step, fitted to teacher trajectories.

A multistep solver weights past predictions with fixed polynomial coefficients, which are inaccurate over the long steps
of a few-step student. DPM-Solver-v3 (Zheng et al. 2023, arXiv 2310.13268) fits coefficients per pixel. Here each step
has one matrix for the sample and one for each prediction so far, fitted by least squares to the teacher's trajectory
from the same noise. Least squares shrinks the variance, so the last step is corrected by an optimal transport map to
match the mean and covariance of the endpoints.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from redif_env.diffusion.grids import Grid, next_position
from redif_env.diffusion.placement import HOST, place, widest
from redif_env.diffusion.solvers import (
    Estimate,
    Solver,
    clean_target,
    ddim_step,
    initial_state,
    predict_in_parts,
    step_to,
)
from redif_env.diffusion.types import Decision, Level, State
from redif_env.fitted.initial_maps import LinearInitialMap, check_fittable
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
"""Minimum number of trajectories, and trajectories per input of a step."""
ROUNDS = 8
"""Rounds of moment matching for clipped samples; on the digits the covariance then matches to a thousandth."""
STEPS = 100
"""Teacher predictions per trajectory, the default of endpoints too."""


@dataclass(frozen=True, eq=False, repr=False)
class LinearSolver(Solver):
    """Least-squares multistep solver for one grid and one number of steps n.

    The clean estimate of step k is ``x @ matrices[k, 0] + sum_j predictions[j] @ matrices[k, 1 + j] + offset[k, c]``:
    the flat sample at variance-preserving scale, the predictions from newest to oldest, and the offset of condition c.
    An action that changes the step size uses the same estimate.

    Args:
        half_logsnr: the n levels at which steps start.
        matrices: ``(n, n + 1, D, D)``.
        offset: ``(n, C, D)``.
        clipped: clip predictions to [-1, 1] first, for data in that range.
    """

    half_logsnr: tuple[float, ...]
    matrices: Tensor
    offset: Tensor
    clipped: bool = False
    _on_devices: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)

    @property
    def order(self) -> int:  # type: ignore[override]
        """Number of predictions used: all."""
        return len(self.half_logsnr)

    def estimate(self, state: State, next_half_logsnr: Tensor, level: Level) -> Estimate:
        inputs = _inputs(state, level, self.order, self.clipped)
        step = (state.predictions - 1).clamp(0, self.order - 1)
        condition = state.condition.to(inputs.device)
        if torch.compiler.is_compiling():  # a traced program cannot branch on the step, and computes all
            steps = [self._estimate(index, inputs, condition) for index in range(self.order)]
            x0 = torch.stack(steps)[step.to(inputs.device), torch.arange(len(inputs), device=inputs.device)]
        elif bool((step == step[0]).all()):
            x0 = self._estimate(int(step[0]), inputs, condition)
        else:
            x0 = torch.zeros_like(inputs[:, 0])
            for index in step.unique().tolist():
                rows = (step == index).nonzero()[:, 0].to(inputs.device)
                x0 = x0.index_copy(0, rows, self._estimate(index, inputs[rows], condition[rows]))
        weights = level.alpha.new_zeros(len(inputs), 1 + state.history.shape[1])
        return Estimate(weights, x0.to(state.x.dtype).reshape(state.x.shape))

    def _estimate(self, index: int, inputs: Tensor, condition: Tensor) -> Tensor:
        """Clean estimates ``(B, D)`` of step ``index``."""
        matrices, offset = self._placed(inputs.device)
        used = index + 2  # the sample and ``index + 1`` predictions
        return inputs[:, :used].flatten(1) @ matrices[index, :used].flatten(0, 1) + offset[index, condition]

    @torch.inference_mode(False)  # stored for later calls, which may need a gradient
    def _placed(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Matrices and offsets on a device: float64 where it has that, so that a row does not depend on its batch."""
        if device not in self._on_devices:
            dtype = widest(device)
            self._on_devices[device] = (self.matrices.to(device, dtype), self.offset.to(device, dtype))
        return self._on_devices[device]

    @property
    def key(self) -> str:
        """SHA-256 digest of the parameters."""
        digest = hashlib.sha256(repr((self.half_logsnr, self.clipped)).encode())
        for tensor in (self.matrices, self.offset):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"LinearSolver(num_steps={self.order}, key={self.key[:16]!r})"


def fit_solver(
    teacher: Teacher, grid: Grid, num_steps: int, initial_map: LinearInitialMap | None = None
) -> LinearSolver:
    """Fit the least-squares solver, with a progress bar, or load it from the cache.

    Steps are fitted one after another on at least ``SIZE`` training noises. The inputs of a step come from the fitted
    steps before it. Its target is the teacher's trajectory at the next level; for the last step, the endpoint.

    Args:
        teacher: the teacher whose trajectories are fitted.
        grid: grid of the steps.
        num_steps: number of steps.
        initial_map: map from the noise to the first level; the noise itself if None.

    Raises:
        ValueError: if a step has more than ``LARGEST`` inputs, or the teacher takes prompts.
    """
    count = math.prod(teacher.sample_shape)
    numbers = (num_steps + 1) * count
    check_fittable(teacher, numbers, "solver='linear'", "solver='ipndm' or fewer steps")

    def compute() -> Tensor:
        reference = reference_set(teacher, _size(teacher, num_steps), num_steps=STEPS)
        return _fit(teacher, grid, num_steps, initial_map, reference, reference_paths(teacher, reference)).float()

    fitted = cached(solver_key(teacher, grid, num_steps, initial_map), compute)
    matrices = fitted[:, :numbers].reshape(num_steps, num_steps + 1, count, count)
    levels = tuple(_levels(teacher, grid, num_steps).tolist())
    return LinearSolver(levels, matrices, fitted[:, numbers:], _clips(teacher))


def solver_key(teacher: Teacher, grid: Grid, num_steps: int, initial_map: LinearInitialMap | None = None) -> str:
    """The cache key of :func:`fit_solver` (see :func:`redif_env.storage.cache.cached_file`)."""
    noise, condition = draw_starts(teacher, _size(teacher, num_steps), TRAIN_SEED)
    endpoints = reference_key(teacher, noise, condition, STEPS)
    initial = "noise" if initial_map is None else initial_map.key
    # Rounded, because machines differ in the last digit of a logarithm.
    levels = [f"{level:.6f}" for level in _levels(teacher, grid, num_steps).tolist()]
    description = f"moment-matched linear solver {endpoints} {levels} {initial}{' clipped' if _clips(teacher) else ''}"
    return hashlib.sha256(description.encode()).hexdigest()


def _clips(teacher: Teacher) -> bool:
    """Whether the teacher's data are in [-1, 1]."""
    return teacher.bounds == (-1.0, 1.0)


def _size(teacher: Teacher, num_steps: int) -> int:
    return max(SIZE, RATIO * (num_steps + 1) * math.prod(teacher.sample_shape))


def _levels(teacher: Teacher, grid: Grid, num_steps: int) -> Tensor:
    """``half_logsnr`` ``(num_steps,)`` at which steps start."""
    position = torch.arange(num_steps, dtype=torch.float64, device=HOST) / num_steps
    return grid.half_logsnr(position, teacher.schedule)


@torch.inference_mode()
def _fit(
    teacher: Teacher,
    grid: Grid,
    num_steps: int,
    initial_map: LinearInitialMap | None,
    reference: ReferenceSet,
    paths: ReferencePaths,
) -> Tensor:
    """Stacked matrices and, below them, offsets: ``(num_steps, (num_steps + 1) * D + C, D)``."""
    schedule, condition = teacher.schedule, reference.condition
    noise = reference.noise.to(teacher.device)
    initial = noise if initial_map is None else initial_map(noise, condition)
    guidance = teacher.guidance_scale or 1.0
    state = initial_state(initial, schedule, grid, num_steps, num_steps, condition, guidance)
    pairs, maps = torch.arange(len(noise), device=HOST), []
    count = math.prod(teacher.sample_shape)
    bar = tqdm(range(num_steps), desc="least-squares solver", disable=len(noise) * num_steps < QUIET_BELOW)
    for index in bar:
        state = predict_in_parts(teacher, state, teacher.run_size)
        position = next_position(state.position, state.steps_left, torch.zeros_like(state.position))
        there, level = grid.half_logsnr(position, schedule), schedule.level(state.half_logsnr)
        next_level, last = schedule.level(there), index == num_steps - 1
        next_x = schedule.scaled((reference.endpoints if last else paths.at(pairs, there)).to(state.x), there)
        target = clean_target(state.x, next_x, level, next_level).flatten(1).to(HOST)
        inputs = _inputs(state, level, num_steps, _clips(teacher))[:, : index + 2].flatten(1).to(HOST, torch.float64)
        fitted = least_squares(inputs, target, condition, len(teacher.conditions), _ddim_prior(index, count))
        if last:
            fitted = _match_moments(fitted, inputs, condition, target.double(), _clips(teacher))
        unused = fitted.new_zeros((num_steps - index - 1) * count, count)
        rows = (index + 2) * count
        maps.append(torch.cat([fitted[:rows], unused, fitted[rows:]]))
        x0 = (inputs @ fitted[:rows] + fitted[rows:][condition]).to(state.x).reshape(state.x.shape)
        x = ddim_step(state.x, x0, level, next_level)
        state = step_to(state, Decision(position, there, x0, x, schedule.timestep(there), state.steps_left))
    return torch.stack(maps)


def _inputs(state: State, level: Level, order: int, clipped: bool) -> Tensor:
    """Inputs of a step ``(B, order + 1, D)``: the normalised sample, then the past clean estimates, newest first.

    They are in the most precise type of the device.
    """
    dtype = widest(state.x.device)
    predicted = state.x0_history[:, :order].to(dtype)
    if clipped:
        predicted = predicted.clamp(-1, 1)
    x = state.x.to(dtype)
    x = x / place((level.alpha**2 + level.sigma**2).sqrt(), x)
    return torch.cat([x[:, None], predicted], dim=1).flatten(2)


def _match_moments(fitted: Tensor, inputs: Tensor, condition: Tensor, target: Tensor, clipped: bool) -> Tensor:
    """Correct a fitted map so that its outputs have the mean and covariance of ``target``.

    With ``clipped``, the moments after clipping are matched; clipping is not linear, so this takes several rounds.
    """

    def clip(samples: Tensor) -> Tensor:
        return samples.clamp(-1, 1) if clipped else samples

    rows = inputs.shape[1]
    for _ in range(ROUNDS if clipped else 1):
        matrix, offset = moment_map(clip(inputs @ fitted[:rows] + fitted[rows:][condition]), clip(target))
        fitted = fitted @ matrix
        fitted[rows:] += offset
    return fitted


def _ddim_prior(index: int, count: int) -> Tensor:
    """The prior of step ``index``: the newest prediction is the clean estimate, as in DDIM."""
    prior = torch.zeros((index + 2) * count, count, dtype=torch.float64, device=HOST)
    prior[count : 2 * count] = torch.eye(count, dtype=torch.float64, device=HOST)
    return prior
