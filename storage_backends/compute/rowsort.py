"""Sorting the column ids within rows, compiled; both sides of the seam use it.

It knows nothing of archives, and never writes outside its output, whatever the ids are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from storage_backends.compute.jit import intrinsic, kernel
from storage_backends.compute.threads import for_each, n_threads

#: Returned where an id is not below the number of columns, or repeats within a row.
OUT_OF_RANGE, REPEATED = -1, -2

#: Values below which a thread costs more than it saves.
_LEAST_VALUES = 1 << 15


@intrinsic
def count_bits(typingctx: Any, word: Any) -> Any:
    """Number of bits set."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), codegen


def sort_rows(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    n_columns: int,
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
) -> int:
    """Copy rows with the column ids of each in rising order, in several threads.

    Parameters
    ----------
    data, indices, indptr
        Rows; `indptr` is int64 from 0.
    n_columns
        Every id must be below it.
    out_data, out_indices
        Output, of the lengths and types of `data` and `indices`, or of a wider integer type.

    Returns
    -------
    int
        Rows that were not in order, or :data:`OUT_OF_RANGE`, or :data:`REPEATED` where a row has an
        id twice; then the output is not to be used.
    """
    if data.dtype == np.float16:
        # Which numba does not know; values are only moved.
        data, out_data = data.view(np.uint16), out_data.view(np.uint16)
    pieces = min(n_threads(), max(1, len(indices) // _LEAST_VALUES))
    edges = np.searchsorted(indptr, np.linspace(0, len(indices), pieces + 1)[1:-1])
    edges = np.concatenate([[0], edges, [len(indptr) - 1]])
    results = [0] * pieces

    def sort(piece: int) -> None:
        rows = indptr[edges[piece] : edges[piece + 1] + 1]
        results[piece] = _sort(data, indices, rows, n_columns, out_data, out_indices)

    if pieces == 1:
        sort(0)
    else:
        for_each(sort, range(pieces))
    return min(results) if min(results) < 0 else sum(results)


@kernel
def _sort(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    n_columns: int,
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
) -> int:
    n_words = (n_columns + 63) // 64
    seen = np.zeros(n_words, np.uint64)
    before = np.empty(n_words, np.int64)
    one, low, high = np.uint64(1), np.uint64(63), np.uint64(6)
    limit = np.uint64(n_columns)
    n_unsorted = 0
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        given, given_data = indices[start:stop], data[start:stop]
        sorted_ids, sorted_data = out_indices[start:stop], out_data[start:stop]
        k = 1
        while k < len(given) and given[k] > given[k - 1]:
            k += 1
        if k >= len(given):
            # In order, so that the first and the last id are the extremes.
            if len(given) and (given[0] < 0 or np.uint64(given[-1]) >= limit):
                return OUT_OF_RANGE
            sorted_ids[:] = given
            sorted_data[:] = given_data
            continue
        n_unsorted += 1
        # One bit a column; the place of an id is the number of bits below its own.
        for k in range(len(given)):
            # A negative id becomes a large one.
            column = np.uint64(given[k])
            if column >= limit:
                return OUT_OF_RANGE
            seen[column >> high] |= one << (column & low)
        count = np.int64(0)
        for word_index in range(n_words):
            before[word_index] = count
            count += np.int64(count_bits(seen[word_index]))
        if count != len(given):
            return REPEATED
        for k in range(len(given)):
            column = np.uint64(given[k])
            word = column >> high
            place = before[word] + np.int64(
                count_bits(seen[word] & ((one << (column & low)) - one))
            )
            sorted_ids[place] = given[k]
            sorted_data[place] = given_data[k]
        seen[:] = np.uint64(0)
    return n_unsorted


def sort_rows_numpy(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    n_columns: int,
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
) -> int:
    """The same as :func:`sort_rows` in NumPy."""
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < n_columns:
        return OUT_OF_RANGE
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    same_row = rows[1:] == rows[:-1]
    falls = same_row & (indices[1:] <= indices[:-1])
    order = np.lexsort((indices, rows))
    out_data[:], out_indices[:] = data[order], indices[order]
    if (same_row & (out_indices[1:] == out_indices[:-1])).any():
        return REPEATED
    return len(np.unique(rows[1:][falls]))
