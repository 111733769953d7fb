"""``scdl flatten``."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from scdl.cli.conversion_options import Backend, Compression, RowColumn, ShardCells, Shuffle
from scdl.cli.output import GeneColumn, Json, NewArchive, Overwrite, Quiet, Verbose, show
from storage_backends.paths import path_of


def flatten(
    path: Annotated[
        str,
        typer.Argument(
            metavar="COLLECTION", help="A directory of archives, or one with a manifest."
        ),
    ],
    dest: NewArchive,
    backend: Backend = None,
    compression: Compression = None,
    cell_names: Annotated[
        str,
        typer.Option(
            metavar="keep|unique|prefix",
            help="Keep the names of cells, keep them and require that they are unique, or prefix "
            "them with the names of their archives.",
        ),
    ] = "keep",
    overwrite: Overwrite = False,
    genes: Annotated[
        str | None,
        typer.Option(
            help="Write one gene space: union, intersection, or a file with one gene id per line."
        ),
    ] = None,
    gene_column: GeneColumn = None,
    missing: Annotated[
        str, typer.Option(metavar="error|zero", help="Treatment of genes that an archive lacks.")
    ] = "error",
    duplicates: Annotated[
        str, typer.Option(metavar="error|sum|first", help="Treatment of several genes with one id.")
    ] = "error",
    shuffle: Shuffle = None,
    row_column: RowColumn = None,
    shard_cells: ShardCells = None,
    destroy_on_copy: Annotated[
        bool,
        typer.Option(
            "--destroy-on-copy", help="Remove the archives after comparing the new one with them."
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write all archives of a collection as one archive."""
    from scdl.collection.collection import SingleCellCollection
    from scdl.collection.paths import is_collection
    from scdl.errors import ArchiveNotFoundError, CollectionError
    from scdl.inspection.description import summary_of
    from storage_backends import registry

    path = path_of(path)
    if not os.path.lexists(path):
        raise ArchiveNotFoundError(f"{path}: this directory does not exist; pass a collection")
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
        "replace": overwrite,
        "shuffle": shuffle,
        "shard_cells": shard_cells,
    }
    if row_column is not None:
        options["row_column"] = row_column
    if compression is not None:
        options["compression"] = compression
    SingleCellCollection(path).flatten(dest, destroy_on_copy, **options)
    show(summary_of(dest), quiet=quiet, as_json=as_json)
