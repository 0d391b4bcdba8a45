"""The comparison's figure: ``python -m experiments.figures docs/data/digits.json docs/compare-quality.png`` draws it of
the rows that a file holds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import numpy as np

from redif_env.storage.files import write_file

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

Rows = Sequence[dict[str, Any]]

SOLVERS = ("best solver", "ddim", "deis", "dpm", "heun", "ipndm", "unipc")
"""What names of methods begin with that are not fitted: of these the best at each number of calls is drawn."""
LOOKS = {
    "redif-ppo": ("PPO", "#0072B2", "-"),
    "redif-ppo, no state": ("PPO, steps left alone", "#56B4E9", "-"),
    "linear steps": ("least squares", "#009E73", "-"),
    "gradient, table": ("gradient, table", "#D55E00", "-"),
    "cross-entropy": ("cross-entropy", "#CC79A7", "-"),
    "network, regression": ("network, regression", "#E69F00", "-"),
    "best solver": ("best solver", "#000000", "--"),
    "teacher, other noises": ("sampling floor", "#7f7f7f", ":"),
}
"""Label, colour and line of each method that is drawn, the same in every figure: the colours of Okabe and Ito, which
those who confuse red and green can tell apart. Other methods are in the tables."""


def draw_curves(rows: Rows, teacher: str, path: Path) -> None:
    """Quality against network calls a sample: the median over seeds and their range, labelled where its line ends."""
    own = [row for row in rows if row.get("teacher", teacher) == teacher]
    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    ends = {}
    for method in (method for method in LOOKS if curve(own, method)):
        calls, distances = zip(*curve(own, method).items(), strict=True)
        label, colour, line = LOOKS[method]
        middle = [median(found) for found in distances]
        axis.plot(calls, middle, color=colour, linestyle=line, marker="o", markersize=5, linewidth=2.2)
        axis.fill_between(calls, *zip(*((min(found), max(found)) for found in distances), strict=True), color=colour,
                          alpha=0.12, linewidth=0)  # fmt: skip
        ends[label] = (calls[-1], middle[-1], colour)
    axis.set_yscale("log")
    axis.set_xlabel("network calls a sample (NFE)", fontsize=14)
    axis.set_ylabel("Frechet distance to the teacher", fontsize=14)
    axis.set_title(f"{teacher}: lower is nearer", fontsize=14)
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axis.tick_params(labelsize=13)
    axis.grid(alpha=0.25)
    write_labels(axis, ends)
    with write_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)


def curve(rows: Rows, method: str) -> dict[int, list[float]]:
    """The distances of a method at each number of calls; of solvers those of the one that is best there."""
    names = SOLVERS if method == "best solver" else None
    found: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        if row["method"].startswith(names) if names else row["method"] == method:
            found.setdefault(row["nfe"], {}).setdefault(row["method"], []).append(row["fd_teacher"])
    return {nfe: min(found[nfe].values(), key=median) for nfe in sorted(found)}


def write_labels(axis: Axes, ends: dict[str, tuple[float, float, str]]) -> None:
    """A label right of each line, moved apart where lines end near each other, with a thread to its end."""
    if not ends:
        return
    right = max(x for x, _, _ in ends.values())
    bottom, top = np.log(axis.get_ylim())
    apart = (top - bottom) / 14
    height = -np.inf
    for label, (x, y, colour) in sorted(ends.items(), key=lambda end: end[1][1]):
        height = max(float(np.log(y)), height + apart)
        axis.annotate(label, (x, y), (right * 1.04, float(np.exp(height))), color=colour, fontsize=13, va="center",
                      annotation_clip=False, arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.4})  # fmt: skip
    axis.set_xlim(right=right * 1.02)


if __name__ == "__main__":
    stored = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    draw_curves(stored["rows"], stored["teacher"], Path(sys.argv[2]))
