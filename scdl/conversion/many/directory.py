"""Conversion of a directory of h5ad files to a directory of archives."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from scdl.archive.schema import Info, unique_names
from scdl.conversion.many.drafts import drafts_beside
from scdl.conversion.many.jobs import Job, run
from scdl.conversion.many.options import DirectoryOptions, WorkersLike, n_workers, settings_of
from scdl.conversion.many.plans import plan_files
from scdl.conversion.many.report import DirectoryReport, failure
from scdl.conversion.many.worker_process import Outcome
from scdl.conversion.options import Settings
from scdl.errors import (
    ArchiveExistsError,
    ArchiveFormatError,
    BackendOptionError,
    OptionError,
    ScdlError,
    SourceNotFoundError,
)
from scdl.sources.formats import SourceFormat, files_below
from storage_backends import other_formats, registry
from storage_backends.errors import refused_write
from storage_backends.paths import Path, is_url, path_of

#: Suffix of archives whose backend does not define one.
_SUFFIX = ".scdl"
#: Smaller files are not divided by default: converting them takes as long as starting a process.
_LEAST_DIVIDED = 1 << 30
#: What the name of an archive leaves out of the name of its file.
_ENDING = re.compile(r"[/_.-]?matrix\.mtx(\.\w+)?$|(?<=[^/])\.[^./]*$")


def source_files(directory: Path, kinds: Iterable[SourceFormat] | None = None) -> list[str]:
    """Sorted absolute paths of all files to convert in a directory and its subdirectories.

    Parameters
    ----------
    kinds
        The formats to find; None: all.

    Raises
    ------
    SourceNotFoundError
        There are no such files, or the directory does not exist.
    """
    directory = path_of(directory, "the path of a directory with h5ad files")
    files = files_below(os.path.abspath(directory), kinds)
    if not files:
        raise SourceNotFoundError(_no_files(directory))
    return files


def _no_files(directory: str) -> str:
    """Message that a directory has no h5ad files, with what was found instead."""
    if not os.path.exists(directory):
        return other_formats.missing(directory)
    if os.path.isfile(directory):
        return f"{directory}: this is a file; convert it with scdl.convert, or pass a directory"
    described = other_formats.described(directory)
    if described is None and registry.known(directory) is not None:
        described = f"{directory}: this is an archive already; convert it with scdl.convert"
    return described or (
        f"{directory}: there is no *.h5ad file, nor another known one, in this directory or "
        "its subdirectories; pass a directory with such files"
    )


def archive_names(files: Sequence[str], directory: Path) -> dict[str, str]:
    """Names for the archives of files.

    A name is the path relative to the directory, without the suffix and with ``_`` as separator;
    that of ``sample/matrix.mtx.gz`` is ``sample``. Repeated names, except the first, get a number.
    """
    root = os.path.abspath(directory)
    if [*files] == [root]:
        # The directory is one source.
        return {root: os.path.basename(root) or "cells"}
    below = (_ENDING.sub("", os.path.relpath(path, root)) or "matrix" for path in files)
    names = unique_names(path.replace(os.sep, "_") for path in below)
    return dict(zip(files, names, strict=True))


def convert_each(
    directory: Path,
    dest: Path,
    options: DirectoryOptions,
    call: Callable[..., Any],
    *,
    workers: WorkersLike = None,
    use_processes: bool = True,
    resume: bool = False,
    replace: bool = False,
    dry_run: bool = False,
    skip_failed: bool = False,
    progress: bool = False,
) -> DirectoryReport:
    """Convert every file in a directory and its subdirectories to a separate archive.

    Parameters and errors are those of :func:`scdl.convert_directory`, which has the other `options`
    as keywords; `call` is the public function, whose keywords a message lists.
    """
    started = time.perf_counter()
    directory = path_of(directory, "the path of a directory with h5ad files")
    dest = path_of(dest, "the path of a directory for the archives")
    if resume and replace:
        raise OptionError(
            "resume=True keeps archives that exist, and replace=True replaces them; pass only one"
        )
    settings, split_bytes = settings_of(options, call)
    if settings.options.get("cells") is not None:
        raise OptionError(
            "cells= is about sources that become one archive; choose cells of each file with where="
        )
    backend = registry.for_target(dest, settings.backend)
    files = source_files(directory)
    other_formats.check_target(dest, backend.suffix)
    if is_url(dest):
        raise BackendOptionError(
            f"{dest}: archives cannot be written to a URL, where they would not appear "
            "atomically; convert to a local directory and upload the archives"
        )
    dest = os.path.abspath(dest)
    registry.check_place(os.path.join(dest, "archive"))
    if not dry_run:
        n_workers(workers)  # raises an error before the directory exists
        with refused_write(dest):
            os.makedirs(dest, exist_ok=True)
    # Use one backend for all archives, even if the name of a file has the suffix of another one.
    settings = dataclasses.replace(settings, backend=backend.name)
    targets = {
        path: os.path.join(dest, name + (backend.suffix or _SUFFIX))
        for path, name in archive_names(files, directory).items()
    }
    there = {path: target for path, target in targets.items() if os.path.lexists(target)}
    for path, target in there.items():
        if replace:
            registry.check_target(target, replace=True)
        else:
            _check_present(path, os.path.relpath(path, directory), target, resume=resume)
    present = {} if replace else there
    absent = {path: target for path, target in targets.items() if path not in present}
    if dry_run:
        return plan_files(absent, dest, settings)
    report = convert_files(
        directory,
        absent,
        dest,
        settings,
        workers=workers,
        use_processes=use_processes,
        progress=progress,
        split_bytes=split_bytes,
        replace=replace,
    )
    complete = {**present, **report.archives}
    report = dataclasses.replace(
        report,
        archives={path: target for path, target in targets.items() if path in complete},
        seconds=time.perf_counter() - started,
    )
    if report.failed and not (skip_failed and report.archives):
        raise failure(report, "the others were; pass resume=True to convert only the missing ones")
    return report


def convert_files(
    directory: Path,
    targets: Mapping[str, str],
    dest: str,
    settings: Settings,
    *,
    workers: WorkersLike,
    use_processes: bool,
    progress: bool = False,
    split_bytes: int | None = None,
    replace: bool = False,
) -> DirectoryReport:
    """Convert each file to an archive, the largest first; the report includes failed files.

    Parameters
    ----------
    targets
        The path of the archive of each h5ad file, in `dest`.
    settings
        Settings of each conversion.
    directory, dest, workers, use_processes, progress, split_bytes, replace
        As for :func:`scdl.convert_directory`.
    """
    started = time.perf_counter()
    with drafts_beside(dest) as drafts:
        jobs = [
            # The label begins with `directory` as given.
            Job.of([path], [_label(directory, path)], target, drafts, settings, replace=replace)
            for path, target in targets.items()
        ]
        share = sum(job.nbytes for job in jobs) / n_workers(workers)
        most_bytes = split_bytes or max(share, _LEAST_DIVIDED)
        for job in jobs:
            if job.nbytes > most_bytes:
                try:
                    job.divide(most_bytes)
                except ScdlError as error:
                    job.outcome = Outcome(None, error)
        run(jobs, workers, use_processes=use_processes, progress=progress)
    return DirectoryReport.of(dest, jobs, time.perf_counter() - started)


def _label(directory: Path, path: str) -> str:
    """The path of a source below the directory as given."""
    below = os.path.relpath(path, directory)
    return os.fspath(directory) if below == os.curdir else os.path.join(directory, below)


def _check_present(path: str, below: str, target: str, *, resume: bool) -> None:
    """Raise ArchiveExistsError unless `resume` is set and `target` is the archive of `path`."""
    if not resume:
        raise ArchiveExistsError(
            f"{target}: something exists here already, but the archive of {path} would be written "
            "here; pass resume=True to skip files with an archive, or choose another directory"
        )
    try:
        with registry.open_archive(target) as store:
            label = Info.from_attrs(store.attrs, target).blocks[0].label
    except ArchiveFormatError as error:
        raise ArchiveExistsError(
            f"{target}: this is not a readable archive, so the conversion cannot resume ({error}); "
            "remove it first"
        ) from error
    # The directory may have been moved; compare the path relative to it.
    if label is not None and below != os.curdir and not f"/{label}".endswith(f"/{below}"):
        raise ArchiveExistsError(
            f"{target}: this is the archive of {label}, not of {path}; choose another directory"
        )
