"""Report of the conversion of many files, with its errors and warnings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scdl.conversion.many.jobs import Job
from scdl.conversion.reporting import ConversionReport
from scdl.errors import ConversionFailedError, ScdlError, ScdlWarning
from scdl.reports import Report

#: Number of failed files that an error lists.
_NAMED = 3


@dataclass(frozen=True)
class DirectoryReport(Report):
    """Report of the conversion of many files.

    Parameters
    ----------
    path
        Directory of the archives.
    archives
        Archive of each file, including archives that existed before.
    reports
        Report of each file that was converted.
    failed
        Error message of each file that could not be converted.
    seconds
        Duration in seconds, also of a dry run.
    dry_run
        Whether nothing was written, so that the reports are expectations.

    Examples
    --------
    >>> report = scdl.convert_directory("files", "dry", dry_run=True)
    >>> sorted(report.archives), len(report.reports), report.failed
    ([], 2, {})
    """

    path: str
    archives: Mapping[str, str]
    reports: Mapping[str, ConversionReport]
    failed: Mapping[str, str]
    seconds: float
    dry_run: bool = False

    def __str__(self) -> str:
        if self.dry_run:
            return self._expected()
        cells = sum(report.n_obs for report in self.reports.values())
        nbytes = sum(report.nbytes for report in self.reports.values())
        lines = [
            f"{self.path}: {len(self.reports):,} files converted, {cells:,} cells, "
            f"{nbytes / 1e6:,.1f} MB in {self.seconds:.1f} s"
        ]
        present = len(self.archives) - len(self.reports)
        if present:
            lines.append(f"there already: {present:,}")
        lines += [f"failed: {_with_path(path, why)}" for path, why in self.failed.items()]
        return "\n".join(lines)

    def _expected(self) -> str:
        """What a dry run says: each file, and their sums."""
        reports = self.reports.values()
        cells, nbytes = sum(r.n_obs for r in reports), sum(r.nbytes for r in reports)
        values, seconds = sum(r.nnz for r in reports), math.fsum(r.seconds for r in reports)
        duration = "an unknown time" if math.isnan(seconds) else f"about {seconds:.1f} s"
        lines = [f"{report}" for report in reports]
        lines += [f"would fail: {_with_path(path, why)}" for path, why in self.failed.items()]
        lines.append(
            f"{self.path}: dry run: {len(reports):,} files, {cells:,} cells, {values:,} values, "
            f"about {nbytes / 1e6:,.1f} MB in {duration} of one process; nothing was written"
        )
        return "\n".join(lines)

    @classmethod
    def of(cls, path: str, jobs: Sequence[Job], seconds: float) -> DirectoryReport:
        """Create the report of jobs with one file each; also emits the warnings of their tasks.

        :meta private:
        """
        reports, failed = {}, {}
        for job in jobs:
            (source,) = job.whole.sources
            assert job.outcome is not None
            value, error, texts = job.outcome
            if error is None:
                reports[source] = value
            else:
                known = isinstance(error, ScdlError | OSError)
                text = str(error) if known else f"{type(error).__name__}: {error}"
                failed[source] = one_line(job, text)
            for text in texts:
                warnings.warn(one_line(job, text), ScdlWarning, stacklevel=4)
        archives = {source: report.path for source, report in reports.items()}
        return cls(path, archives, reports, failed, seconds)


def one_line(job: Job, message: str) -> str:
    """Format a message as one line, with the draft path replaced by the target of the job."""
    return " ".join(message.replace(job.whole.path, job.target).split())


def _with_path(path: str, why: str) -> str:
    return why if why.startswith(path) else f"{path}: {why}"


def failure(report: DirectoryReport, others: str) -> ConversionFailedError:
    """Create the error for a report with failed files; `others` describes the other files."""
    named = [_with_path(path, why) for path, why in list(report.failed.items())[:_NAMED]]
    more = len(report.failed) - len(named)
    named += [f"and {more} more"] * (more > 0)
    named += [others] * bool(report.archives)
    error = ConversionFailedError(
        f"{len(report.failed)} of {len(report.failed) + len(report.archives)} files could not be "
        f"converted: {'; '.join(named)}"
    )
    error.report = report
    return error
