"""``scdl export``, ``scdl head``, ``scdl info``, ``scdl report`` and ``scdl verify``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from scdl.cli import diagnostics
from scdl.cli.output import Archive, Json, Overwrite, Quiet, Verbose, show
from scdl.errors import ScdlError
from storage_backends.paths import path_of


def export(
    path: Archive,
    dest: Annotated[
        str, typer.Argument(metavar="OUT", help="Path of the output: FILE.h5ad or DIRECTORY.zarr.")
    ],
    gzip: Annotated[
        int,
        typer.Option(
            min=0, max=9, help="Compression level of matrices in an h5ad file; 0: uncompressed."
        ),
    ] = 4,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write an archive as an AnnData file.

    All elements are written, to an h5ad file or a Zarr store.
    """
    from scdl.collection.paths import is_collection
    from scdl.conversion.export import export as run
    from scdl.errors import SourceError
    from scdl.inspection.description import exported
    from storage_backends import registry

    path, dest = path_of(path), path_of(dest)
    if is_collection(path):
        raise SourceError(
            f"{path}: this is a collection; `scdl flatten {path} OUT` writes it as one archive, "
            "which can be exported if all members have the same genes"
        )
    with registry.open_archive(path) as store:
        run(store, dest, gzip=gzip or None, replace=overwrite)
    show(exported(path, dest), quiet=quiet, as_json=as_json)


def head(
    path: Annotated[str, typer.Argument(metavar="PATH", help="An archive, or a collection.")],
    n: Annotated[int, typer.Option("-n", min=0, help="Number of cells.")] = 5,
    genes: Annotated[int, typer.Option(min=0, help="Number of genes of each cell.")] = 10,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show the first cells: their values of obs, and their largest genes by name."""
    import scdl

    found = scdl.open(path_of(path)).head(n, genes)
    if as_json or quiet or not sys.stdout.isatty():
        show(found, quiet=quiet, as_json=as_json)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = f"the first {len(found.cells):,} of {found.n_obs:,} cells"
    table = Table("cell", "obs", "stored", "sum", "largest genes", title=title, show_lines=True)
    for row, cell in enumerate(found.cells):
        name = str(row) if cell.name is None else cell.name
        texts = (name, cell.obs_text, f"{cell.n_genes:,}", f"{cell.total:g}", cell.genes_text)
        table.add_row(*map(Text, texts))
    Console(highlight=False).print(table)


def info(
    path: Annotated[str, typer.Argument(metavar="PATH", help="An archive, or a collection.")],
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Describe an archive or a collection.

    Shows the numbers of cells and genes, types, sizes, tables and graphs.
    """
    if as_json:
        from scdl.inspection.description import describe

        show(describe(path_of(path)), quiet=quiet, as_json=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from scdl.cli.facts import facts

    table = Table("", "", show_header=False, box=None, pad_edge=False)
    table.columns[1].overflow = "fold"
    for key, value in facts(path_of(path)):
        table.add_row(key, Text(value))
    if not quiet:
        Console(highlight=False, width=None if sys.stdout.isatty() else 100).print(table)


def report(
    path: Annotated[str, typer.Argument(metavar="PATH", help="An archive, or a collection.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The page to write: FILE.html.")],
    cells: Annotated[
        int, typer.Option(min=1, help="Number of random cells to count distributions from.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of their choice.")] = 0,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Verify the structure.")
    ] = True,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare every byte with its checksum, too.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file that is at OUT.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a page that shows what an archive or a collection holds.

    One HTML file: contents and sizes, distributions of genes and sums per cell, values and columns
    of obs, graphs, and whether the archive is sound.
    """
    from scdl.inspection.survey import report as run

    found = run(
        path_of(path),
        out,
        cells=cells,
        seed=seed,
        verify=verify,
        deep=deep,
        replace=overwrite,
        progress=not quiet,
    )
    show(found, quiet=quiet, as_json=as_json)


def verify(
    path: Annotated[str, typer.Argument(metavar="PATH", help="An archive, or a collection.")],
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare every byte with its checksum.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="First repair what can be repaired unambiguously.")
    ] = False,
    add_checksums: Annotated[
        bool, typer.Option("--add-checksums", help="Add checksums to archives that have none.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Verify an archive or a collection.

    The structure is always checked. The exit code is 0 if everything is sound, 1 if something is
    damaged, and 2 if that is unknown because there are no checksums or files cannot be read.
    """
    from scdl.collection.verification import verify as run

    try:
        report = run(
            path,
            deep=deep,
            repair=repair,
            add_checksums=add_checksums,
            progress=not quiet,
        )
    except (ScdlError, OSError) as error:
        diagnostics.tell("error", str(error))
        diagnostics.tell_where()
        raise typer.Exit(2) from error
    show(report, quiet=quiet, as_json=as_json)
    raise typer.Exit(int(report.verdict))
