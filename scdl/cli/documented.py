"""``convert_h5ad_to_scdl``, a command that BioNeMo-SCDL documents."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from scdl.cli.conversion import convert_files
from storage_backends.paths import path_of

command = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@command.command()
def _convert_h5ad_to_scdl(
    data_path: Annotated[str, typer.Option(help="An h5ad file, or a directory of h5ad files.")],
    save_path: Annotated[str, typer.Option(help="Path of the new archive; must not exist.")],
    num_workers: Annotated[
        int, typer.Option(min=1, help="Number of threads, or of processes with --use-mp.")
    ] = 4,
    use_mp: Annotated[
        bool, typer.Option("--use-mp", help="Use processes, which need twice the disk space.")
    ] = False,
    data_dtype: Annotated[str, typer.Option(help="Dtype of the stored values.")] = "float32",
    paginated_load_cutoff: Annotated[
        int, typer.Option(help="Accepted, but has no effect: every file is read in blocks.")
    ] = 10_000,
    load_block_row_size: Annotated[
        int, typer.Option(help="Largest number of rows read at a time.")
    ] = 1_000_000,
    use_x_not_raw: Annotated[
        bool, typer.Option("--use-X-not-raw", help="Convert X even if a file has raw/X.")
    ] = False,
) -> None:
    """Convert all AnnData files below a directory to one archive."""
    from scdl.conversion.many.directory import source_files
    from scdl.sources.formats import H5AD
    from storage_backends.compute import threads

    data_path = path_of(data_path)
    files = [data_path] if os.path.isfile(data_path) else source_files(data_path, [H5AD])
    options = {
        "progress": True,
        "matrix": "X" if use_x_not_raw else None,
        "data_dtype": data_dtype,
        "block_rows": load_block_row_size,
    }
    if not use_mp:
        threads.limit(num_workers)
    report = convert_files(files, save_path, options, num_workers if use_mp else None)
    typer.echo(str(report))
