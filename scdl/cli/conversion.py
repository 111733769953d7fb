"""``scdl convert``."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from scdl.cli.output import Json, Overwrite, Quiet, Verbose, show
from scdl.errors import ConversionFailedError
from storage_backends.paths import path_of

#: Exit code if some files could not be converted, with --skip-failed.
_SOME_FAILED = 3

Backend = Annotated[
    str | None,
    typer.Option(help="Storage backend. [default: zarr if DEST ends in .zarr, else memmap]"),
]
Compression = Annotated[
    str | None,
    typer.Option(help="Compression of the zarr backend: fast, balanced, archive or portable."),
]
Shuffle = Annotated[
    int | None,
    typer.Option(
        metavar="SEED",
        help="Write the cells in a random order, a function of this number. Their rows in the "
        "sources become a column of obs.",
    ),
]
RowColumn = Annotated[
    str | None, typer.Option(help="Name of that column, with --shuffle. [default: source_row]")
]


def convert(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SRC...",
            help="AnnData (h5ad, zarr), MuData (h5mu, zarr), Loom, TileDB-SOMA, outputs of 10x "
            "Cell Ranger (h5, matrix.mtx), Parquet, data sets of Hugging Face or archives, or a "
            "single directory of such files.",
        ),
    ] = None,
    dest: Annotated[
        str | None,
        typer.Argument(
            metavar="DEST",
            help="Path of the new archive; a name that ends in .zarr selects the zarr backend. "
            "For a directory of h5ad files: the directory of the new archives.",
        ),
    ] = None,
    backend: Backend = None,
    compression: Compression = None,
    only_matrix: Annotated[
        bool, typer.Option("--only-matrix", help="Leave out elements that training does not need.")
    ] = False,
    matrix: Annotated[
        str | None,
        typer.Option(
            help="Matrix to convert: X, raw/X or layers/<key>. [default: raw/X if present, else X]"
        ),
    ] = None,
    genome: Annotated[
        str | None, typer.Option(help="Of an output of Cell Ranger: genome whose genes to convert.")
    ] = None,
    feature_type: Annotated[
        list[str] | None,
        typer.Option(
            help="Of an output of Cell Ranger: type of features to convert, or all; may be "
            "repeated. [default: Gene Expression]"
        ),
    ] = None,
    obs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Table (csv, tsv, txt, parquet) whose columns to add to obs; its first column has "
            "the names of cells.",
        ),
    ] = None,
    var: Annotated[
        str | None, typer.Option(metavar="FILE", help="The same for genes and var.")
    ] = None,
    modality: Annotated[
        str | None,
        typer.Option(help="Of MuData: modality to convert. [default: the only one]"),
    ] = None,
    obs_names: Annotated[
        str | None,
        typer.Option(
            help="Of Loom, Parquet or a data set of Hugging Face: attribute or column with the "
            "names of cells. [default: CellID, or the index of pandas, else numbers]"
        ),
    ] = None,
    var_names: Annotated[
        str | None,
        typer.Option(
            help="Of Loom: attribute with the names of genes; of a vocabulary: its column with "
            "them. [default: Gene; the first column of text]"
        ),
    ] = None,
    measurement: Annotated[
        str | None,
        typer.Option(
            help="Of a TileDB-SOMA experiment: measurement to convert. [default: the only one, or "
            "RNA]"
        ),
    ] = None,
    obs_query: Annotated[
        str | None,
        typer.Option(help="Of a TileDB-SOMA experiment: filter of cells, as tiledbsoma takes it."),
    ] = None,
    gene_ids: Annotated[
        str | None,
        typer.Option(
            help="Of Parquet or a data set of Hugging Face: column with the lists of genes. "
            "[default: the only possible one]"
        ),
    ] = None,
    gene_values: Annotated[
        str | None, typer.Option(help="The same: column with the lists of their values.")
    ] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The same: the gene of each id; a gene in each line, a table (CSV, TSV, Parquet, "
            "JSON), or a JSON object of ids by gene.",
        ),
    ] = None,
    vocabulary_ids: Annotated[
        str | None,
        typer.Option(
            help="Column of that table with the ids. [default: the only one of integers, else "
            "positions from 0]"
        ),
    ] = None,
    unknown_genes: Annotated[
        str | None,
        typer.Option(help="Ids that are not in that table: error, or drop. [default: error]"),
    ] = None,
    obsm: Annotated[
        list[str] | None,
        typer.Option(help="Key of obsm whose dense vectors to convert; may be repeated."),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=MATRIX]",
            help="Further matrix to store beside the first, under NAME: the layer of that name, or "
            "MATRIX (X, raw/X or layers/<key>); may be repeated.",
        ),
    ] = None,
    neighbor_key: Annotated[
        list[str] | None, typer.Option(help="Key of obsp whose graph to convert; may be repeated.")
    ] = None,
    data_dtype: Annotated[
        str | None,
        typer.Option(
            help="Dtype of the stored values: uint8 to uint64, or float16 to float64. "
            "[default: that of the source if all elements are kept, else float32]"
        ),
    ] = None,
    data_dtype_tolerance: Annotated[
        float, typer.Option(help="Largest rounding error that is accepted without a warning.")
    ] = 1e-8,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of worker processes. [default: one per core for a directory, else 1]",
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Address of the scheduler of a Dask cluster to use."),
    ] = None,
    split_bytes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Divide larger files of a directory among the workers. [default: the share of one "
            "worker, at least 1 GiB]",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="For a directory: skip files that have an archive already."),
    ] = False,
    skip_failed: Annotated[
        bool,
        typer.Option(
            "--skip-failed",
            help="For a directory: if only some files fail, report them and exit with code 3.",
        ),
    ] = False,
    label: Annotated[
        str | None,
        typer.Option(help="Name of a column of obs to add, with the source of each cell."),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a source in that column; repeat it for each source. [default: 0, 1, …]"
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="Convert only cells for which a condition on columns of obs is true, such as "
            "\"tissue == 'lung' and n_genes > 200\".",
        ),
    ] = None,
    cells: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Convert only the cells that a text file names, one per line."
        ),
    ] = None,
    genes_where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="Convert only genes for which a condition on columns of var is true.",
        ),
    ] = None,
    obs_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=NEW]", help="Column of obs to keep, or to rename; may be repeated."
        ),
    ] = None,
    var_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=NEW]", help="Column of var to keep, or to rename; may be repeated."
        ),
    ] = None,
    unique_names: Annotated[
        bool, typer.Option("--unique-names", help="Append numbers to repeated names of cells.")
    ] = False,
    quality: Annotated[
        bool,
        typer.Option("--quality", help="Add n_genes and n_counts of each cell to obs."),
    ] = False,
    quality_group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=REGEX",
            help="Add pct_NAME, too: the percent of the counts in genes whose names match, such as "
            "mt=^MT-; may be repeated.",
        ),
    ] = None,
    shuffle: Shuffle = None,
    row_column: RowColumn = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Write nothing: tell what would be taken, how large it would be and how long it "
            "would take, estimated from a sample of cells.",
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert AnnData files and archives to one archive.

    The cells of several sources are concatenated. For a directory, every *.h5ad file in it and its
    subdirectories is converted to a separate archive. Sources are read in blocks of rows, so memory
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
            if label or key:
                raise typer.BadParameter(
                    "--label and --key apply only to sources that become one archive; after the "
                    'conversion, scdl.open(path, label="sample") adds a column to obs with the '
                    "archive of each cell"
                )
            if shuffle is not None or row_column is not None:
                raise typer.BadParameter(
                    "--shuffle applies only to sources that become one archive; after the "
                    f"conversion, `scdl flatten {dest} DEST --shuffle SEED` shuffles the cells of "
                    "all archives"
                )
            options |= {"workers": started, "resume": resume, "skip_failed": skip_failed}
            options |= {"split_bytes": split_bytes, "replace": overwrite, "dry_run": dry_run}
            _convert_directory(sources[0], dest, options, quiet=quiet, as_json=as_json)
            return
        if resume or skip_failed or split_bytes:
            raise typer.BadParameter(
                "--resume, --skip-failed and --split-bytes apply only to a directory of h5ad files"
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
    from scdl.conversion.many.directory import convert_directory

    try:
        report = convert_directory(source, dest, **options)
    except ConversionFailedError as error:
        # Archives of the other files are kept, so report them too.
        show(error.report, quiet=quiet, as_json=as_json)
        raise
    show(report, quiet=quiet, as_json=as_json)
    if report.failed:
        raise typer.Exit(_SOME_FAILED)
