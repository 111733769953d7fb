"""Converting many files, in processes or on a Dask cluster."""

from __future__ import annotations

import dataclasses
import glob
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Unpack, cast

from tqdm import tqdm

from scdl.archive.schema import Info, distinct
from scdl.conversion.many.jobs import Job, divided, drafts_beside, publish, run, sweep
from scdl.conversion.many.parts import Whole
from scdl.conversion.many.report import DirectoryReport, Outcomes, failure, sentence
from scdl.conversion.many.workers import (
    DaskWorkers,
    Outcome,
    OwnWorker,
    ProcessWorkers,
    ThreadWorkers,
    Workers,
)
from scdl.conversion.options import (
    TARGET,
    ConversionReport,
    ConvertOptions,
    Settings,
    check_options,
)
from scdl.conversion.origins import origins_of
from scdl.errors import (
    ArchiveExistsError,
    ArchiveFormatError,
    BackendOptionError,
    OptionError,
    ScdlError,
    ScdlWarning,
    SourceError,
    SourceNotFoundError,
)
from storage_backends import other_formats, registry
from storage_backends.compute import threads
from storage_backends.errors import refused_write
from storage_backends.paths import Path, absolute, is_url, path_of

if TYPE_CHECKING:
    from distributed import Client

#: Of archives whose backend asks for no other.
_SUFFIX = ".scdl"
#: Bytes of a file that no default divides: it takes a few seconds, as does starting a process.
_LEAST_DIVIDED = 1 << 30


class DirectoryOptions(ConvertOptions, total=False):
    """Options of a conversion, and how its work is divided; every key may be left out."""

    backend: str | None
    neighbor_key: str | Sequence[str] | None
    split_bytes: int | None


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
    """Says that there are no h5ad files below a path, and what there is."""
    if not os.path.exists(directory):
        return other_formats.missing(directory)
    if os.path.isfile(directory):
        return f"{directory}: this is a file; convert it with scdl.convert, or name a directory"
    said = other_formats.described(directory)
    if said is None and registry.known(directory) is not None:
        said = f"{directory}: this is an archive already; convert it with scdl.convert"
    return said or (
        f"{directory}: there is no *.h5ad file here or below; name a directory that has some"
    )


def archive_names(files: Sequence[str], directory: Path) -> dict[str, str]:
    """A name for the archive of each file, which other files hardly change.

    It is the path below the directory, without the suffix and with ``_`` between its parts; where
    two are the same, those after the first one get a number.
    """
    root = os.path.abspath(directory)
    below = (os.path.splitext(os.path.relpath(path, root))[0] for path in files)
    names = distinct(path.replace(os.sep, "_") for path in below)
    return dict(zip(files, names, strict=True))


def convert_directory(
    directory: Path,
    dest: Path,
    *,
    workers: int | ProcessWorkers | Client | None = None,
    use_processes: bool = True,
    resume: bool = False,
    skip_failed: bool = False,
    progress: bool = False,
    **options: Unpack[DirectoryOptions],
) -> DirectoryReport:
    """Convert every h5ad file below a directory to an archive of its own.

    The largest files come first. Where a file cannot be converted the others are, and their
    archives stay.

    Parameters
    ----------
    directory
        Where the files are; they are only read.
    dest
        Where the archives go: ``sub/cells.h5ad`` becomes ``sub_cells.scdl``, or ``.zarr`` with the
        backend ``zarr``. It is made where it does not exist.
    workers
        How many files are converted at the same time; default: as many as there are cores. 1 starts
        no process, and converts in this one. Or processes that have begun; or the client of a Dask
        cluster, whose workers see both directories under the same paths.
    use_processes
        Whether they are processes, which share the cores; otherwise threads. A script that starts
        processes is guarded by ``if __name__ == "__main__":``.
    resume
        Whether to leave out files whose archive stands there already.
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
        An archive stands there already, without `resume`; or what stands there is another file's.
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
    settings, split_bytes = _settings(options, convert_directory)
    backend = registry.for_target(dest, settings.backend)
    files = h5ad_files(directory)
    other_formats.check_target(dest, backend.suffix)
    dest = _directory(dest)
    # Their names end as the backend has it, whatever a name of a file looks like.
    settings, suffix = (
        dataclasses.replace(settings, backend=backend.name),
        backend.suffix or _SUFFIX,
    )
    names = archive_names(files, directory)
    targets = {path: os.path.join(dest, name + suffix) for path, name in names.items()}
    present = {path: target for path, target in targets.items() if os.path.lexists(target)}
    for path, target in present.items():
        _check_present(path, os.path.relpath(path, directory), target, resume=resume)
    todo = {path: target for path, target in targets.items() if path not in present}
    report = convert_files(
        directory,
        todo,
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
    workers: int | ProcessWorkers | Client | None,
    use_processes: bool,
    progress: bool = False,
    split_bytes: int | None = None,
) -> DirectoryReport:
    """Convert files to an archive each, the largest first; those that fail are in the report.

    Parameters
    ----------
    directory
        Where the files are; archives remember them below it.
    targets
        Of each h5ad file where its archive goes, in the directory `dest`; nothing is there yet.
    settings
        Of the conversions.
    dest, workers, use_processes, progress, split_bytes
        As for :func:`convert_directory`.
    """
    started = time.perf_counter()
    size, outcomes = _size(workers), Outcomes()
    with ExitStack() as stack:
        # Removed when nobody writes there any more.
        drafts = stack.enter_context(drafts_beside(dest))
        jobs = [
            _job((path,), [_as_given(path, directory)], target, drafts, settings)
            for path, target in targets.items()
        ]
        nbytes = sum(job.nbytes for job in jobs)
        jobs = _divided(jobs, split_bytes or max(nbytes / size, _LEAST_DIVIDED), outcomes)
        crew = stack.enter_context(_workers(workers, jobs, use_processes=use_processes))
        bar = tqdm(total=int(nbytes), unit="B", unit_scale=True, disable=not progress)
        for job, outcome in run(jobs, crew, stack.enter_context(bar)):
            outcomes.add(job, outcome)
    outcomes.warn()
    return DirectoryReport(
        dest,
        {path: target for path, target in targets.items() if path in outcomes.reports},
        outcomes.reports,
        outcomes.failed,
        time.perf_counter() - started,
    )


def convert_in_parts(
    sources: Path | Sequence[Path] | Mapping[str, Path],
    path: Path,
    *,
    label: str | None = None,
    keys: Sequence[str] | None = None,
    replace: bool = False,
    workers: int | ProcessWorkers | Client | None = None,
    use_processes: bool = True,
    progress: bool = False,
    **options: Unpack[DirectoryOptions],
) -> ConversionReport:
    """Convert h5ad files to one archive, as :func:`scdl.convert` does, but in several processes.

    Each process decodes, sorts and casts rows of the matrix into temporary files beside `path`,
    which take the space of the uncompressed matrix once more; in the end they are joined.

    Parameters
    ----------
    sources, path, label, keys, replace
        As for :func:`scdl.convert`; h5ad files only.
    workers, use_processes, progress, options
        As for :func:`convert_directory`; `split_bytes` is a worker's share of all bytes.

    Raises
    ------
    SourceNotFoundError, SourceError
        A source does not exist, or is no h5ad file.
    WorkerDiedError
        A process ended in the middle of its work.
    ScdlError
        As :func:`scdl.convert`.
    """
    settings, split_bytes = _settings(options, convert_in_parts)
    target = absolute(path, TARGET)
    registry.check_target(target, replace=replace)
    if os.path.lexists(target) and not replace:
        # Of one that was killed when only its drafts were still to be removed.
        sweep(os.path.dirname(target))
        raise ArchiveExistsError(
            f"{target}: something exists here already; give replace=True to replace it, or choose "
            "another path"
        )
    other_formats.check_target(target, registry.for_target(target, settings.backend).suffix)
    labels, origins = origins_of(sources, label, keys, "the paths of h5ad files")
    settings = dataclasses.replace(settings, origins=origins)
    files = tuple(map(_file, labels))
    if not files:
        raise SourceError("there is nothing to convert: the list of files is empty")
    with ExitStack() as stack:
        drafts = stack.enter_context(drafts_beside(os.path.dirname(target)))
        job = _job(files, labels, target, drafts, settings)
        job = divided(job, split_bytes or job.nbytes / _size(workers))
        crew = stack.enter_context(_workers(workers, [job], use_processes=use_processes))
        bar = tqdm(total=int(job.nbytes), unit="B", unit_scale=True, disable=not progress)
        ((_, outcome),) = run([job], crew, stack.enter_context(bar))
        if outcome.error is not None:
            raise outcome.error
        report = publish(job, outcome.value, replace=replace)
    for text in outcome.warnings:
        warnings.warn(sentence(job, text), ScdlWarning, stacklevel=2)
    return report


def _settings(options: DirectoryOptions, call: Callable[..., Any]) -> tuple[Settings, int | None]:
    rest: dict[str, Any] = dict(options)
    backend, key = rest.pop("backend", None), rest.pop("neighbor_key", None)
    split_bytes = rest.pop("split_bytes", None)
    chosen = registry.backend(backend or registry.DEFAULT)
    check_options(rest, call, chosen, ("backend", "neighbor_key", "split_bytes"))
    return Settings(backend, key, cast(ConvertOptions, rest)), split_bytes


def _as_given(path: str, directory: Path) -> str:
    """The path of a file as somebody names it who names the directory so."""
    return os.path.join(os.fspath(directory), os.path.relpath(path, directory))


def _file(path: str) -> str:
    """The absolute path of an h5ad file."""
    if not os.path.exists(path) and not is_url(path):
        raise SourceNotFoundError(f"{path}: there is no such file")
    if not os.path.isfile(path):
        raise SourceError(f"{path}: only h5ad files are converted in parts; leave out workers")
    return os.path.abspath(path)


def _directory(dest: str) -> str:
    """The directory of the archives, which is there now."""
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
    """Refuse what stands where the archive of a file goes, unless it is that archive."""
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
    # The directory may be another one by now, and what is below it not.
    if label is not None and not f"/{label}".endswith(f"/{below}"):
        raise ArchiveExistsError(
            f"{target}: this is the archive of {label}, and not of {path}; choose another directory"
        )


def _size(workers: int | ProcessWorkers | Client | None) -> int:
    """Tasks that can run at the same time."""
    if workers is None:
        return threads.n_threads()
    if isinstance(workers, ProcessWorkers):
        return workers.n
    if hasattr(workers, "nthreads"):
        cores: dict[str, int] = workers.nthreads()
        return max(1, sum(cores.values()))
    if not isinstance(workers, int) or workers < 1:
        raise OptionError(
            f"workers must be at least 1, or a dask.distributed.Client, not {workers!r:.200}"
        )
    return workers


def _workers(
    workers: int | ProcessWorkers | Client | None, jobs: Sequence[Job], *, use_processes: bool
) -> Workers:
    if isinstance(workers, ProcessWorkers):
        return workers
    if workers is not None and not isinstance(workers, int):
        return DaskWorkers(workers)
    # Cores of those that had nothing to do would be lost to the others.
    n = max(1, min(_size(workers), sum(len(job.first()) for job in jobs)))
    if _size(workers) == 1:
        return OwnWorker()
    return ProcessWorkers(n) if use_processes else ThreadWorkers(n)


def _job(
    sources: tuple[str, ...], labels: Sequence[str], target: str, drafts: str, settings: Settings
) -> Job:
    nbytes = sum(os.path.getsize(path) for path in sources if os.path.exists(path))
    draft = os.path.join(drafts, os.path.basename(target))
    return Job(Whole(sources, tuple(labels), draft, settings, nbytes), target)


def _divided(jobs: Sequence[Job], most_bytes: float, outcomes: Outcomes) -> list[Job]:
    """The jobs, the large ones in parts; those that cannot even be opened have failed."""
    found = []
    for job in jobs:
        try:
            found.append(divided(job, most_bytes) if job.nbytes > most_bytes else job)
        except ScdlError as error:
            outcomes.add(job, Outcome(None, error))
    return found
