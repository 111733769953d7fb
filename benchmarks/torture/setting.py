"""What all rows of the table need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common.bench import Bench
from benchmarks.common.measure import Spread
from benchmarks.common.report import Outcome, at_least
from benchmarks.torture.archives import KINDS, write_archive, write_source


@dataclass(kw_only=True)
class Setting(Bench):
    """A place to work, and how much to try.

    Attributes
    ----------
    place
        An empty directory, removed at the end.
    quick
        Try only a few of everything.
    """

    place: Path
    quick: bool = False
    _written: dict[str, Path] = field(default_factory=dict, init=False, repr=False)

    def count(self, full: int) -> int:
        """How many to try: `full`, or a few."""
        return max(full // 100, 20) if self.quick else full

    def archive(self, kind: str) -> Path:
        """A small archive of a kind, with every kind of file, to be damaged and repaired."""
        if not self._written:
            source = write_source(self.place / "cells.h5ad", cells=60, genes=50)
            for name in KINDS:
                self._written[name] = write_archive(source, self.place / name, name)
        return self._written[kind]


#: Measures or counts something; returns rows of the table.
Row = Callable[[Setting], list[Outcome]]


def all_of(what: str, tried: int, survived: int, note: str = "") -> Outcome:
    """The row of a count of which every one has to be survived or found."""
    counted = f"{survived:,} of {tried:,}" + (f"; {note}" if note else "")
    return Outcome(what, at_least(100, "%"), Spread.of([100 * survived / tried]), note=counted)
