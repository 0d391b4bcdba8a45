"""A student whose actions are fixed, as plain numbers: the weights of each step and its conditioning timestep.

One step from ``x`` at a level to the next, in words that need no library::

    x0 = x_weight * x + sum(x0_weights[k] * x0 of k calls ago) + sum(eps_weights[k] * eps of k calls ago)
    x0 = sum((1 + band_gains[b]) * band b of x0)                  # images only; bands as in redif_env.diffusion.bands
    x  = alpha_next * x0 + sigma_next / sigma * (x - alpha * x0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from redif_env.diffusion.placement import HOST
from redif_env.diffusion.solvers import initial_state, record
from redif_env.diffusion.types import Prediction
from redif_env.fitted.linear_solver import LinearSolver
from redif_env.mdp.process import DenoisingMDP
from redif_env.students.export.redif_scheduler import take_step


@dataclass(frozen=True)
class Step:
    """One step of a fixed few-step sampler.

    ``timestep`` is the conditioning timestep, ``level_timestep`` the training timestep of the level that ``x`` is at
    (they differ where the conditioning timestep was learned); ``alpha`` and ``sigma`` are that level's scales,
    ``alpha_next`` and ``sigma_next`` those of the level stepped to. Weights hold the newest prediction first.
    """

    timestep: float
    level_timestep: float
    alpha: float
    sigma: float
    alpha_next: float
    sigma_next: float
    x_weight: float
    x0_weights: tuple[float, ...]
    eps_weights: tuple[float, ...]
    band_gains: tuple[float, ...]


def steps_of(mdp: DenoisingMDP, actions: Tensor) -> list[Step]:
    """The steps that fixed ``actions`` ``(num_steps, A)`` take.

    A step is linear in ``x`` and in the past predictions, so the decision process itself gives the weights, applied to
    unit vectors.

    Raises:
        ValueError: if the process decides its number of calls, its base solver is linear, or there is not one action a
            step.
    """
    check_fixed(mdp, actions)
    schedule, past = mdp.teacher.schedule, mdp.history
    units = torch.eye(1 + 2 * past, dtype=torch.float64, device=HOST)[None]
    state = initial_state(units[:, 0], schedule, mdp.grid, mdp.num_steps, past)
    steps = []
    size = mdp.action_map.size(mdp.teacher.sample_shape)  # what follows is guidance
    for action in actions.to(HOST)[:, None]:
        # The probe's own values do not matter, its level, its step count and the levels of its history do.
        called = record(state, Prediction(x0=units[:, 0], eps=units[:, 0]))
        probe = replace(called, x=units[:, 0], history=units[:, 1:])
        decision = mdp.decode(probe, action)
        weights = decision.x0[0].tolist()
        level = schedule.level(state.half_logsnr)
        state = mdp.advance(called, decision)
        reached = schedule.level(state.half_logsnr)
        steps.append(
            Step(
                timestep=called.timestep.item(),
                level_timestep=schedule.timestep(called.half_logsnr).item(),
                alpha=level.alpha.item(),
                sigma=level.sigma.item(),
                alpha_next=reached.alpha.item(),
                sigma_next=reached.sigma.item(),
                x_weight=weights[0],
                x0_weights=tuple(weights[1::2]),
                eps_weights=tuple(weights[2::2]),
                band_gains=tuple(mdp.action_map.band_gains(action[:, :size], probe, mdp.base)[0].tolist()),
            )
        )
    return steps


def unfixed(mdp: DenoisingMDP) -> str:
    """Why a student's steps are no fixed numbers; empty if they are."""
    if isinstance(mdp.solver, LinearSolver):
        return (
            "this student steps with matrices (solver='linear'), which are more than a number for each prediction: use "
            "ReDiFPipeline, Student or a traced program"
        )
    if mdp.adaptive:
        return (
            f"this student decides its number of calls ({mdp.min_steps} to {mdp.num_steps}), so it has no fixed steps: "
            "use ReDiFPipeline or Student"
        )
    return ""


def check_fixed(mdp: DenoisingMDP, actions: Tensor) -> None:
    """Refuse what has no fixed steps.

    Raises:
        ValueError: if the process decides its number of calls, its base solver is linear, or there is not one action a
            step.
    """
    reason = unfixed(mdp)
    if reason:
        raise ValueError(reason)
    if len(actions) != mdp.num_steps:
        raise ValueError(f"actions must be {mdp.num_steps}, one a step, got shape {tuple(actions.shape)}")


def run_steps(steps: Sequence[Step], network: torch.nn.Module, noise: Tensor) -> Tensor:
    """Clean samples ``(B, *S)`` of a network that predicts noise, from standard normal ``noise``.

    For a student with a linear initial map, that is :meth:`redif_env.mdp.process.DenoisingMDP.initial_sample` of it.
    """
    x = noise
    x0s: list[Tensor] = []
    epss: list[Tensor] = []
    for step in steps:
        output = network(x, torch.full((len(x),), step.timestep, dtype=torch.float32, device=x.device))
        eps = getattr(output, "sample", output)
        epss.insert(0, eps)
        x0s.insert(0, (x - step.sigma * eps) / step.alpha)
        x = take_step(asdict(step), x, x0s, epss)
    return x
