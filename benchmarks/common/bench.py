"""What all cases of a subject share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

from benchmarks.common.child import ChildRun
from benchmarks.common.measure import Spread
from benchmarks.common.report import Outcome, Report, at_most, run
from benchmarks.common.workspace import Workspace


@dataclass(kw_only=True)
class Bench:
    """Data and sizes of measurements; subjects add their own.

    Attributes
    ----------
    workspace
        The data.
    repeats
        Repetitions of each measurement.
    times
        How many times the cells the large data has; 0 leaves out cases that need it.
    seconds
        Least duration of a measured rate.
    """

    workspace: Workspace
    repeats: int = 5
    times: int = 0
    seconds: float = 1.0

    @classmethod
    def of(cls, options: argparse.Namespace, **more: Any) -> Self:
        """Follow the options of a command line, and set what the subject adds."""
        return cls(
            workspace=options.workspace,
            repeats=options.repeats,
            times=options.large,
            seconds=options.seconds,
            **more,
        )

    def report(
        self,
        options: argparse.Namespace,
        cases: Mapping[str, Callable[[Any], list[Outcome]]],
        theirs: str | None,
        method: str,
        remarks: Sequence[str] = (),
    ) -> Report:
        """Run the cases, print the report and write it; see `Report`."""
        outcomes = [*chain.from_iterable(run(cases, self, options.only))]
        method = method.format(repeats=self.repeats)
        report = Report(outcomes, str(self.workspace.spec), theirs, method, remarks)
        return report.publish(options.results, options.subject)


def memory_outcome(
    what: str, limit: float, ours: Sequence[ChildRun], theirs: Sequence[ChildRun], note: str = ""
) -> list[Outcome]:
    """Return the peak memory of conversions over that after a conversion of a few cells, in MB.

    The note has the peak over the memory after the imports. Empty where memory cannot be read.
    """
    our_peaks, their_peaks = (
        Spread.of_known(run.peak_megabytes for run in runs) for runs in (ours, theirs)
    )
    over_import = Spread.of_known(run.peak_over(run.report["imported"]) for run in ours)
    if our_peaks is None or over_import is None:
        return []
    note += f"scdl's peak over what it was before those few cells is {over_import.median:.0f} MB"
    return [Outcome(what, at_most(limit, "MB"), our_peaks, our_peaks, their_peaks, "MB", note)]
