"""Genes in order of falling detection rate, which makes column ids compress better.

Genes that many cells express then come first, so that differences between the ids of a cell are
small where most of them are. Readers of AnnData see just another order of var.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage_backends._zarr_array_writer import ArrayBuilder
from storage_backends._zarr_arrays import ZarrArray
from storage_backends.rowsort import sort_rows

#: Elements that are aligned with the genes, by the place of the matrix.
ALIGNED = {"X": ("varm/", "varp/"), "raw/X": ("raw/varm/",)}

_VALUES_AT_ONCE = 1 << 20


class Rows(NamedTuple):
    """The arrays of a sparse matrix, still drafts."""

    data: ArrayBuilder
    indices: ArrayBuilder
    indptr: ArrayBuilder


def by_detection(indices: ZarrArray, n_vars: int) -> NDArray[np.int64]:
    """Genes by falling number of cells that have them; those of equal number as they were."""
    counts = np.zeros(n_vars, np.int64)
    for values in _pieces(indices):
        counts += np.bincount(values, minlength=n_vars)
    return np.argsort(-counts, kind="stable")


def rewrite(drafts: Rows, data: ArrayBuilder, indices: ArrayBuilder, order: Any | None) -> None:
    """Append drafts to the builders of what they become, with genes in another order.

    Parameters
    ----------
    order
        Original position of each gene in the new order; None: as they are.
    """
    if order is None:
        for draft, final in ((drafts.data, data), (drafts.indices, indices)):
            for values in _pieces(draft.reader()):
                final.append(final.name, values)
        return
    dtype = drafts.indices.spec.dtype
    rank = np.empty(len(order), dtype)
    rank[order] = np.arange(len(order), dtype=dtype)
    read_data, read_indices = drafts.data.reader(), drafts.indices.reader()
    for indptr in _row_blocks(drafts.indptr.reader()):
        values, ids = (read(r, int(indptr[0]), int(indptr[-1])) for r in (read_data, read_indices))
        sorted_values, sorted_ids = np.empty_like(values), np.empty_like(ids)
        sort_rows(values, rank[ids], indptr - indptr[0], len(order), sorted_values, sorted_ids)
        data.append(data.name, sorted_values)
        indices.append(indices.name, sorted_ids)


def permute(name: str, value: Any, order: NDArray[np.int64]) -> Any:
    """An element that is aligned with the genes, with them in another order."""
    rows = value.iloc[order] if hasattr(value, "iloc") else value[order]
    return rows[:, order] if name.startswith("varp/") else rows


def read(array: ZarrArray, start: int, stop: int) -> NDArray[Any]:
    """Items of an array that is not part of a store yet."""
    out = np.empty((stop - start, *array.spec.item_shape), array.spec.dtype)
    array.read(np.array([start]), np.array([stop]), out)
    return out


def _pieces(array: ZarrArray) -> Iterator[NDArray[Any]]:
    for start in range(0, array.spec.length, _VALUES_AT_ONCE):
        yield read(array, start, min(start + _VALUES_AT_ONCE, array.spec.length))


def _row_blocks(indptr: ZarrArray) -> Iterator[NDArray[np.int64]]:
    """Offsets of consecutive rows that together have a bounded number of values, or of one."""
    start, n_rows = 0, indptr.spec.length - 1
    while start < n_rows:
        ahead = read(indptr, start, min(start + (1 << 16), n_rows) + 1).astype(np.int64)
        fits = int(np.searchsorted(ahead, ahead[0] + _VALUES_AT_ONCE, side="right")) - 1
        rows = min(max(fits, 1), len(ahead) - 1)
        yield ahead[: rows + 1]
        start += rows
