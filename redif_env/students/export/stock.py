"""A student whose levels alone were learned, as a stock scheduler and arguments of the pipeline's call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redif_env.students.export.redif_scheduler import ReDiFScheduler

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

NEAR = 1e-4
"""Difference of timesteps, and of weights, that is none."""


def stock_scheduler(scheduler: ReDiFScheduler) -> tuple[SchedulerMixin, dict[str, Any]]:
    """The stock scheduler, and the ``sigmas`` to call the pipeline with, that take a student's steps.

    Flow: Euler, which shifts the sigmas that it is given, so its shift is 1. Variance preserving: Euler too, which is
    DDIM in other units.

    Raises:
        ValueError: if more was learned than levels, or no stock scheduler with ``sigmas`` has such levels.
    """
    from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    config, steps = scheduler.config, scheduler.config.steps
    if config.refusal:
        raise ValueError(config.refusal)
    if not all(map(_first_order, steps)):
        raise ValueError(
            "more was learned than levels, which no stock scheduler has a place for: use ReDiFScheduler, or train with "
            "solver='ddim' and action='step'"
        )
    kind, betas = config.prediction_type, ((config.process or {}).get("noise") or {}).get("trained_betas")
    flow = kind == "flow_prediction" and not config.reverse_output and not config.skipped
    if flow and all(abs(step["timestep"] - config.num_train_timesteps * step["sigma"]) < 0.1 for step in steps):
        original = (config.trained_with or {}).get("scheduler") or {}
        known = {key: value for key, value in original.items() if key.endswith(("_shift", "_seq_len"))}
        settings = {"num_train_timesteps": config.num_train_timesteps, "shift": 1.0, "use_dynamic_shifting": False}
        return FlowMatchEulerDiscreteScheduler(**known, **settings), {"sigmas": [step["sigma"] for step in steps]}
    if betas is None or config.skipped or abs(steps[0]["alpha"] ** 2 + steps[0]["sigma"] ** 2 - 1) > NEAR:
        raise ValueError("no stock scheduler that takes sigmas has these levels: use ReDiFScheduler")
    # Its first noise is sqrt(sigma ** 2 + 1) with this spacing.
    euler = EulerDiscreteScheduler(
        num_train_timesteps=len(betas), trained_betas=betas, prediction_type=kind, timestep_spacing="leading"
    )
    # It wants the level that the last step leads to, too.
    return euler, {"sigmas": [*(step["sigma"] / step["alpha"] for step in steps), 0.0]}


def write_stock(scheduler: ReDiFScheduler, folder: Path) -> None:
    """Write config and ``arguments.json`` of :func:`stock_scheduler`; nothing where there is none."""
    try:
        stock, arguments = stock_scheduler(scheduler)
    except ValueError:
        return
    stock.save_pretrained(str(folder))
    (folder / "arguments.json").write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")


def _first_order(step: Mapping[str, Any]) -> bool:
    """Whether a step is Euler's between its levels, given its own level's timestep."""
    weights = [step["x_weight"], step["x0_weights"][0] - 1, *step["x0_weights"][1:], *step["eps_weights"]]
    moved = abs(step["timestep"] - step["level_timestep"]) / (1 + abs(step["level_timestep"]))
    return max(map(abs, [*weights, *step["band_gains"], moved])) < NEAR
