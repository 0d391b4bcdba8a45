"""The tables of docs/pipelines-table.md: ``python -m tests.teachers.table`` writes it."""

import warnings
from pathlib import Path

from redif_env.teachers.driven.refused import REFUSED_PIPELINES
from tests.teachers.classes import UNTRIED_BY_NAME
from tests.teachers.driving import teacher_of
from tests.teachers.zoo import ZOO

DOCUMENT = Path(__file__).parents[2] / "docs" / "pipelines-table.md"
MARK = "<!-- from here on written by tests/teachers/table.py -->"
HEAD = (
    "| test | class | stock scheduler | stepped as | sample shape | calls per prediction | levels | starts from |\n"
    + "|---" * 8
    + "|"
)


def row(name, teacher):
    """What the probe found of an entry of the zoo."""
    probe = teacher.probe
    levels = "common to a batch" if probe.common else "each sample's own"
    begins = "an image and noise" if probe.from_image else "noise"
    shape = "x".join(map(str, probe.sample_shape))
    stock = [kind.removesuffix("Scheduler") for kind in (probe.scheduler, probe.stepped_as)]
    return f"| {name} | {probe.pipeline} | {stock[0]} | {stock[1]} | {shape} | {probe.calls} | {levels} | {begins} |"


def by_reason(reasons):
    """A row for each reason, with the classes that have it."""
    return [
        f"| {why} | {', '.join(sorted(name for name, given in reasons.items() if given == why))} |"
        for why in sorted(set(reasons.values()))
    ]


def named():
    """The classes that are refused, and those that are not tested, by reason."""
    lines = []
    for title, reasons in (("Refused", REFUSED_PIPELINES), ("Not tested", UNTRIED_BY_NAME)):
        lines += ["", f"## {title}", "", "| reason | classes |", "|---|---|", *by_reason(reasons)]
    return "\n".join(lines)


def main():
    warnings.simplefilter("ignore")
    rows = [row(name, teacher_of(kind())) for name, kind in ZOO.items()]
    text = DOCUMENT.read_text().split(MARK)[0]
    DOCUMENT.write_text(f"{text}{MARK}\n\n## Tested\n\n{HEAD}\n" + "\n".join(rows) + f"\n{named()}\n")


if __name__ == "__main__":
    main()
