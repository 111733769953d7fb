"""Rows of one archive, found and copied."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import fetch_ahead, kernel


@kernel
def locate_rows(
    offsets: NDArray[Any],
    rows: NDArray[np.int64],
    nnz: int,
    starts: NDArray[np.int64],
    indptr: NDArray[np.int64],
) -> int:
    """Where the values of some rows are, and where they go one after the other.

    Parameters
    ----------
    offsets
        n_rows + 1 offsets of a sparse matrix of `nnz` values, any integer type.
    rows
        Positions, each below n_rows.
    starts, indptr
        Outputs, as long as `rows` and longer by one: first value of each row, offsets from 0.

    Returns
    -------
    int
        -1, or the first of `rows` whose bounds are not half-open within ``[0, nnz]``.
    """
    indptr[0] = 0
    for i in range(len(rows)):
        start, stop = np.int64(offsets[rows[i]]), np.int64(offsets[rows[i] + 1])
        if start < 0 or stop < start or stop > nnz:
            return i
        starts[i], indptr[i + 1] = start, indptr[i] + stop - start
    return -1


def locate_rows_numpy(
    offsets: NDArray[Any],
    rows: NDArray[np.int64],
    nnz: int,
    starts: NDArray[np.int64],
    indptr: NDArray[np.int64],
) -> int:
    """The same as :func:`locate_rows` in NumPy."""
    first, last = offsets[rows].astype(np.int64), offsets[rows + 1].astype(np.int64)
    bad = (first < 0) | (last < first) | (last > nnz)
    if bad.any():
        return int(bad.argmax())
    starts[:] = first
    indptr[:] = np.concatenate([[0], np.cumsum(last - first)])
    return -1


@kernel
def gather_rows(
    data: NDArray[Any],
    indices: NDArray[Any],
    starts: NDArray[np.int64],
    indptr: NDArray[np.int64],
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
) -> np.uint64:
    """Copy rows of a sparse matrix, one after the other; returns the largest column id, or 0.

    Parameters
    ----------
    data, indices
        Values, as unsigned bits, and column ids, unsigned, of all rows.
    starts
        Position of each row in them.
    indptr
        Offsets of the rows in the outputs; they also tell how long the rows are.
    out_data, out_indices
        Outputs, of the type of `data`, and of that of `indices` or a wider one.
    """
    largest = indices.dtype.type(0)
    for row in range(len(starts)):
        start, length = starts[row], indptr[row + 1] - indptr[row]
        # The next row comes from memory while this one is copied; half of it between the loops, as
        # a core can wait for some lines only at a time.
        following = min(row + 1, len(starts) - 1)
        first, n_next = starts[following], indptr[following + 1] - indptr[following]
        fetch_ahead(data.ctypes.data + first * data.itemsize, n_next * data.itemsize)
        # Slices tell LLVM that the inner loops are contiguous copies: twice as fast as indexing.
        values = data[start : start + length]
        target = out_data[indptr[row] : indptr[row + 1]]
        for k in range(length):
            target[k] = values[k]
        fetch_ahead(indices.ctypes.data + first * indices.itemsize, n_next * indices.itemsize)
        columns = indices[start : start + length]
        column_target = out_indices[indptr[row] : indptr[row + 1]]
        for k in range(length):
            largest = max(largest, columns[k])
            column_target[k] = columns[k]
    return np.uint64(largest)


def gather_rows_numpy(
    data: NDArray[Any],
    indices: NDArray[Any],
    starts: NDArray[np.int64],
    indptr: NDArray[np.int64],
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
) -> np.uint64:
    """The same as :func:`gather_rows` in NumPy."""
    to = np.arange(indptr[0], indptr[-1])
    at = to + np.repeat(starts - indptr[:-1], np.diff(indptr))
    out_data[to], out_indices[to] = data[at], indices[at]
    return np.uint64(indices[at].max() if len(at) else 0)
