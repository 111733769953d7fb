"""Compiled sorting of the column ids within rows, used by `scdl` and the storage backends.

Invalid ids never cause writes outside the output arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from storage_backends.compute.jit import helper, intrinsic, kernel
from storage_backends.compute.threads import for_each, n_threads

#: Return values for an id that is not a column, or that repeats within a row.
OUT_OF_RANGE, REPEATED = -1, -2

#: Minimum number of values per thread; starting a thread for fewer does not pay off.
_MIN_VALUES = 1 << 15


@intrinsic
def count_bits(typingctx: Any, word: Any) -> Any:
    """Number of set bits."""

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
    """Copy rows with the column ids of each row sorted, in several threads.

    Parameters
    ----------
    data, indices, indptr
        Rows in CSR form; `indptr` is int64 and starts at 0.
    n_columns
        Exclusive upper bound of the ids.
    out_data, out_indices
        Outputs with the lengths and dtypes of `data` and `indices`, or wider integer dtypes.

    Returns
    -------
    int
        Number of rows that were not sorted; or :data:`OUT_OF_RANGE` or :data:`REPEATED`, in which
        case the outputs are invalid.
    """
    # Bits instead of numbers, as values are only moved: numba compiles for fewer types, and has no
    # float16. The bits of negative ids are beyond those of the largest id.
    n_columns = min(n_columns, int(np.iinfo(indices.dtype).max) + 1)
    indices = indices.view(f"u{indices.itemsize}")
    if data.dtype == out_data.dtype:
        data, out_data = (values.view(f"u{values.itemsize}") for values in (data, out_data))
    out_indices = out_indices.view(f"u{out_indices.itemsize}")
    pieces = min(n_threads(), max(1, len(indices) // _MIN_VALUES))
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
    seen, before = np.zeros(n_words, np.uint64), np.empty(n_words, np.int64)
    limit = np.uint64(n_columns)
    n_unsorted = 0
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        ids, values = indices[start:stop], data[start:stop]
        sorted_ids, sorted_data = out_indices[start:stop], out_data[start:stop]
        k = 1
        while k < len(ids) and ids[k] > ids[k - 1]:
            k += 1
        if k >= len(ids):
            # The row is sorted, so its first and last ids are the extremes.
            if len(ids) and np.uint64(ids[-1]) >= limit:
                return OUT_OF_RANGE
            # Loops, as numba compiles the error of assigned slices of other lengths for seconds.
            for k in range(len(ids)):
                sorted_ids[k] = ids[k]
            for k in range(len(ids)):
                sorted_data[k] = values[k]
            continue
        n_unsorted += 1
        most = np.uint64(0)
        for k in range(len(ids)):
            most = max(most, np.uint64(ids[k]))
        if most >= limit:
            return OUT_OF_RANGE
        if not sort_row(values, ids, seen, before, sorted_data, sorted_ids):
            return REPEATED
    return n_unsorted


@helper
def sort_row(
    data: NDArray[Any],
    indices: NDArray[Any],
    seen: NDArray[np.uint64],
    before: NDArray[np.int64],
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
) -> bool:
    """Copy a row with its ids sorted; False if one repeats, and nothing is copied.

    Parameters
    ----------
    data, indices
        The row; its ids are less than 64 for each word of `seen`.
    seen, before
        Memory of the caller; `seen` is zero before and afterwards.
    """
    one, low, high = np.uint64(1), np.uint64(63), np.uint64(6)
    # Set one bit per id; the sorted position of an id is the number of bits below its own.
    for k in range(len(indices)):
        column = np.uint64(indices[k])
        seen[column >> high] |= one << (column & low)
    count = np.int64(0)
    for word_index in range(len(seen)):
        before[word_index] = count
        count += np.int64(count_bits(seen[word_index]))
    is_sound = bool(count == len(indices))
    if is_sound:
        for k in range(len(indices)):
            column = np.uint64(indices[k])
            word = column >> high
            bits_below = count_bits(seen[word] & ((one << (column & low)) - one))
            position = np.uint64(before[word]) + bits_below
            out_indices[position] = indices[k]
            out_data[position] = data[k]
    seen[:] = np.uint64(0)
    return is_sound
