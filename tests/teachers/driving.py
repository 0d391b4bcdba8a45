"""The checks that every driven pipeline has to pass, against :mod:`tests.teachers.references_without_hooks`."""

import copy
from dataclasses import replace

import torch

from redif_env import Teacher
from redif_env.diffusion.grids import LevelsGrid
from redif_env.diffusion.predictions import EDMPreconditioning
from redif_env.diffusion.solvers import ddim_step, initial_state, predict, step_to
from redif_env.diffusion.types import Decision, Level, PredictionType
from redif_env.teachers.driven.arguments import batched
from redif_env.teachers.driven.schedules import ScaledInputs
from redif_env.teachers.driven.timesteps import TimestepPlan
from tests.teachers.references_without_hooks import Seen, recorded, scripted

STEPS = 4


def teacher_of(entry):
    """The teacher of a zoo's entry."""
    return Teacher.from_pipeline(entry.pipe, entry.conditions, **entry.shared)


def stock_run(teacher, scheduler, rows, latents=None):
    """What the stock pipeline returns with this scheduler in the place of its own, and the user's own left alone."""
    drive, pipe = teacher.drive, copy.copy(teacher.drive.pipe)
    pipe.__dict__["scheduler"] = scheduler
    pipe.set_progress_bar_config(disable=True)
    arguments = {**drive.shared, **batched([drive.conditions[row] for row in rows])}
    if "num_inference_steps" in drive.takes:
        arguments["num_inference_steps"] = drive.start(STEPS).called
    generators = [torch.Generator().manual_seed(0) for _ in rows]
    if "generator" in drive.takes and not (latents is not None and not drive.injection.generator):
        arguments["generator"] = generators if len(rows) > 1 else generators[0]
    if "batch_size" in drive.takes and "prompt" not in arguments:
        arguments["batch_size"] = len(rows)
    if latents is not None:
        arguments["latents"] = latents
    arguments["output_type"] = "pt"
    with torch.no_grad():
        return pipe(**arguments)


def own_path(teacher):
    """The pipeline's own levels, and clean data: ``(n + 1,)``."""
    return torch.tensor([*teacher.drive.own_levels(STEPS), torch.inf], dtype=torch.float64)


def moved_paths(teacher):
    """Levels of two rows ``(2, n + 1)`` between the pipeline's own; the same where they must be common."""
    own = own_path(teacher)
    angle = torch.atan(torch.exp(-own))
    paths = []
    for share in (0.35, -0.25):
        moved = angle.clone()
        for index in range(1, STEPS):
            there = angle[index + 1] if share > 0 else angle[index - 1]
            moved[index] = torch.lerp(angle[index], there, abs(share))
        level = -torch.log(torch.tan(moved))
        paths.append(torch.where(torch.arange(STEPS + 1) % STEPS == 0, own, level))
    return torch.stack([paths[0], paths[0] if teacher.common_levels else paths[1]])


def stepped(teacher, x, paths, rows):
    """DDIM steps of ``x`` ``(B, *S)`` by the teacher's predictions along ``paths`` ``(B, n + 1)``."""
    schedule, condition = teacher.schedule, torch.tensor(rows)
    grid = LevelsGrid(tuple(paths[0, :-1].tolist()))
    state = initial_state(x, schedule, grid, STEPS, 1, condition)
    state = replace(state, x=x, half_logsnr=paths[:, 0], timestep=schedule.timestep(paths[:, 0]))
    for index in range(STEPS):
        state = predict(teacher, state)
        there = paths[:, index + 1]
        position = torch.full((len(x),), (index + 1) / STEPS, dtype=torch.float64)
        x0 = state.x0_history[:, 0]
        moved = ddim_step(state.x, x0, schedule.level(state.half_logsnr), schedule.level(there))
        state = step_to(state, Decision(position, there, x0, moved, schedule.timestep(there), state.steps_left))
    return state.x


def initial(teacher, rows):
    """Samples that runs begin with, and the latents that make the stock pipeline begin with them."""
    if teacher.drive.injection.kind == "latents":
        noise = torch.randn(len(rows), *teacher.sample_shape, generator=torch.Generator().manual_seed(5))
        first = own_path(teacher)[:1]
        x = teacher.initial_sample(noise, torch.tensor(rows), first) * float(teacher.schedule.size(first))
        latents = x.to(teacher.drive.dtype)
        return latents.float(), latents
    return None, None


def zero_action_error(teacher):
    """Of the own path, against the stock first-order scheduler; relative to the sample's size."""
    rows, seen = [0, 1 % len(teacher.conditions)], Seen()
    x, latents = initial(teacher, rows)
    stock_run(teacher, recorded(stock_scheduler(teacher), seen), rows, latents)
    last = seen.last[: len(rows)]
    found = stepped(teacher, seen.first[: len(rows)].float() if x is None else x, own_path(teacher).expand(2, -1), rows)
    return float((found - last).abs().max() / last.abs().max())


def stock_scheduler(teacher):
    """The stock first-order scheduler."""
    stock = copy.deepcopy(teacher.drive.stock)
    if getattr(stock, "alphas_cumprod", torch.ones(1))[-1] == 0:
        stock.alphas_cumprod[-1] = 2.0**-24  # as Euler and DPM-Solver have it: DDIM steps from no signal at all
    return stock


def row_errors(teacher):
    """Of rows at levels of their own against runs of their own, with and without what gives rows their timesteps."""
    rows, paths = [0, 1 % len(teacher.conditions)], moved_paths(teacher)
    x, latents = initial(teacher, rows)
    firsts, lasts = [], []
    for number, row in enumerate(rows):
        alone = None if latents is None else latents[number : number + 1]
        first, last = scripted_run(teacher, row, paths[number], alone)
        firsts.append(first)
        lasts.append(last)
    x, expected = torch.cat(firsts) if x is None else x, torch.cat(lasts)
    size = float(expected.abs().max())
    error = float((stepped(teacher, x, paths, rows) - expected).abs().max()) / size
    plan = teacher.drive.plan
    teacher.drive.plan = TimestepPlan({})
    try:
        control = float((stepped(teacher, x, paths, rows) - expected).abs().max()) / size
    finally:
        teacher.drive.plan = plan
    return error, control


def scripted_run(teacher, row, path, latents):
    """The first and the last sample of a stock call for one condition, stepped along a path."""
    schedule, seen = teacher.schedule, Seen()
    level = schedule.level(path)
    levels = list(zip(level.alpha.tolist(), level.sigma.tolist(), strict=True))
    scheduler = scripted(teacher.drive.stock, schedule.timestep(path[:-1]), levels, reader(teacher))
    scheduler.scaled = scaler(teacher)
    stock_run(teacher, recorded(scheduler, seen), [row], latents)
    return seen.first[:1].float(), seen.last[:1].float()


def scaler(teacher):
    """What the network is given."""
    preconditioning = teacher.preconditioning
    if isinstance(preconditioning, EDMPreconditioning):
        return lambda sample, sigma: sample / (sigma**2 + preconditioning.sigma_data**2) ** 0.5
    if isinstance(preconditioning, ScaledInputs):
        return lambda sample, sigma: sample / (sigma**2 + 1) ** 0.5
    return lambda sample, sigma: sample


def reader(teacher):
    """Clean estimate and noise of an output, written out for each form."""
    kind, flipped = teacher.prediction_type, teacher.drive.stock.config.get("invert_sigmas")

    def read(output, x, alpha, sigma):
        if isinstance(teacher.preconditioning, EDMPreconditioning):
            level = Level(torch.tensor([alpha]).double(), torch.tensor([sigma]).double())
            found = teacher.preconditioning.read(output, x, level, kind)
            return found.x0, found.eps
        if kind is PredictionType.FLOW_PREDICTION:
            output = -output if flipped else output
            return x - sigma * output, x + alpha * output
        if kind is PredictionType.V_PREDICTION:
            return alpha * x - sigma * output, alpha * output + sigma * x
        if kind is PredictionType.SAMPLE:
            return output, (x - alpha * output) / sigma
        return (x - sigma * output) / alpha, output

    return read
