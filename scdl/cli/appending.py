"""``scdl append``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from scdl.cli.conversion_options import Key
from scdl.cli.output import Json, Quiet, Verbose, show
from storage_backends.paths import path_of


def append(
    archive: Annotated[
        str, typer.Argument(metavar="ARCHIVE", help="Path of the archive that gets the cells.")
    ],
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SRC...", help="What `scdl convert` converts: files or archives."),
    ],
    matrix: Annotated[
        str | None,
        typer.Option(help="Matrix of the sources: X, raw/X or layers/<key>, as for `convert`."),
    ] = None,
    map_genes: Annotated[
        bool,
        typer.Option(
            "--map-genes",
            help="Map genes by name to those of the archive and leave out others, instead of "
            "requiring the same genes.",
        ),
    ] = False,
    missing: Annotated[
        str, typer.Option(help="With --map-genes, of genes that a source lacks: error or zero.")
    ] = "error",
    label: Annotated[
        str | None,
        typer.Option(help="Name of a column of obs, new or not, for the source of each cell."),
    ] = None,
    key: Key = None,
    where: Annotated[
        str | None, typer.Option(metavar="CONDITION", help="Condition on obs of the cells to add.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Add cells to an archive, in the time that converting them takes.

    The archive changes atomically, and whoever has it open keeps the cells that it had.
    """
    from scdl.dataset.dataset import SingleCellDataset

    given = {"matrix": matrix, "where": where}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if map_genes:
        options |= {"genes": "archive", "missing": missing}
    elif missing != "error":
        raise typer.BadParameter("--missing has no effect without --map-genes")
    report = SingleCellDataset(path_of(archive)).append(
        [path_of(source) for source in sources],
        label=label,
        keys=key or None,
        progress=not quiet,
        **options,
    )
    show(report, quiet=quiet, as_json=as_json)
