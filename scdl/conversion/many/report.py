"""What became of each file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

from scdl.conversion.many.jobs import Job, publish
from scdl.conversion.many.workers import Outcome
from scdl.conversion.options import ConversionReport
from scdl.errors import ConversionFailedError, ScdlError, ScdlWarning

#: Failed files that an error names.
_NAMED = 3


@dataclass(frozen=True)
class DirectoryReport:
    """What became of many files.

    Parameters
    ----------
    path
        The directory of the archives.
    archives
        Of each file its archive, of all that stand now.
    reports
        Of each file that was converted, what was written.
    failed
        Of each file that was not, why.
    seconds
        Time it took.
    """

    path: str
    archives: Mapping[str, str]
    reports: Mapping[str, ConversionReport]
    failed: Mapping[str, str]
    seconds: float

    def __str__(self) -> str:
        cells = sum(report.n_obs for report in self.reports.values())
        nbytes = sum(report.nbytes for report in self.reports.values())
        lines = [
            f"{self.path}: {len(self.reports):,} files converted, {cells:,} cells, "
            f"{nbytes / 1e6:,.1f} MB in {self.seconds:.1f} s"
        ]
        present = len(self.archives) - len(self.reports)
        if present:
            lines.append(f"there already: {present:,}")
        lines += [f"failed: {_failure(path, why)}" for path, why in self.failed.items()]
        return "\n".join(lines)


@dataclass
class Outcomes:
    """What became of the files so far."""

    reports: dict[str, ConversionReport] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, job: Job, outcome: Outcome) -> None:
        """Publish what is complete, and remember the rest."""
        (source,) = job.whole.sources
        error = outcome.error
        if error is None:
            try:
                self.reports[source] = publish(job, outcome.value)
            except ScdlError as refused:
                error = refused
        if error is not None:
            known = isinstance(error, ScdlError | OSError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            self.failed[source] = sentence(job, text)
        self.warnings += [sentence(job, text) for text in outcome.warnings]

    def warn(self) -> None:
        """Give the warnings of the workers here, where the user sees them."""
        for text in self.warnings:
            warnings.warn(text, ScdlWarning, stacklevel=4)


def sentence(job: Job, what: object) -> str:
    """What an error or a warning says; nobody need know where drafts are."""
    return " ".join(str(what).replace(job.whole.path, job.target).split())


def _failure(path: str, why: str) -> str:
    return why if why.startswith(path) else f"{path}: {why}"


def failure(report: DirectoryReport, others: str) -> ConversionFailedError:
    """The error that names the files of a report that failed, and says what of the others."""
    named = [_failure(path, why) for path, why in list(report.failed.items())[:_NAMED]]
    more = len(report.failed) - len(named)
    named += [f"and {more} more"] * (more > 0)
    named += [others] * bool(report.archives)
    error = ConversionFailedError(
        f"{len(report.failed)} of {len(report.failed) + len(report.archives)} files could not be "
        f"converted: {'; '.join(named)}"
    )
    error.report = report
    return error
