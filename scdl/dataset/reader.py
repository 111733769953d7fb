"""What datasets, collections and views of them have in common."""

from __future__ import annotations

import os

from scdl.dataset.neighbor_methods import NeighborReader
from scdl.errors import DatasetTypeError


class CellReader(NeighborReader):
    """Cells to read: one archive, many, or some genes of them."""


def as_cells(given: object) -> CellReader:
    """What was given as cells to read.

    Raises
    ------
    DatasetTypeError
        It is something else; the message says how to get from it to a dataset.
    """
    if isinstance(given, CellReader):
        return given
    kind = f"{type(given).__module__.partition('.')[0]}.{type(given).__name__}"
    if isinstance(given, str | os.PathLike):
        kind, advice = f"the path {os.fspath(given)!r}", "open it with scdl.open(path)"
    elif kind.startswith("zarr."):
        advice = "open the path of its store with scdl.open(path)"
    elif kind.startswith("anndata."):
        advice = "write it to a file, convert that with scdl.convert, and open the archive"
    else:
        advice = "open an archive with scdl.open(path)"
    raise DatasetTypeError(f"cells are read from a dataset or a collection, not {kind}; {advice}")
