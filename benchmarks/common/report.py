"""What is required of a benchmark, what was measured, and both as tables and files."""

from __future__ import annotations

import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.common.measure import Spread

_PACKAGES = ("anndata", "bionemo-scdl", "h5py", "numba", "numpy", "pyarrow", "scdl-store", "torch")


@dataclass(frozen=True)
class Bound:
    """A figure that a measurement must reach, or must not exceed."""

    limit: float
    unit: str
    at_least: bool

    def holds(self, value: float) -> bool:
        """Whether a value is within the bound."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {number(self.limit)} {self.unit}"


def at_least(limit: float, unit: str) -> Bound:
    return Bound(limit, unit, at_least=True)


def at_most(limit: float, unit: str) -> Bound:
    return Bound(limit, unit, at_least=False)


@dataclass(frozen=True)
class Outcome:
    """One figure of the report.

    Attributes
    ----------
    what
        What was measured.
    bound
        What is required of the median of `measured`.
    measured
        The figure in the unit of the bound.
    ours, theirs
        Figures of the two libraries, in `unit`, where both were measured.
    note
        What a reader must know to judge the figure.
    """

    what: str
    bound: Bound
    measured: Spread
    ours: Spread | None = None
    theirs: Spread | None = None
    unit: str = ""
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.bound.holds(self.measured.median)

    def cells(self) -> list[str]:
        """The outcome as a row of the report."""
        return [
            self.what,
            str(self.bound),
            with_spread(self.measured, self.bound.unit),
            with_spread(self.ours, self.unit),
            with_spread(self.theirs, self.unit),
            "pass" if self.passed else "MISS",
        ]

    def record(self) -> dict[str, Any]:
        """The outcome with every sample, for JSON."""
        return {
            "what": self.what,
            "required": asdict(self.bound),
            "measured": _record(self.measured),
            "ours": _record(self.ours),
            "theirs": _record(self.theirs),
            "unit": self.unit,
            "passed": self.passed,
            "note": self.note,
        }


class Figure(Outcome):
    """An outcome of which nothing is required."""

    def cells(self) -> list[str]:
        what, _, *figures, _ = super().cells()
        return [what, "-", *figures, "-"]

    def record(self) -> dict[str, Any]:
        return super().record() | {"required": None, "passed": None}


def ratio(
    what: str,
    ours: Spread,
    theirs: Spread,
    unit: str,
    *,
    required: float | None = None,
    note: str = "",
) -> Outcome:
    """Return the ratio of a rate to another one, turn by turn."""
    kind = Figure if required is None else Outcome
    bound = at_least(required or 0, "x")
    return kind(what, bound, ours.over(theirs), ours, theirs, unit, note)


def figure(what: str, unit: str, ours: Spread, theirs: Spread | None = None) -> Figure:
    """Return what was measured, beside that of another library where there is one."""
    return Figure(what, at_least(0, unit), ours, ours, theirs, unit)


#: How repetitions are taken; to be formatted with their number.
IN_TURN = (
    "Medians of {repeats} repetitions taken in turn, in brackets the smallest and the largest. "
    "Ratios are taken between repetitions of the same turn. "
)

_Bench = TypeVar("_Bench")
_Found = TypeVar("_Found")


def run(
    cases: Mapping[str, Callable[[_Bench], _Found]], bench: _Bench, names: Collection[str] | None
) -> list[_Found]:
    """Run the named cases, or all, in the order in which they are listed."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, case in cases.items():
            if not names or name in names:
                start = time.perf_counter()
                found.append(case(bench))
                print(f"{name}: done in {time.perf_counter() - start:.0f} s", flush=True)
    return found


@dataclass(frozen=True)
class Report:
    """All outcomes of one run, and what they were measured on.

    Attributes
    ----------
    outcomes
        The figures.
    data
        The data that they were measured on.
    theirs
        The library beside scdl; None leaves out the columns of both.
    method
        How they were measured.
    remarks
        What else a reader must know to judge them.
    """

    outcomes: Sequence[Outcome]
    data: str
    theirs: str | None
    method: str
    remarks: Sequence[str] = ()

    def publish(self, directory: Path, name: str) -> Self:
        """Print the report, and write it under a name and the time of day."""
        self.show(Console())
        for path in self.write(directory, f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"):
            print(f"wrote {path}")
        return self

    def show(self, console: Console) -> None:
        """Print the table and the notes."""
        table = Table(title=self.data, title_justify="left")
        for position, header in enumerate(self._headers()):
            table.add_column(header, justify="left" if position == 0 else "right")
        for outcome in self.outcomes:
            style = "green" if outcome.passed else "bold red"
            *cells, verdict = map(Text, self._cells(outcome))
            verdict.stylize(style)
            table.add_row(*cells, verdict)
        console.print(table)
        for line in self._remarks():
            console.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)

    def write(self, directory: Path, name: str) -> list[Path]:
        """Write the report as Markdown and as JSON with every sample."""
        directory.mkdir(parents=True, exist_ok=True)
        files = [directory / f"{name}.md", directory / f"{name}.json"]
        files[0].write_text(self.markdown())
        record = {
            "data": self.data,
            "method": self.method,
            "machine": machine(),
            "outcomes": [outcome.record() for outcome in self.outcomes],
        }
        files[1].write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        return files

    def markdown(self) -> str:
        """The report as Markdown."""
        table = markdown_table([self._headers(), *map(self._cells, self.outcomes)])
        remarks = "\n".join(f"- {line}" for line in self._remarks())
        return f"# {self.data}\n\n{table}\n\n{remarks}\n"

    def _headers(self) -> list[str]:
        beside = ["scdl", self.theirs] if self.theirs is not None else []
        return ["what", "required", "measured", *beside, "verdict"]

    def _cells(self, outcome: Outcome) -> list[str]:
        cells = outcome.cells()
        return cells if self.theirs is not None else [*cells[:3], cells[-1]]

    def _remarks(self) -> list[str]:
        notes = [f"{outcome.what}: {outcome.note}." for outcome in self.outcomes if outcome.note]
        described = "; ".join(f"{key}: {value}" for key, value in machine().items())
        return [self.method, *self.remarks, *notes, described]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a Markdown table, the header first."""
    header, *others = rows
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *others]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def machine() -> dict[str, str]:
    """Describe hardware and versions, nothing that identifies the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    description = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GB",
        "system": platform.system(),
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            description[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            description[package] = "source tree" if package == "scdl-store" else "not installed"
    return description


def number(value: float) -> str:
    """Three significant digits, thousands separated."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def with_spread(spread: Spread | None, unit: str = "") -> str:
    """Median, and the smallest and largest repetition where there are several."""
    if spread is None:
        return "-"
    median = f"{number(spread.median)} {unit}".rstrip()
    if len(spread.samples) == 1:
        return median
    return f"{median} ({number(spread.low)} to {number(spread.high)})"


def _record(spread: Spread | None) -> dict[str, Any] | None:
    if spread is None:
        return None
    return {"median": spread.median, "samples": list(spread.samples)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
