"""The comparison's figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

from redif_env.storage.files import write_file

matplotlib.use("agg")
from matplotlib import pyplot

Rows = Sequence[dict[str, Any]]

STYLES = ("-", "--", ":")
"""Of lines, once all colours are used."""


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
    with write_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
