"""Rows of several archives as one batch: each archive read once, no row moved twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl import csr, recycled
from scdl.errors import ArchiveFormatError
from scdl.schema import DATA, INDICES
from storage_backends.base import ArrayStore
from storage_backends.threads import for_each


class Part(NamedTuple):
    """The rows of a request that one archive has.

    Attributes
    ----------
    store
        The archive.
    is_sorted
        Whether the genes of each cell are stored in rising order, each once.
    rows
        Rows within the archive, int64.
    places
        Where each of them stands in the request, int64.
    """

    store: ArrayStore
    is_sorted: bool
    rows: NDArray[np.int64]
    places: NDArray[np.int64]


class Lookup(NamedTuple):
    """From the genes of blocks to those of one gene space.

    Attributes
    ----------
    genes
        Tables one after the other: of each gene its place in the gene space, -1 where it has none.
    bounds
        Where each table begins, and the end of the last; int64.
    table_of
        The table of each row of a request, int64.
    """

    genes: NDArray[np.int32]
    bounds: NDArray[np.int64]
    table_of: NDArray[np.int64]


class _Located(NamedTuple):
    """Where the rows of a request are in memory, in its order.

    Attributes
    ----------
    data, indices
        Addresses of the values and of the column ids of each row.
    lengths
        Stored values of each row.
    owners
        What keeps the memory alive.
    """

    data: NDArray[np.int64]
    indices: NDArray[np.int64]
    lengths: NDArray[np.int64]
    owners: list[NDArray[Any]]


class Dtypes(NamedTuple):
    """Types of the values and column ids that archives have in common, and of the ids to give."""

    data: np.dtype[Any]
    stored: np.dtype[Any]
    indices: np.dtype[Any]


def join(parts: Sequence[Part], dtypes: Dtypes, *, concurrently: bool = False) -> csr.SparseRows:
    """Rows of archives in the order of a request, as they are stored.

    Parameters
    ----------
    concurrently
        Whether to copy values in one thread and column ids in another, where there are many.
    """
    from scdl import _join_kernels

    found = _locate(parts, dtypes)
    indptr = _offsets(found.lengths)
    total = int(indptr[-1])
    data = recycled.empty(total, dtypes.data)
    indices = recycled.empty(total, dtypes.indices)
    unit = _unit(dtypes.data)
    copies = [
        (found.data, np.empty(0, unit), data.view(unit)),
        (found.indices, np.empty(0, dtypes.stored), indices),
    ]

    def copy(one: tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]) -> None:
        _join_kernels.copy_rows(one[0], found.lengths, one[1], one[2])

    if concurrently and total >= csr.MANY_VALUES:
        for_each(copy, copies)
    else:
        for one in copies:
            copy(one)
    return csr.SparseRows(data, indices, indptr)


def join_mapped(parts: Sequence[Part], dtypes: Dtypes, lookup: Lookup) -> csr.SparseRows:
    """Rows of archives in the order of a request, with the genes of one gene space.

    Genes that it lacks are left out, the others stay in the order in which they are stored.

    Raises
    ------
    ArchiveFormatError
        A column id is not below the number of genes of its block.
    """
    from scdl import _join_kernels

    found = _locate(parts, dtypes)
    total = int(found.lengths.sum())
    data = recycled.empty(total, dtypes.data)
    indices = recycled.empty(total, dtypes.indices)
    indptr = np.empty(len(found.lengths) + 1, np.int64)
    rows = np.stack([found.data, found.indices, found.lengths, lookup.table_of], axis=1)
    like = np.empty(0, dtypes.stored)
    kept = _join_kernels.map_rows(
        rows, lookup.genes, lookup.bounds, like, data.view(_unit(dtypes.data)), indices, indptr
    )
    if kept == _join_kernels.OUT_OF_RANGE:
        paths = ", ".join(part.store.path for part in parts)
        raise ArchiveFormatError(
            f"{paths}: a column id is not below the number of genes of its block; the archive is "
            "damaged, convert the source again"
        )
    return csr.SparseRows(data[:kept], indices[:kept], indptr)


def _locate(parts: Sequence[Part], dtypes: Dtypes) -> _Located:
    n = sum(len(part.rows) for part in parts)
    found = _Located(np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64), [])
    for part in parts:
        data, indices = part.store.view(DATA), part.store.view(INDICES)
        if data is not None and indices is not None:
            starts, stops = csr.plan(part.store, "", part.rows)
        if data is None or indices is None or (data.dtype, indices.dtype) != dtypes[:2]:
            # Read for good, in the types that all have in common.
            rows = csr.read(part.store, "", part.rows)
            data, indices, starts, stops = *rows[:2], rows.indptr[:-1], rows.indptr[1:]
            data, indices = data.astype(dtypes.data, copy=False), indices.astype(dtypes.stored)
        # Plain arrays: those that are mapped are slow to ask for their address.
        data, indices = np.asarray(data), np.asarray(indices)
        found.data[part.places] = data.ctypes.data + starts * data.itemsize
        found.indices[part.places] = indices.ctypes.data + starts * indices.itemsize
        found.lengths[part.places] = stops - starts
        found.owners.extend((data, indices))
    return found


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    indptr = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=indptr[1:])
    return indptr


def _unit(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What values are copied as, whatever the numbers mean: float16 does not compile."""
    return np.dtype(f"u{dtype.itemsize}")
