"""``scdl cast``, ``scdl split`` and ``scdl subset``: parts and copies of an archive."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scdl.cli.conversion_options import Backend, Compression
from scdl.cli.output import (
    Archive,
    GeneColumn,
    Json,
    NewArchive,
    Overwrite,
    Quiet,
    Verbose,
    show,
)
from storage_backends.paths import path_of

if TYPE_CHECKING:
    from scdl.dataset.dataset import SingleCellDataset


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
    from scdl.inspection.description import summary_of

    target = None if dest is None else path_of(dest)
    _open(path).cast_data_to_dtype(dtype, target, replace=overwrite)
    show(summary_of(target or path_of(path)), quiet=quiet, as_json=as_json)


def subset(
    path: Archive,
    dest: NewArchive,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="Condition on columns of obs, such as \"cell_type == 'T' and n_genes > 500\".",
        ),
    ] = None,
    genes: Annotated[
        str | None, typer.Option(metavar="FILE", help="File with one gene id per line.")
    ] = None,
    gene_column: GeneColumn = None,
    backend: Backend = None,
    compression: Compression = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write some cells, and some genes, of an archive as a new archive."""
    if where is None and genes is None:
        raise typer.BadParameter("choose cells with --where, genes with --genes, or both")
    options: dict[str, Any] = {"where": where, "genes": genes, "gene_column": gene_column}
    options |= {"backend": backend, "compression": compression}
    options |= {"replace": overwrite, "progress": not quiet}
    report = _open(path).subset(path_of(dest), **options)
    show(report, quiet=quiet, as_json=as_json)


def split(
    path: Archive,
    dest: Annotated[str, typer.Argument(metavar="DEST_DIR", help="Directory of the new archives.")],
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of obs, or several. Alone: an archive for each value. With --fractions: "
            "each value is in one part only.",
        ),
    ] = None,
    fractions: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=SHARE,…", help="Share of each part, such as train=0.8,val=0.1,test=0.1."
        ),
    ] = None,
    stratify: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of obs, or several: each part gets its share of the cells of every value.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random split.")] = 0,
    where: Annotated[
        str | None,
        typer.Option(metavar="CONDITION", help="Split only cells for which this is true."),
    ] = None,
    backend: Backend = None,
    compression: Compression = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write the cells of an archive as several archives, by a column or at random."""
    if by is None and fractions is None:
        raise typer.BadParameter("give --by, --fractions, or both")
    import scdl

    shares = {} if fractions is None else _shares(fractions)
    data = _open(path)
    rows = None if where is None else data.where(where)
    names = by[0] if by and len(by) == 1 else by
    parts = scdl.split(
        data, shares, by=names or None, stratify=stratify or None, rows=rows, seed=seed
    )
    options: dict[str, Any] = {"backend": backend, "replace": overwrite, "progress": not quiet}
    if compression is not None:
        options["compression"] = compression
    reports = parts.write(data, path_of(dest), **options)
    if as_json:
        found = {name: report.to_dict() for name, report in reports.items()}
        show({"path": path_of(dest), "parts": found}, quiet=quiet, as_json=True)
        return
    for report in reports.values():
        show(report, quiet=quiet, as_json=False)


def _open(path: str) -> SingleCellDataset:
    from scdl.dataset.dataset import SingleCellDataset

    return SingleCellDataset(path_of(path))


def _shares(text: str) -> dict[str, float]:
    """Shares by name, from text such as ``train=0.8,test=0.2``."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        name = name.strip()
        if not name or name in shares or math.isnan(value):
            raise typer.BadParameter(
                f"{part!r} is not a new part and its share; expected NAME=SHARE,NAME=SHARE, such "
                "as train=0.8,val=0.1,test=0.1",
                param_hint="--fractions",
            )
        shares[name] = value
    return shares
