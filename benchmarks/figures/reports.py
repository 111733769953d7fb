"""Medians and spreads of reports, small enough to be kept beside the figures drawn from them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from benchmarks.common.measure import Spread


class ReportError(ValueError):
    """A report that cannot be read, does not fit to another, or lacks what a figure needs."""


class Measured(NamedTuple):
    """A median with the smallest and the largest repetition."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> Self | None:
        """Summarise the samples of a record of a report, to four digits; None has none."""
        if record is None:
            return None
        spread = Spread.of(record["samples"])
        return cls(*(float(f"{value:.4g}") for value in (spread.median, spread.low, spread.high)))


@dataclass(frozen=True)
class Summary:
    """What the figures need of the reports of one subject.

    Attributes
    ----------
    days
        When it was measured.
    data, machine
        The cells, and hardware and versions.
    repeats
        Fewest repetitions of a figure that was measured more than once.
    ours, theirs
        Figures of scdl and of the library beside it, by what was measured.
    grids
        Figures over two settings: title of the table to row to column to figure.
    """

    days: list[str]
    data: str
    machine: dict[str, str]
    repeats: int
    ours: dict[str, Measured]
    theirs: dict[str, Measured]
    grids: dict[str, dict[str, dict[str, Measured]]]

    @classmethod
    def of(cls, path: Path) -> Self:
        """Summarise a report that a benchmark wrote: ``SUBJECT-DAY-TIME.json``."""
        day = path.stem.split("-")[-2]
        try:
            record = json.loads(path.read_text())
            outcomes, grids = record["outcomes"], record.get("grids", ())
            found = {
                side: {row["what"]: Measured.of(row[side]) for row in outcomes}
                for side in ("ours", "theirs")
            }
            tables = {grid["title"]: _table(grid) for grid in grids}
            counts = [len(row["measured"]["samples"]) for row in outcomes] + [
                len(cell["samples"])
                for grid in grids
                for row in grid["rows"].values()
                for cell in row
                if cell
            ]
            return cls(
                [f"{day[:4]}-{day[4:6]}-{day[6:]}"],
                record["data"],
                record["machine"],
                min((count for count in counts if count > 1), default=1),
                _known(found["ours"]),
                _known(found["theirs"]),
                tables,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ReportError(f"{path} is no report of a benchmark: {error!r}") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        record = json.loads(path.read_text())
        for side in ("ours", "theirs"):
            record[side] = {what: Measured(*values) for what, values in record[side].items()}
        record["grids"] = {
            title: {
                row: {column: Measured(*values) for column, values in cells.items()}
                for row, cells in rows.items()
            }
            for title, rows in record["grids"].items()
        }
        return cls(**record)

    def save(self, path: Path) -> None:
        """Write the summary as JSON, a figure on each line."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        numbers = re.compile(r"\[\s+([-\d.e,\s]+?)\s+\]")
        text = numbers.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
        path.write_text(text + "\n")

    def joined(self, later: Self) -> Self:
        """This summary, with what a later report of the same subject adds or measured again."""
        for name in ("data", "machine"):
            one, other = getattr(self, name), getattr(later, name)
            if one != other:
                raise ReportError(
                    f"reports of one subject differ in {name}: {one}, then {other}; "
                    "draw figures from those of one machine and one set of cells"
                )
        return type(self)(
            sorted({*self.days, *later.days}),
            self.data,
            self.machine,
            min(self.repeats, later.repeats),
            self.ours | later.ours,
            self.theirs | later.theirs,
            self.grids | later.grids,
        )

    def grid(self, title: str) -> dict[str, dict[str, Measured]]:
        """A table by row and column."""
        if title not in self.grids:
            raise ReportError(f"no report has the table {title!r}")
        return self.grids[title]


def _table(grid: Mapping[str, Any]) -> dict[str, dict[str, Measured]]:
    return {
        name: _known(dict(zip(grid["columns"], map(Measured.of, row), strict=True)))
        for name, row in grid["rows"].items()
    }


def _known(found: Mapping[str, Measured | None]) -> dict[str, Measured]:
    return {what: measured for what, measured in found.items() if measured is not None}


def summarise(paths: Iterable[Path]) -> dict[str, Summary]:
    """Summaries by subject; those of one subject are joined in the order of their names."""
    found: dict[str, Summary] = {}
    for path in sorted(paths, key=lambda path: path.name):
        subject, summary = path.name.partition("-")[0], Summary.of(path)
        found[subject] = found[subject].joined(summary) if subject in found else summary
    return found
