"""``scdl convert``."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from scdl.cli import conversion_options as opt
from scdl.cli.output import Json, Overwrite, Quiet, Verbose, show
from scdl.errors import ConversionFailedError
from storage_backends.paths import path_of

#: Exit code if some files could not be converted, with --skip-failed.
_SOME_FAILED = 3


def convert(
    sources: opt.Sources = None,
    dest: opt.Dest = None,
    backend: opt.Backend = None,
    compression: opt.Compression = None,
    only_matrix: opt.OnlyMatrix = False,
    matrix: opt.Matrix = None,
    genome: opt.Genome = None,
    feature_type: opt.FeatureType = None,
    obs: opt.Obs = None,
    var: opt.Var = None,
    modality: opt.Modality = None,
    obs_names: opt.ObsNames = None,
    var_names: opt.VarNames = None,
    measurement: opt.Measurement = None,
    obs_query: opt.ObsQuery = None,
    gene_ids: opt.GeneIds = None,
    gene_values: opt.GeneValues = None,
    vocabulary: opt.Vocabulary = None,
    vocabulary_ids: opt.VocabularyIds = None,
    unknown_genes: opt.UnknownGenes = None,
    obsm: opt.Obsm = None,
    layer: opt.Layer = None,
    neighbor_key: opt.NeighborKey = None,
    data_dtype: opt.DataDtype = None,
    data_dtype_tolerance: opt.DataDtypeTolerance = 1e-8,
    workers: opt.Workers = None,
    dask: opt.Dask = None,
    split_bytes: opt.SplitBytes = None,
    resume: opt.Resume = False,
    skip_failed: opt.SkipFailed = False,
    label: opt.Label = None,
    key: opt.Key = None,
    where: opt.Where = None,
    cells: opt.Cells = None,
    genes_where: opt.GenesWhere = None,
    obs_column: opt.ObsColumn = None,
    var_column: opt.VarColumn = None,
    unique_names: opt.UniqueNames = False,
    quality: opt.Quality = False,
    quality_group: opt.QualityGroup = None,
    shuffle: opt.Shuffle = None,
    row_column: opt.RowColumn = None,
    shard_cells: opt.ShardCells = None,
    overwrite: Overwrite = False,
    dry_run: opt.DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert AnnData, other formats of cells, and archives to one archive.

    The cells of several sources are concatenated. For a directory, every known file in it and its
    subdirectories is converted to a separate archive; with --shuffle, their cells are shuffled
    together. Sources are read in blocks of rows, so memory
    use does not depend on their size. A failed conversion leaves nothing behind.
    """
    if not sources or dest is None:
        # A single argument is parsed as DEST.
        raise typer.BadParameter(
            f"the path of the new archive is missing; use `scdl convert {dest or 'SRC'} DEST`",
            param_hint="DEST",
        )
    sources, dest = [path_of(source) for source in sources], path_of(dest)
    options: dict[str, Any] = {
        "backend": backend,
        "progress": not quiet,
        "compression": compression,
        "only_matrix": only_matrix,
        "matrix": matrix,
        "genome": genome,
        "feature_types": feature_type or None,
        "obs": obs,
        "var": var,
        "modality": modality,
        "measurement": measurement,
        "obs_query": obs_query,
        "obs_names": obs_names,
        "var_names": var_names,
        "gene_ids": gene_ids,
        "gene_values": gene_values,
        "vocabulary": vocabulary,
        "vocabulary_ids": vocabulary_ids,
        "unknown_genes": unknown_genes,
        "obsm": obsm or (),
        "layers": _layers(layer),
        "neighbor_key": neighbor_key,
        "data_dtype": data_dtype,
        "data_dtype_tolerance": data_dtype_tolerance,
        "where": where,
        "cells": cells,
        "genes_where": genes_where,
        "obs_columns": _renamed(obs_column),
        "var_columns": _renamed(var_column),
        "unique_names": unique_names,
        "quality": _groups(quality_group) or quality,
    }
    with _workers(() if resume or dry_run else sources, workers, dask) as started:
        from scdl.sources.formats import is_source

        is_directory = len(sources) == 1 and os.path.isdir(sources[0])
        if is_directory and not is_source(sources[0]):
            if key or (label and shuffle is None):
                raise typer.BadParameter(
                    "--label and --key apply only to sources that become one archive; after the "
                    'conversion, scdl.open(path, label="sample") adds a column to obs with the '
                    "archive of each cell"
                )
            options |= {"label": label, "shuffle": shuffle, "shard_cells": shard_cells}
            if row_column is not None:
                options["row_column"] = row_column
            options |= {"workers": started, "resume": resume, "skip_failed": skip_failed}
            options |= {"split_bytes": split_bytes, "replace": overwrite, "dry_run": dry_run}
            _convert_directory(sources[0], dest, options, quiet=quiet, as_json=as_json)
            return
        if resume or skip_failed or split_bytes or shard_cells:
            raise typer.BadParameter(
                "--resume, --skip-failed, --split-bytes and --shard-cells apply only to a "
                "directory of h5ad files"
            )
        options |= {"label": label, "keys": key or None, "shuffle": shuffle}
        options["replace"] = overwrite
        if row_column is not None:
            options["row_column"] = row_column
        if dry_run:
            # A plan needs no workers, and tells what the processes together would do.
            options["dry_run"], started = True, None
        report = convert_files(sources, dest, options, started)
    show(report, quiet=quiet, as_json=as_json)


def _renamed(columns: list[str] | None) -> dict[str, str] | None:
    """New names of columns by their names; None if all are kept."""
    if not columns:
        return None
    parts = [column.partition("=") for column in columns]
    return {name: new if equals else name for name, equals, new in parts}


def _groups(groups: list[str] | None) -> dict[str, str]:
    """Regular expressions of groups of genes by their names."""
    found = {}
    for group in groups or ():
        name, equals, pattern = group.partition("=")
        if not equals:
            raise typer.BadParameter(
                f"expected NAME=REGEX, such as mt=^MT-, found {group!r}",
                param_hint="--quality-group",
            )
        found[name] = pattern
    return found


def _layers(given: list[str] | None) -> dict[str, str] | None:
    """The values of --layer as the option `layers`."""
    pairs = (one.partition("=") for one in given or ())
    return {name: matrix or f"layers/{name}" for name, _, matrix in pairs} or None


@contextlib.contextmanager
def _workers(sources: Sequence[str], workers: int | None, dask: str | None) -> Iterator[Any]:
    """The workers of a conversion: starting processes, a cluster, a number or None."""
    if dask is not None:
        if workers is not None:
            raise typer.BadParameter(
                "--workers and --dask cannot be combined, since a cluster has its own workers"
            )
        from scdl.conversion.many.dask import connect

        with connect(dask) as client:
            yield client
        return
    from storage_backends.compute.threads import n_threads

    n = workers or n_threads()
    if n > 1 and _has_files(sources, n):
        from scdl.conversion.many.workers import ProcessWorkers

        with ProcessWorkers(n) as processes:
            # Worker processes import modules while this process does the same.
            processes.begin()
            yield processes
    else:
        yield workers


def _has_files(sources: Sequence[str], n: int) -> bool:
    """Whether `sources` is one directory with at least `n` h5ad files."""
    if len(sources) != 1 or not os.path.isdir(sources[0]):
        return False
    files = glob.iglob(os.path.join(glob.escape(sources[0]), "**", "*.h5ad"), recursive=True)
    return len(list(itertools.islice(files, n))) == n


def convert_files(sources: list[str], dest: str, options: dict[str, Any], workers: Any) -> Any:
    """Convert sources to one archive, in this process or by workers; returns the report."""
    if workers is None:
        from scdl.conversion.convert import convert as run

        return run(sources, dest, **options)
    from scdl.conversion.many.in_parts import convert_in_parts

    return convert_in_parts(sources, dest, workers=workers, **options)


def _convert_directory(
    source: str, dest: str, options: dict[str, Any], *, quiet: bool, as_json: bool
) -> None:
    from scdl.collection.directory import convert_directory

    try:
        report = convert_directory(source, dest, **options)
    except ConversionFailedError as error:
        # Archives of the other files are kept, so report them too.
        show(error.report, quiet=quiet, as_json=as_json)
        raise
    show(report, quiet=quiet, as_json=as_json)
    if report.failed:
        raise typer.Exit(_SOME_FAILED)
