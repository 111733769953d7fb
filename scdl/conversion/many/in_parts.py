"""Conversion of h5ad files to one archive with several workers."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Unpack

from scdl.conversion.many.drafts import drafts_beside, sweep
from scdl.conversion.many.jobs import Job, run
from scdl.conversion.many.options import DirectoryOptions, WorkersLike, n_workers, settings_of
from scdl.conversion.many.report import one_line
from scdl.conversion.options import TARGET
from scdl.conversion.origins import origins_of
from scdl.conversion.reporting import ConversionReport
from scdl.conversion.row_order import SOURCE_ROW, Shuffle
from scdl.errors import ScdlWarning, SourceError, SourceNotFoundError
from storage_backends import other_formats, registry
from storage_backends.directory import publication
from storage_backends.paths import Path, absolute, is_url, paths_of


def convert_in_parts(
    sources: Path | Sequence[Path] | Mapping[str, Path],
    path: Path,
    *,
    label: str | None = None,
    keys: Sequence[str] | None = None,
    shuffle: int | None = None,
    row_column: str = SOURCE_ROW,
    replace: bool = False,
    workers: WorkersLike = None,
    use_processes: bool = True,
    progress: bool = False,
    **options: Unpack[DirectoryOptions],
) -> ConversionReport:
    """Convert h5ad files to one archive like :func:`scdl.convert`, but in several processes.

    Each process decodes, sorts and casts rows of the matrix and writes them to temporary files next
    to `path`, which take additional space of the size of the uncompressed matrix. At the end they
    are joined.

    Parameters
    ----------
    sources, path, label, keys, shuffle, row_column, replace
        As for :func:`scdl.convert`; h5ad files only.
    workers, use_processes, progress, options
        As for :func:`convert_directory`; the default of `split_bytes` is the share of one worker of
        all bytes.

    Raises
    ------
    SourceNotFoundError, SourceError
        A source does not exist, or is not an h5ad file.
    WorkerDiedError
        A worker process died while running a task, and again when the task was repeated.
    ScdlError
        As :func:`scdl.convert`.

    Examples
    --------
    >>> report = scdl.convert_in_parts("cells.h5ad", "in-parts.scdl", workers=1)
    >>> report.n_obs
    6
    """
    settings, split_bytes = settings_of(options, convert_in_parts)
    target = absolute(path, TARGET)
    registry.check_target(target, replace=replace)
    directory = os.path.dirname(target)
    if os.path.lexists(target) and not replace:
        # A process that was killed after publishing the archive may have left drafts.
        sweep(directory)
    publication.require_absent(target, replace=replace)
    other_formats.check_target(target, registry.for_target(target, settings.backend).suffix)
    labels, origins = origins_of(
        sources, label, keys, lambda given: paths_of(given, "the paths of h5ad files")
    )
    order = Shuffle.of(shuffle, row_column)
    settings = dataclasses.replace(settings, origins=origins, shuffle=order)
    files = [*map(_h5ad_file, labels)]
    if not files:
        raise SourceError("there is nothing to convert: the list of files is empty")
    with drafts_beside(directory) as drafts:
        job = Job.of(files, labels, target, drafts, settings, replace=replace)
        job.divide(split_bytes or job.nbytes / n_workers(workers))
        run([job], workers, use_processes=use_processes, progress=progress)
    assert job.outcome is not None
    report: ConversionReport = job.outcome.value
    if job.outcome.error is not None:
        raise job.outcome.error
    for text in job.outcome.warnings:
        warnings.warn(one_line(job, text), ScdlWarning, stacklevel=2)
    return report


def _h5ad_file(path: str) -> str:
    """The absolute path of an h5ad file."""
    if not os.path.exists(path) and not is_url(path):
        raise SourceNotFoundError(f"{path}: there is no such file")
    if not os.path.isfile(path):
        raise SourceError(
            f"{path}: expected an h5ad file; convert other sources without several workers"
        )
    return os.path.abspath(path)
