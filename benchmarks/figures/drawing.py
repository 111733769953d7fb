"""Charts as SVG: readable on light and on dark pages, and the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.common.report import number
from benchmarks.figures.reports import Measured

WIDTH = 8.0
#: Of text: as far from white pages as from dark ones.
INK = "#777777"
#: scdl, and other libraries.
OURS, THEIRS = "#2388c4", "#8f8f8f"
#: Of lines.
COLORS = ("#2388c4", "#1a9850", "#c2701c", "#8b6fc0", "#d0498c", "#8f8f8f", "#8a7a2c")
MARKERS = "osD^vXP"

_STYLE: dict[str, Any] = {
    # Text that can be searched and read aloud, and no identifiers or dates that differ.
    "svg.fonttype": "none",
    "svg.hashsalt": "scdl",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.titlecolor"), INK),
    "grid.alpha": 0.3,
}


class Chart:
    """A figure of panels side by side, with a title above and its origin below."""

    def __init__(
        self, title: str, origin: str, panels: int, height: float, *, same_scale: bool = False
    ) -> None:
        with rc_context(_STYLE):
            self._figure = Figure(figsize=(WIDTH, height), layout="constrained")
            self._figure.suptitle(title, x=0.01, ha="left", weight="bold", size=11)
            self._figure.supxlabel(origin, x=0.01, ha="left", size=8)
            self.panels: Sequence[Axes] = self._figure.subplots(
                1, panels, squeeze=False, sharey=same_scale
            )[0]

    def bars(
        self,
        panel: int,
        title: str,
        rows: Mapping[str, Measured | None],
        ours: Sequence[str],
        *,
        names: bool = True,
    ) -> None:
        """Draw a bar for each row, from the top; those of `ours` are coloured."""
        with rc_context(_STYLE):
            axes = self.panels[panel]
            known = {y: value for y, value in enumerate(rows.values()) if value is not None}
            colors = [OURS if list(rows)[y] in ours else THEIRS for y in known]
            medians = [value.median for value in known.values()]
            bars = axes.barh(
                list(known), medians, color=colors, xerr=_spread(known.values()), ecolor=INK
            )
            axes.bar_label(bars, [number(median) for median in medians], padding=5, color=INK)
            axes.set_yticks(range(len(rows)), list(rows) if names else [""] * len(rows))
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            axes.margins(x=0.22)
            axes.set_title(title, loc="left")
            axes.grid(axis="x")

    def lines(
        self,
        panel: int,
        title: str,
        label: str,
        rows: Mapping[str, Mapping[str, Measured]],
        *,
        scale: str = "linear",
    ) -> None:
        """Draw a line for each row over its columns, which are numbers."""
        with rc_context(_STYLE):
            axes = self.panels[panel]
            for place, (name, cells) in enumerate(rows.items()):
                axes.errorbar(
                    [float(column.replace(",", "")) for column in cells],
                    [value.median for value in cells.values()],
                    yerr=_spread(cells.values()),
                    color=COLORS[place % len(COLORS)],
                    marker=MARKERS[place % len(MARKERS)],
                    markersize=4.5,
                    linewidth=1.4,
                    label=name,
                )
            columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
            axes.set_xscale("log")
            axes.set_yscale(scale)
            places = [float(column.replace(",", "")) for column in columns]
            axes.set_xticks(places, columns, rotation=30 if len(columns) > 4 else 0)
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.minorticks_off()
            if scale == "log":
                axes.yaxis.set_major_formatter("{x:,g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_title(title, loc="left")
            axes.set_xlabel(label)
            axes.grid()

    def mark(self, panel: int, y: float, text: str) -> None:
        """Draw a dashed line across a panel, with its meaning."""
        with rc_context(_STYLE):
            axes = self.panels[panel]
            line = axes.axhline(y, color=INK, linestyle="--", linewidth=1)
            axes.legend([line], [text], loc="lower right")

    def legend(self, panel: int, title: str | None = None) -> None:
        """Explain the lines of a panel, beside the last one."""
        with rc_context(_STYLE):
            handles, labels = self.panels[panel].get_legend_handles_labels()
            self._figure.legend(handles, labels, loc="outside right center", title=title)

    def save(self, path: Path) -> None:
        """Write the chart as SVG."""
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with rc_context(_STYLE):
            self._figure.savefig(path, format="svg", transparent=True, metadata=nothing)


def _spread(values: Any) -> list[list[float]] | None:
    """Lengths of error bars; None where everything was measured once."""
    known = list(values)
    if all(value.low == value.high for value in known):
        return None
    below = [value.median - value.low for value in known]
    return [below, [value.high - value.median for value in known]]
