"""The comparison's figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from redif_env.diffusion.grids import GRIDS
from redif_env.diffusion.schedules import Schedule
from redif_env.judging.baselines import SOLVER_GRIDS
from redif_env.measures.rendering import tile, to_pixels
from redif_env.storage.files import write_file

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]

STYLES = ("-", "--", ":")
"""Of lines, once all colours are used."""
NAMED = 190
"""Pixels at the left of a grid of samples, for names."""


def draw_curves(rows: Rows, teacher: str, path: Path) -> None:
    """Quality against network calls a sample, and against what the fit cost; a line or mark a method."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 6), layout="constrained")
    own = [row for row in rows if row["teacher"] == teacher]
    for index, method in enumerate(dict.fromkeys(row["method"] for row in own)):
        calls = sorted({row["nfe"] for row in own if row["method"] == method})
        at = {nfe: [row for row in own if (row["method"], row["nfe"]) == (method, nfe)] for nfe in calls}
        found = [median(row["fd_teacher"] for row in at[nfe]) for nfe in calls]
        look = {"color": f"C{index % 10}", "label": method, "marker": "o", "markersize": 4}
        look["linewidth"] = 2.5 if method.startswith("redif") else 1.0
        left.plot(calls, found, linestyle=STYLES[index // 10 % len(STYLES)], **look)
        costs = [max(1.0, median(row["train_seconds"] for row in at[nfe])) for nfe in calls]
        right.plot(costs, found, linestyle="", **look)
    left.set(xlabel="network calls a sample (NFE)", ylabel="Frechet distance to the teacher, median", yscale="log")
    right.set(xlabel="seconds of the fit (1 or less: 1)", xscale="log", yscale="log")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    _save(figure, path)


def draw_schedules(rows: Rows, teacher: str, nfe: int, schedule: Schedule, path: Path) -> None:
    """Where methods that search or learn it call the network, first seeds, beside the known grids."""
    figure, axis = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    position = torch.arange(nfe, dtype=torch.float64) / nfe
    low, high = schedule.ends
    for name in SOLVER_GRIDS:
        levels = GRIDS[name].half_logsnr(position, schedule).clamp(low, high)
        axis.plot(range(1, nfe + 1), torch.exp(-levels), color="0.75", linewidth=1)
        axis.annotate(name, (nfe, torch.exp(-levels[-1])), color="0.5", fontsize=7, xytext=(4, 0),
                      textcoords="offset points")  # fmt: skip
    own = [row for row in rows if (row["teacher"], row["nfe"]) == (teacher, nfe) and len(row.get("levels", ())) == nfe]
    for index, row in enumerate(row for row in own if row["seed"] == 0):
        levels = torch.tensor(row["levels"], dtype=torch.float64).clamp(low, high)
        look = {"color": f"C{index % 10}", "linestyle": STYLES[index // 10 % len(STYLES)]}
        axis.plot(range(1, nfe + 1), torch.exp(-levels), marker="o", markersize=4, label=row["method"], **look)
    axis.set(xlabel="network call", ylabel="sigma / alpha", yscale="log", xticks=range(1, nfe + 1))
    axis.set_title(f"{teacher}, {nfe} NFE: where the network is called (means; grids in grey)", fontsize=10)
    if own:
        axis.legend(fontsize=7)
    _save(figure, path)


def draw_samples(kept: Sequence[Path], labels: Sequence[str], path: Path) -> None:
    """The same noises down the rows, a method each as its file has it; the teacher last."""
    files = [load_file(file) for file in kept]
    lines = torch.stack([*(file["student"] for file in files), files[0]["teacher"]])
    if lines.ndim != 5:
        lines = lines.reshape(*lines.shape[:2], 1, 1, -1)
    picture = Image.fromarray(tile(to_pixels(lines))).convert("RGB")
    named = Image.new("RGB", (NAMED + picture.width, picture.height), "white")
    named.paste(picture, (NAMED, 0))
    pen, height = ImageDraw.Draw(named), picture.height / len(lines)
    for index, label in enumerate((*labels, "teacher")):
        pen.text((NAMED - 6, (index + 0.5) * height), label, fill="black", anchor="rm")
    with write_file(path) as temporary:
        named.save(temporary, format="PNG")


def _save(figure: Figure, path: Path) -> None:
    with write_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
