"""Printed tables of results."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from redif_env.judging.evaluation import Row


def print_table(rows: Sequence[Row], title: str) -> None:
    """Print rows as a table with text left-aligned and numbers right-aligned."""
    table = Table("method", "grid", title=title)
    varied = any(row.diversity is not None for row in rows)
    for name in ("NFE", "FD to teacher", "FD to data", "MSE to teacher", *(("diversity",) if varied else ())):
        table.add_column(name, justify="right")
    for row in rows:
        data = "-" if row.fd_data is None else f"{row.fd_data:.3f}"
        style = "bold" if row.method.startswith("redif") else None
        numbers = [f"{row.nfe:.4g}", f"{row.fd_teacher:.3f}", data, f"{row.mse_teacher:.5f}"]
        if varied:
            numbers.append("-" if row.diversity is None else f"{row.diversity:.3f}")
        table.add_row(row.method, row.grid, *numbers, style=style)
    # A fixed width, so that the table is the same in a log file and a terminal.
    Console(width=100).print(table)
