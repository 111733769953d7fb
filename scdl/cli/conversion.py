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
            help="AnnData files (h5ad, zarr), outputs of 10x Cell Ranger (h5, matrix.mtx) or "
            "archives, or a single directory of such files.",
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
    obsm: Annotated[
        list[str] | None,
        typer.Option(help="Key of obsm whose dense vectors to convert; may be repeated."),
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
        "obsm": obsm or (),
        "neighbor_key": neighbor_key,
        "data_dtype": data_dtype,
        "data_dtype_tolerance": data_dtype_tolerance,
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
