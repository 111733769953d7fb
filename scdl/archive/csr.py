"""Rows of the sparse arrays of a store: plan, read, assemble."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex, TypeGuard

import numpy as np
from numpy.typing import NDArray

from scdl.archive.casting import held
from scdl.archive.schema import DATA, INDICES, INDPTR
from scdl.errors import ArchiveFormatError, RowIndexError
from scdl.kernels import memory as recycled
from storage_backends.base import ArrayStore
from storage_backends.compute.threads import for_each

#: Values from which on it saves time to read them in one thread and their column ids in another.
MANY_VALUES = 1 << 17

#: What may select cells: one, a slice, positions, or a mask.
Rows = SupportsIndex | slice | Sequence[int] | Sequence[bool] | NDArray[Any]


class SparseRows(NamedTuple):
    """Some rows in compressed sparse row form; `indptr` is int64 from 0.

    No id is beyond `largest`, where that is known.
    """

    data: NDArray[Any]
    indices: NDArray[Any]
    indptr: NDArray[np.int64]
    largest: int | None = None


def position(index: SupportsIndex, n_obs: int) -> int:
    """One row as a position from the front; negative ones count from the end."""
    try:
        row = operator.index(index)
    except TypeError:
        raise RowIndexError(
            f"a row is an integer, not {index!r:.200}; several rows are a list, a slice or a mask"
        ) from None
    if not -n_obs <= row < n_obs:
        raise RowIndexError(f"row {row} is out of range for a dataset of {n_obs} cells")
    return row + n_obs if row < 0 else row


def are_several(rows: Rows) -> TypeGuard[slice | Sequence[int] | NDArray[Any]]:
    """Whether rows are more than one by their kind, as lists of one row are."""
    # Arrays and tensors of one element are indices too, but have dimensions. A tuple would be a
    # row and a gene to who knows NumPy.
    plain = isinstance(rows, slice | Sequence) and not isinstance(rows, tuple | str)
    return plain or getattr(rows, "ndim", 0) > 0


def positions(rows: Rows, n_obs: int) -> NDArray[np.int64]:
    """A selection of rows as int64 positions, in the order given.

    Raises
    ------
    RowIndexError
        A position is out of range, a mask has the wrong length, or `rows` is no selection.
    """
    if isinstance(rows, slice):
        return np.arange(*rows.indices(n_obs), dtype=np.int64)
    # Arrays and tensors of one element are indices too, but have dimensions. The check of the
    # protocol takes longer than all the rest.
    plain = isinstance(rows, np.ndarray | list)
    if not plain and isinstance(rows, SupportsIndex) and getattr(rows, "ndim", 0) == 0:
        return np.array([position(rows, n_obs)], np.int64)
    selected = np.asarray(rows)
    if selected.ndim == 0 and selected.dtype.kind in "iu":
        return np.array([position(selected.item(), n_obs)], np.int64)
    if selected.dtype == bool:
        if selected.shape != (n_obs,):
            raise RowIndexError(
                f"a mask for {n_obs} cells must have shape ({n_obs},), not {selected.shape}"
            )
        return np.flatnonzero(selected).astype(np.int64, copy=False)
    if selected.size == 0:
        selected = selected.astype(np.int64)
    if selected.dtype.kind not in "iu" or selected.ndim > 1:
        raise RowIndexError(
            f"rows must be integers, a slice or a mask, not {selected.dtype} "
            f"of {selected.ndim} dimensions"
        )
    selected = np.atleast_1d(selected)
    least, most = (int(selected.min()), int(selected.max())) if len(selected) else (0, -1)
    if least < -n_obs or most >= n_obs:
        outside = (selected < -n_obs) | (selected >= n_obs)
        raise RowIndexError(
            f"row {selected[outside.argmax()]} is out of range for a dataset of {n_obs} cells"
        )
    selected = selected.astype(np.int64, copy=False)
    return selected if least >= 0 else np.where(selected < 0, selected + n_obs, selected)


def plan(
    store: ArrayStore, prefix: str, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Half-open ranges of the stored values of some rows, read from the offsets.

    Parameters
    ----------
    prefix
        What stands before ``data``, ``indices`` and ``indptr``: empty for the expression matrix.
    rows
        Positions, int64.
    """
    name, arrays = prefix + INDPTR, store.contents.arrays
    bounds = np.empty(2 * len(rows), arrays[name].dtype)
    store.read_ranges(name, rows, rows + 2, bounds)
    starts, stops = bounds.reshape(-1, 2).T.astype(np.int64, order="C")
    nnz = arrays[prefix + DATA].length
    if len(rows) and (int((stops - starts).min()) < 0 or int(stops.max()) > nnz):
        bad = int(np.argmax((stops < starts) | (stops > nnz)))
        raise ArchiveFormatError(
            f"{store.path}: {name} says that row {rows[bad]} is [{starts[bad]}, {stops[bad]}) of "
            f"{nnz} values; the archive is damaged, convert the source again"
        )
    return starts, stops


def read(
    store: ArrayStore,
    prefix: str,
    rows: NDArray[np.int64],
    index_dtype: np.dtype[Any] | None = None,
    *,
    concurrently: bool = False,
) -> SparseRows:
    """Rows of a sparse matrix, in the order asked for and as they are stored.

    Parameters
    ----------
    index_dtype
        A wider integer type for the column ids; None: as they are stored.
    concurrently
        Whether to read values in one thread and column ids in another, where there are many.
    """
    starts, stops = plan(store, prefix, rows)
    indptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(stops - starts, out=indptr[1:])
    total = int(indptr[-1])
    values, ids = (store.contents.arrays[prefix + name] for name in (DATA, INDICES))
    data = recycled.empty(total, values.dtype)
    indices = recycled.empty(total, index_dtype or ids.dtype)
    parts = [(prefix + DATA, data), (prefix + INDICES, indices)]
    if concurrently and total >= MANY_VALUES:
        for_each(lambda part: store.read_ranges(part[0], starts, stops, part[1]), parts)
    else:
        for name, out in parts:
            store.read_ranges(name, starts, stops, out)
    return SparseRows(data, indices, indptr, None if ids.below is None else ids.below - 1)


def row_spans(
    store: ArrayStore, prefix: str, n_rows: int, at_once: int, first_row: int = 0
) -> Iterator[tuple[int, int]]:
    """Ranges of rows from `first_row` to `n_rows`, of at most `at_once` values, or one row."""
    for first, last in spans(n_rows, at_once, first_row):
        offsets = store.read(prefix + INDPTR, first, last + 1).astype(np.int64)
        for start, stop in groups(offsets, at_once):
            yield first + start, first + stop


def groups(offsets: NDArray[np.int64], at_once: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows between offsets, of at most `at_once` values, or one row."""
    start, n_rows = 0, len(offsets) - 1
    while start < n_rows:
        fits = int(np.searchsorted(offsets, offsets[start] + at_once, side="right")) - 1
        stop = max(fits, start + 1)
        yield start, stop
        start = stop


def spans(n: int, at_once: int, first: int = 0) -> Iterator[tuple[int, int]]:
    """Half-open ranges of at most `at_once`, from `first` to `n`."""
    for start in range(first, n, at_once):
        yield start, min(start + at_once, n)


def ordered(rows: SparseRows, n_vars: int, where: str) -> tuple[SparseRows, int]:
    """The same rows with the genes of each in rising order, and how many were not.

    Parameters
    ----------
    where
        Opens the message of the ArchiveFormatError for a gene that is not below `n_vars`.
    """
    from scdl.kernels import order as order_kernels

    order = np.empty(len(rows.indices), np.int64)
    n_unsorted = order_kernels.row_order(rows.indptr, rows.indices, n_vars, order)
    if n_unsorted == order_kernels.OUT_OF_RANGE:
        raise ArchiveFormatError(
            f"{where}: column id {int(rows.indices.max())} is stored for {n_vars} genes; "
            "the archive is damaged, convert the source again"
        )
    if n_unsorted == 0:
        return rows, 0
    return SparseRows(rows.data[order], rows.indices[order], rows.indptr), n_unsorted


def without_duplicates(rows: SparseRows) -> SparseRows:
    """Ordered rows with repeated genes summed.

    Integers are summed in 64 bits and float16 in 32, so that sums do not overflow.
    """
    first = np.ones(len(rows.indices), bool)
    first[1:] = rows.indices[1:] != rows.indices[:-1]
    first[rows.indptr[:-1][rows.indptr[:-1] < len(first)]] = True
    if first.all():
        return rows
    kept = np.flatnonzero(first)
    kind = rows.data.dtype.kind
    wide = np.dtype({"u": "u8", "i": "i8", "b": "u8"}[kind]) if kind in "uib" else None
    wide = wide or np.result_type(rows.data.dtype, np.float32)
    data = np.add.reduceat(rows.data.astype(wide), kept)
    indptr = np.concatenate([[0], np.cumsum(first)])[rows.indptr]
    return SparseRows(data != 0 if kind == "b" else data, rows.indices[kept], indptr)


def clean(
    rows: SparseRows,
    n_vars: int,
    where: str,
    index_dtype: np.dtype[Any] | None = None,
    sum_dtype: np.dtype[Any] | None = None,
) -> SparseRows:
    """Rows with the genes of each in rising order, each once.

    Parameters
    ----------
    where
        Opens the message of an error.
    index_dtype
        A wider integer type for the column ids; None: the one that they have.
    sum_dtype
        Type of the values where genes are repeated and are summed; None: the one that they have.
        Values without repeated genes keep their type.

    Raises
    ------
    ArchiveFormatError
        A gene is not below `n_vars`.
    CastError
        The type cannot hold a sum.
    """
    from storage_backends.compute import rowsort

    index_dtype = index_dtype or rows.indices.dtype
    data = recycled.empty(len(rows.data), rows.data.dtype)
    out = rows._replace(data=data, indices=recycled.empty(len(rows.indices), index_dtype))
    n_unsorted = rowsort.sort_rows(*rows[:3], n_vars, out.data, out.indices)
    if n_unsorted >= 0:
        return out
    # Damaged, or with repeated genes: either is rare, and takes the long way.
    summed = without_duplicates(ordered(rows, n_vars, where)[0])
    return summed._replace(
        data=held(
            summed.data, sum_dtype or rows.data.dtype, f"{where}: repeated entries of a gene"
        ),
        indices=summed.indices.astype(index_dtype, copy=False),
    )
