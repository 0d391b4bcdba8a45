"""The command ``redif``: train a student, sample, show, evaluate. Only training needs an RL library."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from redif_env.diffusion.grids import next_position
from redif_env.diffusion.solvers import record
from redif_env.diffusion.types import Prediction, State
from redif_env.judging.baselines import Which, baselines_of
from redif_env.judging.evaluation import Evaluator, evaluate
from redif_env.judging.tables import print_table
from redif_env.mdp.settings import parse_device, solver_name
from redif_env.measures.rendering import as_images, tile, to_pixels
from redif_env.showing.films import Starts, base_films, student_films, teacher_film
from redif_env.showing.page import Exhibit, page_of
from redif_env.showing.server import serve
from redif_env.storage.checks import check_at_least
from redif_env.storage.files import write_file
from redif_env.students.student import Student
from redif_env.teachers.references import sizes_of
from redif_env.teachers.teacher import Teacher, load_teacher

WIDTH = 60
"""Characters of a drawn schedule."""


@dataclass(frozen=True)
class Train:
    """Train a student with PPO; ``redif train --help`` lists the settings."""


@dataclass(frozen=True)
class Sample:
    """Draw samples and save them as one image."""

    student: Positional[str]
    """Folder or hub id of a student."""
    num_samples: Annotated[int, arg(aliases=["-n"])] = 16
    out: Path = Path("samples.png")
    """Output file: an image (.png), or the samples as a tensor (.safetensors)."""
    seed: int = 0
    price: float | None = None
    """Price of a network call, for students trained with prices."""
    condition: str | None = None
    """Class label or prompt of all samples; drawn as in training if not given."""
    device: str = "cpu"

    def run(self) -> None:
        if self.out.suffix not in (".png", ".safetensors"):
            raise ValueError(f"out='{self.out}' must end in .png or .safetensors")
        student = load(self.student, self.device)
        samples = student(self.num_samples, seed=self.seed, price=self.price, condition=self.condition)
        save_samples(samples.cpu(), self.out)
        nfe = student.num_steps * student.mdp.teacher.calls
        print(f"{self.num_samples} samples of {nfe} network calls each, seed {self.seed}: {self.out}")


@dataclass(frozen=True)
class Info:
    """Describe a student: teacher, steps, training, and measured quality."""

    student: Positional[str]
    """Folder or hub id of a student."""

    def run(self) -> None:
        student = load(self.student, "cpu")
        console = Console(width=100, highlight=False)
        console.print(facts_table(student))
        for line in schedule_lines(student):
            console.print(line, markup=False)
        for title, values in (("training", student.record.training), ("versions", student.record.versions)):
            if values:
                table = Table(title, "value", title=title)
                for key, value in values.items():
                    table.add_row(key, str(value))
                console.print(table)
        if student.record.results:
            names = list(student.record.results[0])
            table = Table(*names, title=student.record.evaluated_on)
            for row in student.record.results:
                table.add_row(*(f"{value:.5g}" if isinstance(value, float) else str(value) for value in row.values()))
            console.print(table)


@dataclass(frozen=True)
class Evaluate:
    """Compare a student with training-free solvers at the same number of network calls."""

    student: Positional[str]
    """Folder or hub id of a student."""
    size: int | None = None
    """Number of held-out noises."""
    baselines: Which = "quick"
    """Solvers: none, the few that are best at 4 to 8 network calls, or all on all grids."""
    out: Path | None = None
    """File for the rows, as JSON."""
    device: str = "cpu"

    def run(self) -> None:
        if self.size is not None and self.size < 2:
            raise ValueError(f"size must be at least 2, got {self.size}: a distance between sets needs more")
        student = load(self.student, self.device)
        teacher = teacher_of(student).to(parse_device(self.device))
        evaluator = Evaluator(teacher, self.size)
        rows = evaluate(evaluator, student, "student", baselines_of(self.baselines, evaluator.teacher))
        nfe = max(row.nfe for row in rows if row.method == "student")
        print_table(rows, f"{student.mdp.teacher.name}, {nfe:.4g} NFE, {evaluator.description}")
        if self.out is not None:
            with write_file(self.out) as temporary:
                temporary.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Show:
    """Show teacher and students side by side, on the same noises, on a page in your browser."""

    students: Positional[tuple[str, ...]]
    """Folders or hub ids of students of one teacher."""
    seeds: int = 8
    """Number of noises to show, with the seeds 0, 1, 2, ..."""
    conditions: tuple[str, ...] = ()
    """Class labels or prompts of training to choose from; the first ten if not given."""
    teacher_steps: int | None = None
    """Predictions of the teacher per sample; as many as for endpoints if not given."""
    solver_steps: int = 8
    """Largest number of steps of the training-free solver; all smaller ones are shown too."""
    host: str = "127.0.0.1"
    """Address of the page; the default can only be reached from this machine."""
    port: int = 7860
    """Port of the page; 0 chooses a free one."""
    out: Path | None = None
    """Write the page into this file, whose name ends in .html, instead of serving it."""
    device: str = "cpu"

    def run(self) -> None:
        check_at_least(1, seeds=self.seeds, teacher_steps=self.teacher_steps, solver_steps=self.solver_steps)
        if not self.students:
            raise ValueError("students is empty: give the folder of at least one, as in: redif show student/")
        if self.out is not None:
            if self.out.suffix != ".html":
                raise ValueError(f"out='{self.out}' must end in .html: the page is one file")
            page = page_of(self.exhibit())
            with write_file(self.out.expanduser()) as temporary:
                temporary.write_text(page, encoding="utf-8")
            print(f"page: {self.out}")
            return
        with serve(page_of(self.exhibit()), self.host, self.port) as server:
            print(f"page: http://{self.host}:{server.server_port}/ (Ctrl+C ends it)", flush=True)
            with suppress(KeyboardInterrupt):
                server.serve_forever()

    def exhibit(self) -> Exhibit:
        """The samples of all, made now."""
        students = [load(name, self.device) for name in self.students]
        teacher = teacher_of(students[0]).to(parse_device(self.device))
        for name, student in zip(self.students, students, strict=True):
            check_same_teacher(name, student, students[0])
        known = teacher.conditions
        rows = list(range(min(len(known), CONDITIONS)))
        if self.conditions:
            rows = known.rows_of(list(self.conditions), len(self.conditions)).tolist()
        starts = Starts.draw(teacher, range(self.seeds), rows)
        steps = self.teacher_steps or sizes_of(teacher).teacher_steps
        names = shown_names(self.students)
        schedule = teacher.schedule
        first, last = schedule.timestep(schedule.half_logsnr_at(torch.tensor([1.0, 0.0], dtype=torch.float64))).tolist()
        return Exhibit(
            title=teacher.name,
            conditions=[known.names[row] for row in rows],
            seeds=range(self.seeds),
            ends=(first, last),
            device=str(teacher.device),
            panels=[
                [teacher_film(teacher, starts, steps)],
                base_films(teacher, starts, range(1, self.solver_steps + 1)),
                *(student_films(name, student, starts) for name, student in zip(names, students, strict=True)),
            ],
        )


CONDITIONS = 10
"""Conditions that a page shows if none are asked for."""


def check_same_teacher(name: str, student: Student, first: Student) -> None:
    """Refuse a student of another teacher than the first's.

    Raises:
        ValueError: if their teachers' names, sample shapes or conditions differ.
    """
    ours, others = (
        (one.record.training.get("teacher", one.mdp.teacher.name), one.sample_shape, one.mdp.teacher.conditions.values)
        for one in (student, first)
    )
    if ours != others:
        raise ValueError(f"student {name!r} is of teacher {ours}, and the first of {others}: show them one by one")


def shown_names(folders: Sequence[str]) -> list[str]:
    """A short name of each student: the last part of its path that is not "student" alone, numbered if met before."""
    names: list[str] = []
    for folder in folders:
        parts = [part for part in Path(folder).parts if part not in ("student", "/", "..", ".")]
        name = parts[-1] if parts else "student"
        same = sum(known == name or known.startswith(f"{name} (") for known in names)
        names.append(f"{name} ({same + 1})" if same else name)
    return names


def load(student: str, device: str) -> Student:
    """The student of a folder or hub id."""
    loaded = Student.from_pretrained(student, device)
    if device == "auto":
        print(f"device: {loaded.mdp.teacher.device}")
    return loaded


def teacher_of(student: Student) -> Teacher:
    """The teacher that a student is compared with: that of its training where the student has its own network.

    Raises:
        ValueError: if it is not recorded, or cannot be loaded.
    """
    teacher, training = student.mdp.teacher, student.record.training
    if not teacher.own_network:
        return teacher
    name = training.get("teacher")
    if name is None:
        raise ValueError("student has a network of its own, and no record of its teacher")
    labels = [int(value) for value in teacher.conditions.values] if teacher.conditions.inputs else None
    return load_teacher(
        name, conditions=labels, null_label=training.get("null_label"), guidance_scale=training.get("guidance_scale")
    )


def save_samples(samples: torch.Tensor, out: Path) -> None:
    """Samples ``(N, *S)`` as one picture, nearly square, or as a tensor; the file is whole or absent."""
    from safetensors.torch import save_file

    with write_file(out) as temporary:
        if out.suffix == ".safetensors":
            save_file({"samples": samples.contiguous()}, temporary)
            return
        samples = as_images(samples)
        columns = math.ceil(math.sqrt(len(samples)))
        missing = -len(samples) % columns
        # Places without a sample stay background.
        filled = torch.cat([samples, torch.full((missing, *samples.shape[1:]), torch.nan)])
        grid = filled.reshape(-1, columns, *samples.shape[1:])
        Image.fromarray(tile(to_pixels(grid))).save(temporary, format="PNG")


def facts_table(student: Student) -> Table:
    """Teacher, decision process and sizes."""
    mdp = student.mdp
    each = mdp.teacher.calls
    least, most = (mdp.min_steps or mdp.num_steps) * each, mdp.num_steps * each
    calls = f"{least} to {most}, decided by the policy" if mdp.adaptive else str(most)
    count = sum(parameter.numel() for parameter in mdp.teacher.network.parameters())
    table = Table("student", "", title=None)
    network = f"{mdp.teacher.prediction_type.value}, {count:,} parameters"
    if mdp.teacher.own_network:
        table.add_row("teacher", mdp.teacher.name)
        table.add_row("network", f"its own, {network}")
    else:
        table.add_row("teacher", f"{mdp.teacher.name}, {network}")
    bounds = "" if mdp.teacher.bounds is None else f" in {list(mdp.teacher.bounds)}"
    decoded = bounds if mdp.teacher.decoder is None else f", decoded to {mdp.teacher.image_shape}"
    table.add_row("samples", f"{mdp.teacher.sample_shape}{decoded}")
    if mdp.teacher.conditions.inputs:
        table.add_row("conditions", ", ".join(mdp.teacher.conditions.names))
    if mdp.teacher.guidance_scale is not None:
        scale = f"{mdp.teacher.guidance_scale:g}, two calls a prediction"
        table.add_row("guidance scale", f"{scale}; later ones decided by the policy" if mdp.learn_guidance else scale)
    table.add_row("network calls (NFE) a sample", calls)
    table.add_row("base solver", solver_name(mdp.solver))
    table.add_row(
        "policy", "none: the steps are fixed" if student.fixed else f"looks at the state, {student.policy.config.sizes}"
    )
    table.add_row("licence", student.record.license)
    return table


def schedule_lines(student: Student) -> list[str]:
    """The mean steps as a small picture: the training timesteps of the samples and of the network's conditioning."""
    if student.mdp.adaptive:
        return ["The policy decides how many steps there are, so there is no one schedule to draw."]
    states = calling_states(student)
    schedule = student.mdp.teacher.schedule
    first, last = schedule.timestep(schedule.half_logsnr_at(torch.tensor([1.0, 0.0], dtype=torch.float64))).tolist()
    lines = [
        ("level of x", [schedule.timestep(state.half_logsnr).item() for state in states]),
        ("conditioning", [state.timestep.item() for state in states]),
        ("base solver", base_timesteps(student)),
    ]
    header = f"{'training timestep':>17}  {first:<{WIDTH // 2}.4g}{last:>{WIDTH - WIDTH // 2}.4g}"
    return [header, *(f"{name:>17}  {_marks(places, first, last)}" for name, places in lines), *_numbers(states)]


def calling_states(student: Student) -> list[State]:
    """The states in which the mean actions call the network; their samples are empty, levels and timesteps are not."""
    mdp, actions = student.mdp, student.mean_actions
    assert actions is not None
    nothing = torch.zeros(1, *mdp.teacher.sample_shape, device=mdp.teacher.device)
    state, states = mdp.initial(nothing), []
    for action in actions:
        states.append(state)
        called = record(state, Prediction(nothing, nothing))
        state = mdp.advance(called, mdp.decode(called, action[None].to(nothing)))
    return states


def base_timesteps(student: Student) -> list[float]:
    """Training timesteps at which the base solver would call the network."""
    mdp = student.mdp
    position = torch.zeros(1, dtype=torch.float64)
    schedule, places = mdp.teacher.schedule, []
    for left in range(mdp.num_steps, 0, -1):
        places.append(schedule.timestep(mdp.grid.half_logsnr(position, schedule)).item())
        position = next_position(position, torch.tensor([left]), torch.zeros(1, dtype=torch.float64))
    return places


def _marks(timesteps: list[float], first: float, last: float) -> str:
    line = ["·"] * WIDTH
    for timestep in timesteps:
        line[round((first - timestep) / (first - last) * (WIDTH - 1))] = "●"
    return "".join(line)


def _numbers(states: list[State]) -> list[str]:
    timesteps = ", ".join(f"{state.timestep.item():.1f}" for state in states)
    ratios = ", ".join(f"{math.exp(-state.half_logsnr.item()):.3g}" for state in states)
    return [f"{'conditioning':>17}  {timesteps}", f"{'sigma / alpha':>17}  {ratios}"]


def train(arguments: list[str]) -> None:
    """``redif train``: the program of ``python -m agents.ppo``.

    Raises:
        ValueError: if Stable-Baselines3, or what it logs with, is not installed.
    """
    try:
        from redif_env.sb3.training import ppo
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("stable_baselines3", "tensorboard"):
            raise
        raise ValueError(f"redif train needs {error.name}: pip install 'redif-env[sb3]'") from error
    from redif_env.sb3.training.recipes import settled
    from redif_env.training.command import run

    run(ppo.main, ppo.Args, settled, arguments=arguments, prog="redif train")


COMMANDS: dict[str, Any] = {"train": Train, "sample": Sample, "info": Info, "evaluate": Evaluate, "show": Show}
"""The commands by their names."""


def main() -> None:
    """Parse the command line and do what it says; on bad input print a sentence and exit with code 2."""
    diffusers_logging.disable_progress_bar()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a pipe on Windows has few characters
        sys.stdout.reconfigure(errors="replace")
    try:
        if sys.argv[1:2] == ["train"]:
            train(sys.argv[2:])
        else:
            tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="redif").run()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
