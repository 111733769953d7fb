"""What all rows of the table are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common.measure import Spread
from benchmarks.common.report import Outcome, at_least
from benchmarks.torture.archives import KINDS, write_archive, write_source
from benchmarks.common.workspace import Workspace


@dataclass(frozen=True)
class Setting:
    """Where to work, and how much.

    Attributes
    ----------
    place
        An empty directory, removed at the end.
    workspace
        Real cells, for what is measured in seconds.
    quick
        Whether to try a few of everything only: does it run?
    repeats
        Repetitions of each measurement of time.
    """

    place: Path
    workspace: Workspace
    quick: bool = False
    repeats: int = 5
    _written: dict[str, Path] = field(default_factory=dict, init=False, repr=False)

    def count(self, full: int) -> int:
        """How many to try of what is tried `full` times."""
        return max(full // 100, 20) if self.quick else full

    def archive(self, kind: str) -> Path:
        """A small archive of a kind, with every kind of file, to be damaged and mended."""
        if not self._written:
            source = write_source(self.place / "cells.h5ad", cells=60, genes=50)
            for name in KINDS:
                self._written[name] = write_archive(source, self.place / name, name)
        return self._written[kind]


#: Measures or counts something; gives rows of the table.
Row = Callable[[Setting], list[Outcome]]


def all_of(what: str, tried: int, survived: int, note: str = "") -> Outcome:
    """The row of something of which every single one has to be survived or found."""
    counted = f"{survived:,} of {tried:,}" + (f"; {note}" if note else "")
    return Outcome(what, at_least(100, "%"), Spread.of([100 * survived / tried]), note=counted)
