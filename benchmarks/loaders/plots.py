"""Plots of the loader benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from benchmarks.common.measure import Spread
from benchmarks.common.report import number
from benchmarks.loaders.report import Grid

_INCHES = 9.0


def draw(grids: Sequence[Grid], directory: Path, name: str) -> list[Path]:
    """Draw the tables as PNG files."""
    rates = [grid for grid in grids if grid.corner == "batch"]
    blocks = [grid for grid in grids if grid.corner.startswith("block")]
    single = {"archive": "disk", "loader": "memory"}
    figures: dict[str, Any] = {}
    if rates:
        figures["throughput"] = _throughput(rates)
    for grid in grids:
        if grid.corner in single:
            figures[single[grid.corner]] = _bars(grid)
    if blocks:
        figures["randomness"] = _heat(blocks)
    paths = []
    for kind, figure in figures.items():
        paths.append(directory / f"{name}-{kind}.png")
        figure.savefig(paths[-1], dpi=110)
        plt.close(figure)
    return paths


def _throughput(grids: Sequence[Grid]) -> Any:
    """Groups of bars, one a loader, over the batches of each table; logarithmic."""
    names = list(dict.fromkeys(_loader(row) for grid in grids for row in grid.rows))
    colors = {name: colormaps["tab10"](place) for place, name in enumerate(names)}
    size = (_INCHES, 2.6 * len(grids))
    figure, axes = plt.subplots(
        len(grids), 1, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for grid, axis in zip(grids, axes[:, 0], strict=True):
        width = 0.85 / len(grid.rows)
        for place, (row, spreads) in enumerate(grid.rows.items()):
            known = [(x, s) for x, s in enumerate(spreads) if s is not None]
            at = [x + (place - (len(grid.rows) - 1) / 2) * width for x, _ in known]
            heights, errors = _heights([spread for _, spread in known])
            axis.bar(at, heights, width, yerr=errors, color=colors[_loader(row)])
        axis.set_xticks(range(len(grid.columns)), grid.columns)
        axis.set(title=grid.title, ylabel=grid.unit, yscale="log")
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(axis="y", alpha=0.3)
    # Bars on a logarithmic axis start at a common rate, below all others.
    axis.set_ylim(bottom=min(1.0, axis.get_ylim()[0]))
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _loader(row: str) -> str:
    return row.removesuffix(" (random)")


def _heights(spreads: Sequence[Spread]) -> tuple[list[float], list[list[float]]]:
    medians = [spread.median for spread in spreads]
    below = [spread.median - spread.low for spread in spreads]
    above = [spread.high - spread.median for spread in spreads]
    return medians, [below, above]


def _bars(grid: Grid) -> Any:
    """One bar a row, of the first column."""
    known = {name: row[0] for name, row in reversed(grid.rows.items()) if row[0] is not None}
    lengths, errors = _heights(list(known.values()))
    figure, axis = plt.subplots(figsize=(_INCHES, 1.2 + 0.35 * len(known)), layout="constrained")
    bars = axis.barh(list(known), lengths, xerr=errors)
    axis.bar_label(bars, [number(length) for length in lengths], padding=6)
    axis.margins(x=0.12)
    axis.set(title=grid.title, xlabel=grid.unit)
    return figure


def _heat(grids: Sequence[Grid]) -> Any:
    """A table each, coloured by its medians."""
    figure, axes = plt.subplots(
        1, len(grids), figsize=(_INCHES, 4.2), squeeze=False, layout="constrained"
    )
    for grid, axis in zip(grids, axes[0], strict=True):
        rows = grid.rows.values()
        values = [[spread.median if spread else 0.0 for spread in row] for row in rows]
        image = axis.imshow(values, aspect="auto", cmap="viridis")
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                dark = image.norm(value) < 0.6
                text = number(value)
                axis.text(x, y, text, ha="center", va="center", color="w" if dark else "k")
        axis.set_xticks(range(len(grid.columns)), grid.columns, rotation=30)
        axis.set_yticks(range(len(values)), list(grid.rows))
        axis.set(title=f"{grid.title}, {grid.unit}", xlabel="buffer, cells", ylabel="block, cells")
        axis.title.set_fontsize("medium")
    return figure
