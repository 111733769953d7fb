"""The report of the loaders: outcomes, tables, plots and one HTML page."""

from __future__ import annotations

import base64
import html
import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.measure import Spread
from benchmarks.common.report import Outcome, Report, markdown_table, with_spread

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
td.pass { color: #17722f; } td.MISS { color: #b3261e; font-weight: bold; }
img { max-width: 100%; }
"""


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
        """Write the report as Markdown, JSON and HTML, and the plots."""
        files = super().write(directory, name)
        record = json.loads(files[1].read_text())
        record["grids"] = [grid.record() for grid in self.grids]
        files[1].write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        plots = self._plots(directory, name)
        page = directory / f"{name}.html"
        page.write_text(self.html(plots))
        return [*files, *plots, page]

    def _plots(self, directory: Path, name: str) -> list[Path]:
        if importlib.util.find_spec("matplotlib") is None:
            return []
        from benchmarks.loaders.plots import draw

        return draw(self.grids, directory, name)

    def markdown(self) -> str:
        grids = [
            f"## {grid.title}, {grid.unit}\n\n{markdown_table(grid.cells())}\n"
            for grid in self.grids
        ]
        return "\n".join([super().markdown(), *grids])

    def html(self, plots: Iterable[Path]) -> str:
        """The report as a self-contained page."""
        parts = [f"<h1>{html.escape(self.data)}</h1>"]
        parts.append(_html([self._headers(), *(outcome.cells() for outcome in self.outcomes)]))
        for plot in plots:
            data = base64.b64encode(plot.read_bytes()).decode()
            parts.append(f'<p><img alt="{plot.stem}" src="data:image/png;base64,{data}"></p>')
        for grid in self.grids:
            parts += [f"<h2>{html.escape(f'{grid.title}, {grid.unit}')}</h2>", _html(grid.cells())]
        parts += ["<ul>", *(f"<li>{html.escape(line)}</li>" for line in self._remarks()), "</ul>"]
        body = "\n".join(parts)
        return (
            f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>scdl: loaders</title>'
            f"<style>{_STYLE}</style>\n{body}\n</html>\n"
        )


def _html(lines: Sequence[Sequence[str]]) -> str:
    header, *rows = ([html.escape(text) for text in line] for line in lines)
    head = "".join(f"<th>{text}</th>" for text in header)
    body = "\n".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _html_cell(text: str) -> str:
    verdict = f' class="{text}"' if text in ("pass", "MISS") else ""
    return f"<td{verdict}>{text}</td>"
