"""Conversion of a directory of files: to an archive each, or to shuffled archives of all cells."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Unpack

from scdl.archive.gene_space import Duplicates, Genes, Missing
from scdl.collection.collection import SingleCellCollection
from scdl.collection.flattening import check_shards
from scdl.conversion.many.directory import convert_each
from scdl.conversion.many.drafts import drafts_beside
from scdl.conversion.many.options import DirectoryOptions, WorkersLike
from scdl.conversion.many.report import DirectoryReport, failure
from scdl.conversion.row_order import SOURCE_ROW, Shuffle
from scdl.conversion.writing import check_free
from scdl.errors import OptionError
from scdl.sources.gene_selection import gene_choice
from storage_backends import registry
from storage_backends.paths import Path, path_of


def convert_directory(
    directory: Path,
    dest: Path,
    *,
    workers: WorkersLike = None,
    use_processes: bool = True,
    resume: bool = False,
    replace: bool = False,
    dry_run: bool = False,
    skip_failed: bool = False,
    progress: bool = False,
    shuffle: int | None = None,
    row_column: str = SOURCE_ROW,
    shard_cells: int | None = None,
    label: str | None = None,
    genes: Genes | None = None,
    gene_column: str | None = None,
    missing: Missing = "error",
    duplicates: Duplicates = "error",
    **options: Unpack[DirectoryOptions],
) -> DirectoryReport:
    """Convert every file in a directory and its subdirectories, by default to an archive each.

    These are ``*.h5ad``, ``*.h5mu`` and ``*.loom`` files, outputs of 10x Genomics' Cell Ranger
    (``*.h5`` and ``matrix.mtx``, compressed or not), Parquet files with lists of genes, of which
    those of a directory become one archive, data sets of Hugging Face, TileDB-SOMA experiments, and
    files of formats of third parties.

    The largest files are converted first. If a file cannot be converted, the others still are, and
    their archives are kept.

    With `shuffle`, the cells of all files are written in one random order instead, to one archive
    or, with `shard_cells`, to several. The archives of the files exist until then, in a hidden
    directory beside `dest`.

    Parameters
    ----------
    directory
        Directory with the files; they are only read.
    dest
        Directory of the archives: ``sub/cells.h5ad`` becomes ``sub_cells.scdl``, or
        ``sub_cells.zarr`` with the backend ``zarr``. It is created if it does not exist. With
        `shuffle`: path of the new archive, or of the directory of shards.
    workers
        Number of files to convert at the same time; default: the number of cores. 1 converts in the
        calling process. Alternatively the client of a Dask cluster whose workers see both
        directories under the same paths.
    use_processes
        Whether workers are processes, which share the cores, or threads. A script that starts
        processes must be guarded by ``if __name__ == "__main__":``.
    resume
        Whether to skip files whose archive already exists.
    replace
        Whether to replace archives that exist, each of them atomically; not with `shard_cells`.
    dry_run
        Whether to write nothing: the reports say what is expected, as those of
        :func:`scdl.convert`. One process opens the files one by one.
    skip_failed
        Whether to return a report instead of raising an error if some files could not be converted
        and at least one could; the report lists the failed files. With `shuffle`, the cells of the
        others are written.
    progress
        Whether to show a progress bar over the bytes of all files.
    shuffle
        Seed of a random order of the cells of all files, which follow each other in the order of
        their sorted paths. See :meth:`scdl.SingleCellCollection.flatten`, also for `row_column`,
        `shard_cells`, `genes`, `gene_column`, `missing` and `duplicates`, which need `shuffle`.
        Default: an archive for each file.
    row_column, shard_cells
        Name of the column of obs with the row of each cell, and number of cells of a shard.
    label
        With `shuffle`: name of a categorical column to add to obs, with the name that the archive
        of each cell's file would have.
    genes, gene_column, missing, duplicates
        Genes to write.
    backend, neighbor_key : optional
        As for :func:`scdl.convert`, like all other options except `cells`. Files are not divided
        if `quality` is given.
    split_bytes : int, optional
        Larger files are divided by rows among the workers. Default: the share of one worker of all
        bytes, but at least 1 GiB. Matrices in CSC or COO form are never divided.

    Returns
    -------
    DirectoryReport

    Raises
    ------
    SourceNotFoundError
        There are no h5ad files.
    ArchiveExistsError
        An archive already exists and neither `resume` nor `replace` is True, or it is the archive
        of another file; what exists is not an archive; or the directory of shards exists.
    ArchiveWriteError
        The directory `dest` cannot be written.
    ConversionFailedError
        A file could not be converted; the attribute ``report`` lists all files.
    OptionError
        `workers` is not a positive integer or a Dask client; `cells` is given; `resume` is True
        together with `replace` or `shuffle`; or an option needs `shuffle`.
    GeneError, GeneListNotFoundError
        The files are shuffled, and cannot be mapped to one gene space.
    ClusterError
        The workers of the cluster write to another file system, or its client is closed.

    Examples
    --------
    >>> import os
    >>> report = scdl.convert_directory("files", "archives", workers=1)
    >>> sorted(os.listdir("archives"))
    ['cells.scdl', 'more.scdl']

    The cells of all files in one random order, in archives of at most eight cells:

    >>> _ = scdl.convert_directory("files", "mixed", workers=1, shuffle=42, shard_cells=8)
    >>> [member.n_obs for member in scdl.open("mixed").fname_to_mmap.values()]
    [8, 4]
    """
    work: dict[str, Any] = {
        "workers": workers,
        "use_processes": use_processes,
        "dry_run": dry_run,
        "skip_failed": skip_failed,
        "progress": progress,
    }
    policies = {"gene_column": gene_column, "missing": missing, "duplicates": duplicates}
    # Wrong options are errors before anything is converted.
    gene_choice(genes, policies)
    order = Shuffle.of(shuffle, row_column)
    if order is None:
        if label is not None or genes is not None or shard_cells is not None:
            raise OptionError(
                "label=, genes= and shard_cells= are about the shuffled cells of all files; pass "
                "shuffle=, the seed, too"
            )
        work |= {"resume": resume, "replace": replace}
        return convert_each(directory, dest, options, convert_directory, **work)
    if resume:
        raise OptionError(
            "resume=True keeps archives of files, and shuffle= writes none of them; pass only one"
        )
    how = {"genes": genes, **policies, "shuffle": shuffle, "row_column": row_column}
    how |= {"shard_cells": shard_cells, "replace": replace}
    dest = os.path.abspath(path_of(dest, "the path of a new archive"))
    if shard_cells is not None:
        check_shards(dest, order, shard_cells, replace=replace)
    check_free(dest, replace=replace)
    return _shuffled(directory, dest, options, work, how, label)


def _shuffled(
    directory: Path,
    dest: str,
    options: DirectoryOptions,
    work: Mapping[str, Any],
    how: Mapping[str, Any],
    label: str | None,
) -> DirectoryReport:
    """Convert files to archives that are shuffled together, with options of `flatten`."""
    started = time.perf_counter()
    backend = registry.for_target(dest, options.get("backend"))
    options = {**options, "backend": backend.name}
    storage: dict[str, Any] = {
        name: value for name, value in options.items() if name in backend.options
    }
    with ExitStack() as stack:
        if work["dry_run"]:
            place = f"{dest}-members"
        else:
            place = os.path.join(
                stack.enter_context(drafts_beside(os.path.dirname(dest))), "members"
            )
        # Failed files are reported here: the archives of the others do not stay.
        how_each = {**work, "skip_failed": True}
        report = convert_each(directory, place, options, convert_directory, **how_each)
        if report.failed and not (work["skip_failed"] or work["dry_run"]):
            error = failure(report, "nothing was written; skip_failed=True shuffles the others")
            error.report = dataclasses.replace(report, archives={}, reports={})
            raise error
        if report.archives:
            members = SingleCellCollection(list(report.archives.values()), label=label)
            members.flatten(dest, backend=backend.name, **storage, **how)
    return dataclasses.replace(
        report,
        path=dest,
        archives=dict.fromkeys(report.archives, dest),
        reports={
            path: dataclasses.replace(each, path=dest) for path, each in report.reports.items()
        },
        seconds=time.perf_counter() - started,
    )
