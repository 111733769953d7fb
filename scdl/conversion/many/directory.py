"""Converting a directory of h5ad files to a directory of archives."""

from __future__ import annotations

import dataclasses
import glob
import os
import time
from collections.abc import Mapping, Sequence
from typing import Unpack

from scdl.archive.schema import Info, distinct
from scdl.conversion.many.drafts import drafts_beside
from scdl.conversion.many.jobs import Job, run
from scdl.conversion.many.options import (
    DirectoryOptions,
    WorkersLike,
    n_workers,
    settings_of,
)
from scdl.conversion.many.report import DirectoryReport, failure
from scdl.conversion.many.worker_process import Outcome
from scdl.conversion.options import Settings
from scdl.errors import (
    ArchiveExistsError,
    ArchiveFormatError,
    BackendOptionError,
    ScdlError,
    SourceNotFoundError,
)
from storage_backends import other_formats, registry
from storage_backends.errors import refused_write
from storage_backends.paths import Path, is_url, path_of

#: End of the names of archives whose backend asks for none.
_SUFFIX = ".scdl"
#: Files of fewer bytes are not divided by default: they take as long as starting a process does.
_LEAST_DIVIDED = 1 << 30


def h5ad_files(directory: Path) -> list[str]:
    """All ``*.h5ad`` files in a directory and below, by absolute path, in order.

    Raises
    ------
    SourceNotFoundError
        There is none, or no such directory.
    """
    directory = path_of(directory, "the path of a directory with h5ad files")
    root = os.path.abspath(directory)
    found = sorted(glob.glob(os.path.join(glob.escape(root), "**", "*.h5ad"), recursive=True))
    found = [path for path in found if os.path.isfile(path)]
    if not found:
        raise SourceNotFoundError(_no_files(directory))
    return found


def _no_files(directory: str) -> str:
    """The message that there are no h5ad files in a directory, and what is there instead."""
    if not os.path.exists(directory):
        return other_formats.missing(directory)
    if os.path.isfile(directory):
        return f"{directory}: this is a file; convert it with scdl.convert, or name a directory"
    described = other_formats.described(directory)
    if described is None and registry.known(directory) is not None:
        described = f"{directory}: this is an archive already; convert it with scdl.convert"
    return described or (
        f"{directory}: there is no *.h5ad file here or below; name a directory that has some"
    )


def archive_names(files: Sequence[str], directory: Path) -> dict[str, str]:
    """A name for the archive of each file; a file that is added later does not change the others.

    It is the path below the directory, without the suffix and with ``_`` between its parts. Of
    equal names, all but the first get a number.
    """
    root = os.path.abspath(directory)
    below = (os.path.splitext(os.path.relpath(path, root))[0] for path in files)
    names = distinct(path.replace(os.sep, "_") for path in below)
    return dict(zip(files, names, strict=True))


def convert_directory(
    directory: Path,
    dest: Path,
    *,
    workers: WorkersLike = None,
    use_processes: bool = True,
    resume: bool = False,
    skip_failed: bool = False,
    progress: bool = False,
    **options: Unpack[DirectoryOptions],
) -> DirectoryReport:
    """Convert every h5ad file in a directory and below to an archive of its own.

    The largest files come first. When a file cannot be converted, the others are, and their
    archives stay.

    Parameters
    ----------
    directory
        Where the files are; they are only read.
    dest
        Where the archives go: ``sub/cells.h5ad`` becomes ``sub_cells.scdl``, or ``.zarr`` with the
        backend ``zarr``. It is made if it does not exist.
    workers
        How many files are converted at the same time; default: as many as there are cores. 1 starts
        no process, and converts in this one. Or the client of a Dask cluster, whose workers see
        both directories under the same paths.
    use_processes
        Whether workers are processes, which share the cores, or threads. A script that starts
        processes is guarded by ``if __name__ == "__main__":``.
    resume
        Whether to leave out files whose archive is there already.
    skip_failed
        Whether to return even though files could not be converted, as long as one could; the
        report names them.
    progress
        Whether to show one bar over the bytes of all files.
    backend, neighbor_key : optional
        As for :func:`scdl.convert`, as are all options besides these.
    split_bytes : int, optional
        Size from which on a file is divided by rows among the workers. Default: a worker's share
        of all bytes, and at least 1 GiB. Matrices in CSC or COO form are never divided.

    Returns
    -------
    DirectoryReport

    Raises
    ------
    SourceNotFoundError
        There is no h5ad file.
    ArchiveExistsError
        An archive is there already, without `resume`; or it is the archive of another file.
    ArchiveWriteError
        The directory `dest` cannot be written.
    ConversionFailedError
        A file could not be converted; ``report`` has all.
    OptionError
        `workers` is not what it can be.
    ClusterError
        The workers of the cluster write to another file system.
    """
    started = time.perf_counter()
    directory = path_of(directory, "the path of a directory with h5ad files")
    dest = path_of(dest, "the directory where the archives go, as a path")
    settings, split_bytes = settings_of(options, convert_directory)
    backend = registry.for_target(dest, settings.backend)
    files = h5ad_files(directory)
    other_formats.check_target(dest, backend.suffix)
    dest = _made_directory(dest)
    # All archives have this backend, also if the name of a file asks for another one.
    settings = dataclasses.replace(settings, backend=backend.name)
    targets = {
        path: os.path.join(dest, name + (backend.suffix or _SUFFIX))
        for path, name in archive_names(files, directory).items()
    }
    present = {path: target for path, target in targets.items() if os.path.lexists(target)}
    for path, target in present.items():
        _check_present(path, os.path.relpath(path, directory), target, resume=resume)
    report = convert_files(
        directory,
        {path: target for path, target in targets.items() if path not in present},
        dest,
        settings,
        workers=workers,
        use_processes=use_processes,
        progress=progress,
        split_bytes=split_bytes,
    )
    made = {**present, **report.archives}
    report = dataclasses.replace(
        report,
        archives={path: target for path, target in targets.items() if path in made},
        seconds=time.perf_counter() - started,
    )
    if report.failed and not (skip_failed and report.archives):
        raise failure(report, "the others were, and resume converts what is missing")
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
) -> DirectoryReport:
    """Convert files to an archive each, the largest first; the report has those that failed.

    Parameters
    ----------
    targets
        Of each h5ad file the path of its archive, in the directory `dest`; nothing is there yet.
    settings
        Of each conversion.
    directory, dest, workers, use_processes, progress, split_bytes
        As for :func:`convert_directory`.
    """
    started = time.perf_counter()
    with drafts_beside(dest) as drafts:
        jobs = [
            Job.of([path], [_label(path, directory)], target, drafts, settings)
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


def _label(path: str, directory: Path) -> str:
    """The path of a file as archives remember it: below the directory as the caller named it."""
    return os.path.join(os.fspath(directory), os.path.relpath(path, directory))


def _made_directory(dest: str) -> str:
    """Make the directory of the archives; its absolute path."""
    if is_url(dest):
        raise BackendOptionError(
            f"{dest}: archives are not written to URLs, where nothing can appear whole; "
            "convert to a directory and copy the archives"
        )
    path = os.path.abspath(dest)
    registry.check_place(os.path.join(path, "archive"))
    with refused_write(path):
        os.makedirs(path, exist_ok=True)
    return path


def _check_present(path: str, below: str, target: str, *, resume: bool) -> None:
    """ArchiveExistsError, unless `target` is the archive of the file at `path`, and `resume`."""
    if not resume:
        raise ArchiveExistsError(
            f"{target}: something exists here already, where the archive of {path} goes; resume "
            "leaves out what has been converted, or choose another directory"
        )
    try:
        with registry.open_archive(target) as store:
            label = Info.from_attrs(store.attrs, target).blocks[0].label
    except ArchiveFormatError as error:
        raise ArchiveExistsError(
            f"{target}: what exists here is no archive that can be resumed from ({error}); remove "
            "it first"
        ) from error
    # The directory may have moved since; the path below it is the same.
    if label is not None and not f"/{label}".endswith(f"/{below}"):
        raise ArchiveExistsError(
            f"{target}: this is the archive of {label}, and not of {path}; choose another directory"
        )
