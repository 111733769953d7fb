"""``scdl cast``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from scdl.cli.output import Json, Overwrite, Quiet, Verbose, show
from storage_backends.paths import path_of

if TYPE_CHECKING:
    from scdl.dataset.dataset import SingleCellDataset

Archive = Annotated[str, typer.Argument(metavar="ARCHIVE", help="An archive.")]


def cast(
    path: Archive,
    dest: Annotated[
        str | None, typer.Argument(metavar="DEST", help="Path of the new archive.")
    ] = None,
    *,
    dtype: Annotated[
        str, typer.Option(help="Dtype of the values: uint8 to uint64, or float16 to float64.")
    ],
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace the archive itself, atomically.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Store the values of an archive with another dtype.

    A value that the dtype cannot represent is an error, and nothing is changed.
    """
    if in_place == (dest is not None):
        raise typer.BadParameter("give either DEST or --in-place", param_hint="DEST")
    if in_place and overwrite:
        raise typer.BadParameter("--overwrite replaces what is at DEST; leave it out")
    from scdl.cli.description import summary_of

    target = None if dest is None else path_of(dest)
    _open(path).cast_data_to_dtype(dtype, target, replace=overwrite)
    show(summary_of(target or path_of(path)), quiet=quiet, as_json=as_json)


def _open(path: str) -> SingleCellDataset:
    from scdl.dataset.dataset import SingleCellDataset

    return SingleCellDataset(path_of(path))
