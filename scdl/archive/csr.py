"""Rows of the sparse matrices of an archive."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex, TypeGuard

import numpy as np
from numpy.typing import NDArray

from scdl.archive.casting import cast_values, computable
from scdl.archive.schema import INDPTR, MATRIX
from scdl.errors import ArchiveFormatError, RowIndexError
from scdl.kernels import memory as recycled
from storage_backends.base import ArrayStore, ArrayWriter

#: A selection of cells: a position, a slice, several positions, or a boolean mask.
Rows = SupportsIndex | slice | Sequence[int] | Sequence[bool] | NDArray[Any]


class SparseRows(NamedTuple):
    """Rows in compressed sparse row form; `indptr` is int64 and starts at 0.

    `largest` is an upper bound of the column ids, or None if unknown; `is_sorted` tells whether the
    ids of each row are known to ascend.
    """

    data: NDArray[Any]
    indices: NDArray[Any]
    indptr: NDArray[np.int64]
    largest: int | None = None
    is_sorted: bool = False


def position(index: SupportsIndex, n_obs: int) -> int:
    """Convert a row index, which may be negative, to a non-negative position."""
    try:
        row = operator.index(index)
    except TypeError:
        raise RowIndexError(
            f"a row must be an integer, not {index!r:.200}; select several rows with a list, a "
            "slice or a mask"
        ) from None
    if not -n_obs <= row < n_obs:
        raise RowIndexError(f"row {row} is out of range for a dataset of {n_obs} cells")
    return row + n_obs if row < 0 else row


def are_several(rows: Rows) -> TypeGuard[slice | Sequence[int] | NDArray[Any]]:
    """Whether `rows` is a selection of several rows, such as a list, even of length one."""
    # Arrays and tensors with one element support __index__ too, but have dimensions. A tuple is
    # excluded because NumPy users would read it as (row, gene).
    plain = isinstance(rows, slice | Sequence) and not isinstance(rows, tuple | str)
    return plain or getattr(rows, "ndim", 0) > 0


def positions(rows: Rows, n_obs: int) -> NDArray[np.int64]:
    """Convert a selection of rows to int64 positions, in the order given.

    Raises
    ------
    RowIndexError
        A position is out of range, a mask has the wrong length, or `rows` is not a selection.
    """
    if isinstance(rows, slice):
        return np.arange(*rows.indices(n_obs), dtype=np.int64)
    # Arrays and tensors with one element support __index__ too, but have dimensions. Arrays and
    # lists skip the isinstance check of the protocol, which is slower than everything else here.
    plain = isinstance(rows, np.ndarray | list)
    if not plain and isinstance(rows, SupportsIndex) and getattr(rows, "ndim", 0) == 0:
        return np.array([position(rows, n_obs)], np.int64)
    selected = np.asarray(rows)
    is_plain = selected.dtype == np.int64 and selected.ndim == 1
    # As unsigned numbers, negative positions are out of range, too; most selections have none.
    if is_plain and not (selected.view(np.uint64) >= n_obs).any():
        return selected
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
            f"rows must be integers, a slice or a mask without missing values, not "
            f"{selected.dtype} of {selected.ndim} dimensions; data.where(condition) gives the rows "
            "of a condition on obs"
        )
    least, most = (int(selected.min()), int(selected.max())) if len(selected) else (0, -1)
    if least < -n_obs or most >= n_obs:
        outside = (selected < -n_obs) | (selected >= n_obs)
        raise RowIndexError(
            f"row {selected[outside.argmax()]} is out of range for a dataset of {n_obs} cells"
        )
    selected = selected.astype(np.int64, copy=False)
    return selected if least >= 0 else np.where(selected < 0, selected + n_obs, selected)


def row_spans(
    store: ArrayStore, prefix: str, n_rows: int, at_once: int, first_row: int = 0
) -> Iterator[tuple[int, int]]:
    """Split rows `first_row` to `n_rows` into ranges of at most `at_once` values, or of one row."""
    for first, last in spans(n_rows, at_once, first_row):
        offsets = store.read(prefix + INDPTR, first, last + 1).astype(np.int64)
        for start, stop in groups(offsets, at_once):
            yield first + start, first + stop


def groups(offsets: NDArray[np.int64], at_once: int) -> Iterator[tuple[int, int]]:
    """Split the rows of an offset array into ranges of at most `at_once` values, or of one row."""
    start, n_rows = 0, len(offsets) - 1
    while start < n_rows:
        fits = int(np.searchsorted(offsets, offsets[start] + at_once, side="right")) - 1
        stop = max(fits, start + 1)
        yield start, stop
        start = stop


def spans(n: int, at_once: int, first: int = 0) -> Iterator[tuple[int, int]]:
    """Split ``[first, n)`` into half-open ranges of at most `at_once` items."""
    for start in range(first, n, at_once):
        yield start, min(start + at_once, n)


def ordered(rows: SparseRows, n_vars: int, where: str) -> tuple[SparseRows, int]:
    """Sort the genes of each row; also return the number of rows that were not sorted.

    Parameters
    ----------
    where
        Start of the message of the ArchiveFormatError for a column id of `n_vars` or more.
    """
    from scdl.kernels import order as order_kernels

    order = np.empty(len(rows.indices), np.int64)
    n_unsorted = order_kernels.row_order(rows.indptr, rows.indices, n_vars, order)
    if n_unsorted == order_kernels.OUT_OF_RANGE:
        raise ArchiveFormatError(
            f"{where}: found column id {int(rows.indices.max())}, expected less than {n_vars}, the "
            "number of genes; the archive is damaged, convert the source again"
        )
    if n_unsorted == 0:
        return rows, 0
    return SparseRows(rows.data[order], rows.indices[order], rows.indptr), n_unsorted


def without_duplicates(rows: SparseRows) -> SparseRows:
    """Sum the values of repeated genes in sorted rows.

    Integers are summed in 64 bits and float16 in 32 bits to avoid overflow.
    """
    first = np.ones(len(rows.indices), bool)
    first[1:] = rows.indices[1:] != rows.indices[:-1]
    first[rows.indptr[:-1][rows.indptr[:-1] < len(first)]] = True
    if first.all():
        return rows
    starts = np.flatnonzero(first)
    kind = rows.data.dtype.kind
    wide = np.dtype({"u": "u8", "i": "i8", "b": "u8"}[kind]) if kind in "uib" else None
    wide = wide or np.result_type(rows.data.dtype, np.float32)
    data = np.add.reduceat(rows.data.astype(wide), starts)
    indptr = np.concatenate([[0], np.cumsum(first)])[rows.indptr]
    return SparseRows(data != 0 if kind == "b" else data, rows.indices[starts], indptr)


def clean(
    rows: SparseRows,
    n_vars: int,
    where: str,
    index_dtype: np.dtype[Any] | None = None,
    sum_dtype: np.dtype[Any] | None = None,
) -> SparseRows:
    """Sort the genes of each row and sum the values of repeated genes.

    Parameters
    ----------
    where
        Start of error messages.
    index_dtype
        A wider integer dtype for the column ids; None: their own.
    sum_dtype
        Dtype of the values if repeated genes are summed; None: their own. Values without repeated
        genes keep their dtype.

    Raises
    ------
    ArchiveFormatError
        A column id is `n_vars` or more.
    CastError
        The dtype cannot represent a sum.
    """
    from storage_backends.compute import rowsort

    index_dtype = index_dtype or rows.indices.dtype
    data = recycled.empty(len(rows.data), rows.data.dtype)
    out = rows._replace(data=data, indices=recycled.empty(len(rows.indices), index_dtype))
    n_unsorted = rowsort.sort_rows(*rows[:3], n_vars, out.data, out.indices)
    if n_unsorted >= 0:
        return out
    # The rows are damaged or repeat genes. Both are rare, so the slow path is acceptable.
    summed = without_duplicates(ordered(rows, n_vars, where)[0])
    return summed._replace(
        data=cast_values(
            summed.data, sum_dtype or rows.data.dtype, f"{where}: sum of repeated entries"
        ),
        indices=summed.indices.astype(index_dtype, copy=False),
    )


def write_rows(
    writer: ArrayWriter, prefix: str, blocks: Iterable[SparseRows], dtypes: Sequence[np.dtype[Any]]
) -> None:
    """Write all rows of a matrix; `dtypes` are those of values, column ids and offsets."""
    data, indices, indptr = (prefix + part for part in MATRIX)
    for name, dtype in zip((data, indices), dtypes, strict=False):
        # The arrays exist even if there are no rows.
        writer.append(name, np.empty(0, dtype))
    writer.append(indptr, np.zeros(1, dtypes[2]))
    n_values = 0
    for rows in blocks:
        writer.append(data, rows.data)
        writer.append(indices, rows.indices)
        ends = rows.indptr[1:] + n_values
        writer.end_rows(prefix, ends)
        writer.append(indptr, ends.astype(dtypes[2]))
        n_values += int(rows.indptr[-1])


def index_dtype(nnz: int, shape: tuple[int, int]) -> np.dtype[Any]:
    """Signed index dtype for SciPy, which does not support unsigned indices."""
    return np.dtype(np.int64 if max(nnz, *shape) > np.iinfo(np.int32).max else np.int32)


def scipy_matrix(kind: Any, rows: SparseRows, shape: tuple[int, int]) -> Any:
    """Create a SciPy sparse matrix of class `kind`, with dtypes that SciPy supports."""
    signed = index_dtype(len(rows.data), shape)
    data = rows.data.astype(computable(rows.data.dtype), copy=False)
    return kind((data, rows.indices.astype(signed), rows.indptr.astype(signed)), shape=shape)
