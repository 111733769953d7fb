"""``scdl convert``, ``scdl flatten`` and ``convert_h5ad_to_scdl``."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from scdl.errors import ConversionFailedError
from storage_backends.paths import path_of

#: Exit code if some files could not be converted, with --skip-failed.
_SOME_FAILED = 3

Backend = Annotated[
    str | None,
    typer.Option(help="Storage backend. [default: zarr where DEST ends so, else memmap]"),
]
Compression = Annotated[
    str | None, typer.Option(help="fast, balanced, archive or portable, for the zarr backend.")
]


def convert(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SRC...",
            help="AnnData files (h5ad, zarr), archives, or one directory with *.h5ad files.",
        ),
    ] = None,
    dest: Annotated[
        str | None,
        typer.Argument(
            metavar="DEST",
            help="Where the archive goes, which must not exist; of a directory, where all of them "
            "go. A name that ends in .zarr makes a compressed archive.",
        ),
    ] = None,
    backend: Backend = None,
    compression: Compression = None,
    only_matrix: Annotated[
        bool, typer.Option("--only-matrix", help="Leave out what training has no use for.")
    ] = False,
    matrix: Annotated[
        str | None,
        typer.Option(help="X, raw/X or layers/<key>. [default: raw/X where present, else X]"),
    ] = None,
    obsm: Annotated[
        list[str] | None, typer.Option(help="Dense vectors to carry over; may be repeated.")
    ] = None,
    neighbor_key: Annotated[
        list[str] | None,
        typer.Option(help="Key of obsp whose graph to carry over; may be repeated."),
    ] = None,
    data_dtype: Annotated[
        str | None,
        typer.Option(
            help="Type of the stored values: uint8 to uint64, float16 to float64. "
            "[default: the source's where all of it is kept, else float32]"
        ),
    ] = None,
    data_dtype_tolerance: Annotated[
        float, typer.Option(help="Rounding up to this is passed over without a warning.")
    ] = 1e-8,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes that share the work. [default: of a directory, one a core]"
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Scheduler of a Dask cluster that does the work."),
    ] = None,
    split_bytes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Size from which on a file is divided by rows. [default: a worker's share of all, "
            "at least 1 GiB]",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Of a directory: leave out what has been converted already."),
    ] = False,
    skip_failed: Annotated[
        bool,
        typer.Option(
            "--skip-failed",
            help="Of a directory: files that cannot be converted are no error, but exit code 3.",
        ),
    ] = False,
    label: Annotated[
        str | None,
        typer.Option(help="Column of obs to add, which says which source each cell comes from."),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="Name of a source in that column; once for each. [default: 0, 1, …]"),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the archive that is at DEST.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bar, no report.")
    ] = False,
) -> None:
    """Convert AnnData files and archives to one archive, whose cells follow one another.

    Of a directory, every *.h5ad file there and below becomes an archive of its own. Sources are
    read by blocks of rows, so that memory does not depend on their size. A conversion that fails
    leaves nothing behind.
    """
    if not sources or dest is None:
        # A single argument is parsed as DEST.
        alone = dest or "SRC"
        raise typer.BadParameter(
            f"where the archive goes is missing: `scdl convert {alone} DEST`", param_hint="DEST"
        )
    sources, dest = [path_of(source) for source in sources], path_of(dest)
    options: dict[str, Any] = {
        "backend": backend,
        "progress": not quiet and sys.stderr.isatty(),
        "compression": compression,
        "only_matrix": only_matrix,
        "matrix": matrix,
        "obsm": obsm or (),
        "neighbor_key": neighbor_key,
        "data_dtype": data_dtype,
        "data_dtype_tolerance": data_dtype_tolerance,
    }
    with _workers(() if resume else sources, workers, dask) as started:
        from scdl.collection.manifest import is_archive

        is_directory = len(sources) == 1 and os.path.isdir(sources[0])
        if is_directory and not is_archive(sources[0]):
            if label or key or replace:
                raise typer.BadParameter(
                    "--label, --key and --replace go with files that become one archive; of a "
                    'directory, scdl.open(path, label="sample") says which archive a cell is of'
                )
            options |= {"workers": started, "resume": resume, "skip_failed": skip_failed}
            options["split_bytes"] = split_bytes
            _convert_directory(sources[0], dest, options, quiet=quiet)
            return
        if resume or skip_failed or split_bytes:
            raise typer.BadParameter(
                "--resume, --skip-failed and --split-bytes go with one directory of h5ad files"
            )
        options |= {"label": label, "keys": key or None, "replace": replace}
        report = _convert_files(sources, dest, options, started)
    if not quiet:
        typer.echo(str(report))


@contextlib.contextmanager
def _workers(sources: Sequence[str], workers: int | None, dask: str | None) -> Iterator[Any]:
    """The workers of a conversion: starting processes, a cluster, a number or None."""
    if dask is not None:
        if workers is not None:
            raise typer.BadParameter(
                "--workers and --dask exclude each other: a cluster has its own"
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


def _convert_files(sources: list[str], dest: str, options: dict[str, Any], workers: Any) -> Any:
    if workers is None:
        from scdl.conversion.convert import convert as run

        return run(sources, dest, **options)
    from scdl.conversion.many.in_parts import convert_in_parts

    return convert_in_parts(sources, dest, workers=workers, **options)


def _convert_directory(source: str, dest: str, options: dict[str, Any], *, quiet: bool) -> None:
    from scdl.conversion.many.directory import convert_directory

    try:
        report = convert_directory(source, dest, **options)
    except ConversionFailedError as error:
        # Archives of the other files are kept, so report them too.
        if not quiet:
            typer.echo(str(error.report))
        raise
    if not quiet:
        typer.echo(str(report))
    if report.failed:
        raise typer.Exit(_SOME_FAILED)


def flatten(
    path: Annotated[
        str,
        typer.Argument(
            metavar="COLLECTION", help="A directory with a manifest, or one of archives."
        ),
    ],
    dest: Annotated[
        str, typer.Argument(metavar="DEST", help="Where the archive goes; must not exist.")
    ],
    backend: Backend = None,
    compression: Compression = None,
    cell_names: Annotated[
        str,
        typer.Option(
            metavar="keep|unique|prefix",
            help="Names of cells: as they are, as they are but each once, or with the name of "
            "their archive in front.",
        ),
    ] = "keep",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the archive that is at DEST.")
    ] = False,
    genes: Annotated[
        str | None,
        typer.Option(
            help="Write one gene space: union, intersection, or a file with one gene a line."
        ),
    ] = None,
    gene_column: Annotated[
        str | None, typer.Option(help="Column of var with the ids of genes. [default: names]")
    ] = None,
    missing: Annotated[
        str, typer.Option(metavar="error|zero", help="What genes are that an archive lacks.")
    ] = "error",
    duplicates: Annotated[
        str,
        typer.Option(metavar="error|sum|first", help="What several genes of one id are."),
    ] = "error",
    destroy_on_copy: Annotated[
        bool,
        typer.Option(
            "--destroy-on-copy",
            help="Remove the archives, after the new one was compared with all that they have.",
        ),
    ] = False,
) -> None:
    """Write all archives of a collection as one, in bounded memory."""
    from scdl.collection.collection import SingleCellCollection
    from scdl.collection.paths import is_collection
    from scdl.errors import ArchiveNotFoundError, CollectionError
    from storage_backends import registry

    path = path_of(path)
    if not os.path.lexists(path):
        raise ArchiveNotFoundError(f"{path}: there is no directory here; name a collection")
    if not is_collection(path):
        registry.detect(path)
        raise CollectionError(
            f"{path}: this is an archive, not a collection; `scdl convert {path} {dest}` copies it"
        )
    options: dict[str, Any] = {
        "backend": backend,
        "cell_names": cell_names,
        "genes": genes,
        "gene_column": gene_column,
        "missing": missing,
        "duplicates": duplicates,
        "replace": replace,
    }
    if compression is not None:
        options["compression"] = compression
    SingleCellCollection(path).flatten(dest, destroy_on_copy, **options)


documented = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


@documented.command()
def _convert_h5ad_to_scdl(
    data_path: Annotated[str, typer.Option(help="Directory to search for *.h5ad, or a file.")],
    save_path: Annotated[str, typer.Option(help="Where the archive goes; must not exist.")],
    num_workers: Annotated[
        int, typer.Option(min=1, help="Threads that decompress, or processes.")
    ] = 4,
    use_mp: Annotated[
        bool, typer.Option("--use-mp", help="Read in processes, which takes twice the space.")
    ] = False,
    data_dtype: Annotated[str, typer.Option(help="Type of the stored values.")] = "float32",
    paginated_load_cutoff: Annotated[
        int, typer.Option(help="Accepted, and without effect: every file is read in blocks.")
    ] = 10_000,
    load_block_row_size: Annotated[int, typer.Option(help="Most rows read at once.")] = 1_000_000,
    use_x_not_raw: Annotated[
        bool, typer.Option("--use-X-not-raw", help="Take X also where a file has raw.")
    ] = False,
) -> None:
    """Convert all AnnData files below a directory to one archive."""
    from scdl.conversion.many.directory import h5ad_files
    from storage_backends.compute import threads

    data_path = path_of(data_path)
    files = [data_path] if os.path.isfile(data_path) else h5ad_files(data_path)
    options = {
        "progress": sys.stderr.isatty(),
        "matrix": "X" if use_x_not_raw else None,
        "data_dtype": data_dtype,
        "block_rows": load_block_row_size,
    }
    if not use_mp:
        threads.limit(num_workers)
    report = _convert_files(files, save_path, options, num_workers if use_mp else None)
    typer.echo(str(report))
