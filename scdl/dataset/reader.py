"""Checking that an argument is a dataset, a collection, or a view of one."""

from __future__ import annotations

import os

from scdl.dataset.neighbor_methods import CellReader as CellReader
from scdl.errors import DatasetTypeError


def as_cells(given: object) -> CellReader:
    """Check that an argument is a dataset or a collection.

    Raises
    ------
    DatasetTypeError
        The argument is another object; the message says how to open a dataset instead.
    """
    if isinstance(given, CellReader):
        return given
    kind = f"{type(given).__module__.partition('.')[0]}.{type(given).__name__}"
    if isinstance(given, str | os.PathLike):
        kind, advice = f"the path {os.fspath(given)!r}", "open it with scdl.open(path)"
    elif kind.startswith("zarr."):
        advice = "open the path of its store with scdl.open(path)"
    elif kind.startswith("anndata."):
        advice = "convert it with scdl.convert(adata, path), and open the archive"
    else:
        advice = "open an archive with scdl.open(path)"
    raise DatasetTypeError(f"expected a dataset or a collection, not {kind}; {advice}")
