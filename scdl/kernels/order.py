"""Checking and computing the order of column ids within rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import helper, kernel

#: Returned instead of a count if a column id is out of range.
OUT_OF_RANGE = -1

# De Bruijn sequence and table to find the position of the only set bit of a word.
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT_POSITION = np.zeros(64, np.uint8)
for _bit in range(64):
    _BIT_POSITION[(int(_DE_BRUIJN) << _bit & 0xFFFFFFFFFFFFFFFF) >> 58] = _bit


@helper
def stable_order(keys: NDArray[Any]) -> NDArray[np.int64]:
    """Positions of keys in ascending order; apart, as compiling it takes a second."""
    return np.argsort(keys, kind="mergesort")


@kernel
def row_order(
    indptr: NDArray[np.int64], indices: NDArray[Any], n_vars: int, order: NDArray[np.int64]
) -> int:
    """Stable order of the column ids within each row.

    Parameters
    ----------
    indptr
        n + 1 offsets, starting at 0.
    indices
        Column ids, of any unsigned dtype.
    n_vars
        Number of columns.
    order
        Output of the length of `indices`: ``indices[order]`` is sorted within rows.

    Returns
    -------
    int
        Number of rows that were not sorted, or :data:`OUT_OF_RANGE`.
    """
    seen = np.zeros((n_vars + 63) // 64, np.uint64)
    where = np.empty(n_vars, np.int64)
    n_unsorted = 0
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        in_order = True
        previous = np.int64(-1)
        for k in range(start, stop):
            column = np.int64(indices[k])
            # Large uint64 values become negative as int64.
            if column < 0 or column >= n_vars:
                return OUT_OF_RANGE
            if column < previous:
                in_order = False
            previous = column
            order[k] = k
        if in_order:
            continue
        n_unsorted += 1
        # One bit per column; reading the set bits in order sorts without comparisons.
        repeated = False
        for k in range(start, stop):
            column = np.int64(indices[k])
            bit = np.uint64(1) << np.uint64(column & 63)
            if seen[column >> 6] & bit:
                repeated = True
            seen[column >> 6] |= bit
            where[column] = k
        position = start
        for word_index in range(len(seen)):
            word = seen[word_index]
            seen[word_index] = np.uint64(0)
            while word != np.uint64(0) and not repeated:
                lowest = word & (~word + np.uint64(1))
                bit_position = _BIT_POSITION[(lowest * _DE_BRUIJN) >> np.uint64(58)]
                order[position] = where[(word_index << 6) + np.int64(bit_position)]
                position += 1
                word ^= lowest
        if repeated:
            by_column = stable_order(indices[start:stop].astype(np.int64))
            for k in range(stop - start):
                order[start + k] = start + by_column[k]
    return n_unsorted


@kernel
def misplaced(indices: NDArray[Any], indptr: NDArray[np.int64], below: int, rises: bool) -> int:
    """Find the first id that is out of range or out of order.

    Parameters
    ----------
    indices
        Ids of rows, of any integer dtype.
    indptr
        Non-decreasing offsets of the rows, from 0 to the number of ids.
    below
        Ids must be in ``[0, below)``.
    rises
        Whether ids must be strictly increasing within each row.

    Returns
    -------
    int
        Position of the id, or -1.
    """
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        if start < stop and not _in_place(indices[start:stop], below, rises):
            return int(start + _first_misplaced(indices[start:stop], below, rises))
    return -1


@kernel
def _in_place(ids: NDArray[Any], below: int, rises: bool) -> bool:
    """Whether all ids of a row are valid; branch-free so that the compiler can vectorise it."""
    least, most, falls = ids[0], ids[-1], 0
    if rises:
        for i in range(1, len(ids)):
            falls += ids[i] <= ids[i - 1]
    else:
        for i in range(len(ids)):
            least, most = min(least, ids[i]), max(most, ids[i])
    # Large uint64 values become negative as int64.
    return bool(falls == 0 and np.int64(least) >= 0 and 0 <= np.int64(most) < below)


@helper
def _first_misplaced(ids: NDArray[Any], below: int, rises: bool) -> int:
    for i in range(len(ids)):
        number = np.int64(ids[i])
        if number < 0 or number >= below or (rises and i > 0 and ids[i] <= ids[i - 1]):
            return i
    return -1
