"""The report of the loaders: outcomes, and tables over two settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.measure import Spread
from benchmarks.common.report import Outcome, Report, markdown_table, with_spread


@dataclass(frozen=True)
class Grid:
    """Figures of one kind over two settings.

    Attributes
    ----------
    title, unit
        Heading, and unit of the figures.
    corner
        Meaning of the rows and columns.
    columns
        Names of the columns.
    rows
        Name to a figure for each column, None where nothing was measured.
    """

    title: str
    unit: str
    corner: str
    columns: Sequence[str]
    rows: dict[str, list[Spread | None]]

    def cells(self) -> list[list[str]]:
        """All as text, the header first."""
        texts = [[name, *map(with_spread, spreads)] for name, spreads in self.rows.items()]
        return [[self.corner, *self.columns], *texts]

    def record(self) -> dict[str, Any]:
        """All samples, for JSON."""
        return asdict(self)


@dataclass
class Findings:
    """Results of a case.

    Attributes
    ----------
    outcomes
        Figures of which something is required.
    grids
        Figures over two settings.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)


@dataclass(frozen=True)
class LoaderReport(Report):
    """A report with tables over two settings."""

    grids: Sequence[Grid] = ()

    def show(self, console: Console) -> None:
        for grid in self.grids:
            header, *rows = grid.cells()
            table = Table(*header, title=f"{grid.title}, {grid.unit}", title_justify="left")
            for row in rows:
                table.add_row(*row)
            console.print(table)
        super().show(console)

    def write(self, directory: Path, name: str) -> list[Path]:
        """Write the report as Markdown, and as JSON with every sample."""
        files = super().write(directory, name)
        record = json.loads(files[1].read_text())
        record["grids"] = [grid.record() for grid in self.grids]
        files[1].write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        return files

    def markdown(self) -> str:
        grids = [
            f"## {grid.title}, {grid.unit}\n\n{markdown_table(grid.cells())}\n"
            for grid in self.grids
        ]
        return "\n".join([super().markdown(), *grids])
