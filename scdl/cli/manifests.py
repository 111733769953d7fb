"""``scdl manifest``."""

from __future__ import annotations

from typing import Annotated

import typer

from scdl.cli.output import Json, Quiet, Verbose, show
from storage_backends.paths import path_of


def manifest(
    path: Annotated[str, typer.Argument(metavar="COLLECTION", help="A directory of archives.")],
    obs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Keep this column of obs beside the manifest, so that loaders need not read it "
            "from every archive; may be repeated. [default: the columns that are kept already]",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write the manifest of a collection, with which it opens at once."""
    from scdl.collection.collection import SingleCellCollection
    from scdl.collection.paths import is_collection
    from scdl.errors import CollectionError
    from scdl.inspection.description import summary_of

    path = path_of(path)
    if not is_collection(path):
        raise CollectionError(f"{path}: this is not a directory of archives; pass a collection")
    SingleCellCollection(path).save_manifest(obs=obs or None)
    show(summary_of(path), quiet=quiet, as_json=as_json)
