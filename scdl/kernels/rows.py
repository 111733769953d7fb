"""Compiled loops over plain arrays, each beside the NumPy form it is tested against.

All release the GIL and are cached on disk. They know nothing of archives or torch, and never
write outside their output, whatever the column ids are.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.kernels import hashing
from storage_backends.compute.jit import fetch_ahead, kernel

#: Returned in place of a count where a column id is not below the number of columns.
OUT_OF_RANGE = -1
#: Returned where a dtype does not hold a sum.
OVERFLOW = -2


# Position of the only bit set in a word, by De Bruijn's sequence.
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT_POSITION = np.zeros(64, np.uint8)
for _bit in range(64):
    _BIT_POSITION[(int(_DE_BRUIJN) << _bit & 0xFFFFFFFFFFFFFFFF) >> 58] = _bit


@kernel
def row_order(
    indptr: NDArray[np.int64], indices: NDArray[Any], n_vars: int, order: NDArray[np.int64]
) -> int:
    """Stable order of the column ids within each row.

    Parameters
    ----------
    indptr
        n + 1 offsets from 0.
    indices
        Column ids, any unsigned type.
    n_vars
        Columns.
    order
        Output, as long as `indices`: ``indices[order]`` is sorted within rows.

    Returns
    -------
    int
        Rows that were not in order, or :data:`OUT_OF_RANGE`.
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
            # The largest uint64 would be negative.
            if column < 0 or column >= n_vars:
                return OUT_OF_RANGE
            if column < previous:
                in_order = False
            previous = column
            order[k] = k
        if in_order:
            continue
        n_unsorted += 1
        # One bit a column; reading the set bits back in order sorts without comparing.
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
            order[start:stop] = start + np.argsort(indices[start:stop], kind="mergesort")
    return n_unsorted


def row_order_numpy(
    indptr: NDArray[np.int64], indices: NDArray[Any], n_vars: int, order: NDArray[np.int64]
) -> int:
    """The same as :func:`row_order` in NumPy."""
    if len(indices) and int(indices.max()) >= n_vars:
        return OUT_OF_RANGE
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order[:] = np.lexsort((indices, rows))
    falls = indices[1:] < indices[:-1]
    return len(np.unique(rows[1:][falls & (rows[1:] == rows[:-1])]))


@kernel
def misplaced(indices: NDArray[Any], indptr: NDArray[np.int64], below: int, rises: bool) -> int:
    """The first id that is where it must not be.

    Parameters
    ----------
    indices
        Ids of some rows, any integer type.
    indptr
        Offsets of the rows, rising from 0 to the number of ids.
    below
        Ids are less, and at least 0.
    rises
        Whether each is greater than the one before it in its row.

    Returns
    -------
    int
        Its position, or -1.
    """
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        if start < stop and not _in_place(indices[start:stop], below, rises):
            return int(start + _first_misplaced(indices[start:stop], below, rises))
    return -1


@kernel
def _in_place(ids: NDArray[Any], below: int, rises: bool) -> bool:
    """Whether all ids of a row are where they may be; compared at once, without branches."""
    least, most, falls = ids[0], ids[-1], 0
    if rises:
        for i in range(1, len(ids)):
            falls += ids[i] <= ids[i - 1]
    else:
        for i in range(len(ids)):
            least, most = min(least, ids[i]), max(most, ids[i])
    # Of unsigned 64 bits, the largest are negative here.
    return bool(falls == 0 and np.int64(least) >= 0 and 0 <= np.int64(most) < below)


@kernel
def _first_misplaced(ids: NDArray[Any], below: int, rises: bool) -> int:
    for i in range(len(ids)):
        number = np.int64(ids[i])
        if number < 0 or number >= below or (rises and i > 0 and ids[i] <= ids[i - 1]):
            return i
    return -1


def misplaced_numpy(
    indices: NDArray[Any], indptr: NDArray[np.int64], below: int, rises: bool
) -> int:
    """The same as :func:`misplaced` in NumPy."""
    numbers = indices.astype(np.int64)
    wrong = (numbers < 0) | (numbers >= below)
    if rises:
        falls = numbers[1:] <= numbers[:-1]
        starts = indptr[(indptr > 0) & (indptr < len(numbers))]
        falls[starts - 1] = False
        wrong[1:] |= falls
    return int(wrong.argmax()) if wrong.any() else -1


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


@kernel
def fill_dense(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    whole: bool,
    out: NDArray[Any],
) -> int:
    """Write the rows to `out` of n x n_vars, zeros included.

    Values of a column that comes twice in a row are added.

    Parameters
    ----------
    data, indices, indptr
        Rows in compressed sparse row form.
    whole
        Whether `out` holds integers, so that sums may overflow.
    out
        Output, of a dtype that holds every value.

    Returns
    -------
    int
        0; :data:`OUT_OF_RANGE` for a column outside; :data:`OVERFLOW` where `out` does not hold a
        sum.
    """
    n_vars = out.shape[1]
    for row in range(len(indptr) - 1):
        target = out[row]
        # A row is still in the core's cache when its values are written.
        target[:] = 0
        for k in range(indptr[row], indptr[row + 1]):
            column = np.int64(indices[k])
            if column < 0 or column >= n_vars:
                return OUT_OF_RANGE
            # To add to zero would lose the sign of another zero.
            before = target[column]
            target[column] = data[k] if before == 0 else before + data[k]
            if whole and before != 0 and (target[column] < before) != (data[k] < 0):
                return OVERFLOW
    return 0


def fill_dense_numpy(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    whole: bool,
    out: NDArray[Any],
) -> int:
    """The same as :func:`fill_dense` in NumPy."""
    out[:] = 0
    if len(indices) and int(indices.max()) >= out.shape[1]:
        return OUT_OF_RANGE
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    places = rows, indices.astype(np.int64)
    if whole:
        # As Python numbers, which do not overflow.
        sums = np.zeros(out.shape, object)
        np.add.at(sums, places, data.astype(object))
        limits = np.iinfo(out.dtype)
        if ((sums < limits.min) | (sums > limits.max)).any():
            return OVERFLOW
        out[:] = sums
        return 0
    np.add.at(out, places, data)
    is_zero = (data == 0) & (out[places] == 0)
    out[rows[is_zero], places[1][is_zero]] = data[is_zero]
    return 0


@kernel
def sum_values(values: Any, n: int) -> float:
    """The sum of the first values of an array, or of those at a pointer."""
    # Four sums, since an addition takes four cycles and each waits for the one before it.
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    whole = n - n % 4
    for k in range(0, whole, 4):
        a += values[k]
        b += values[k + 1]
        c += values[k + 2]
        d += values[k + 3]
    for k in range(whole, n):
        a += values[k]
    return (a + b) + (c + d)


@kernel
def sum_rows(data: NDArray[Any], indptr: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """Sum the values of each row."""
    for row in range(len(indptr) - 1):
        values = data[indptr[row] : indptr[row + 1]]
        out[row] = sum_values(values, len(values))


def sum_rows_numpy(data: NDArray[Any], indptr: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """The same as :func:`sum_rows` in NumPy."""
    for row, (start, stop) in enumerate(pairwise(indptr.tolist())):
        out[row] = data[start:stop].sum(dtype=np.float64)


@kernel
def scale_rows(
    data: NDArray[Any],
    indptr: NDArray[np.int64],
    totals: NDArray[np.float64],
    target: float,
    out: NDArray[Any],
) -> None:
    """Scale the values of each row by `target` over its total; rows whose total is 0 stay."""
    for row in range(len(indptr) - 1):
        values = data[indptr[row] : indptr[row + 1]]
        scaled = out[indptr[row] : indptr[row + 1]]
        scale = target / totals[row] if totals[row] != 0.0 else 1.0
        for k in range(len(values)):
            scaled[k] = values[k] * scale


def scale_rows_numpy(
    data: NDArray[Any],
    indptr: NDArray[np.int64],
    totals: NDArray[np.float64],
    target: float,
    out: NDArray[Any],
) -> None:
    """The same as :func:`scale_rows` in NumPy."""
    for start, stop, total in zip(indptr[:-1].tolist(), indptr[1:].tolist(), totals, strict=True):
        out[start:stop] = data[start:stop] * (target / total if total else 1.0)


@kernel
def fill_padded(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    keys: NDArray[Any],
    values: NDArray[Any],
    genes: NDArray[np.int64],
) -> None:
    """Write the values of each row and their columns to the front of rows of a fixed length.

    Parameters
    ----------
    data, indices, indptr
        Rows in compressed sparse row form.
    keys
        One a stored value: those with the least come first, equal ones in the order they have.
        None of them: values stay in the order they have.
    values, genes
        Outputs of rows x length, which hold the padding; what does not fit is left out.
    """
    length = values.shape[1]
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        n = min(stop - start, length)
        if len(keys):
            order = np.argsort(keys[start:stop], kind="mergesort")
            for k in range(n):
                values[row, k] = data[start + order[k]]
                genes[row, k] = indices[start + order[k]]
        else:
            for k in range(n):
                values[row, k] = data[start + k]
                genes[row, k] = indices[start + k]


def fill_padded_numpy(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    keys: NDArray[Any],
    values: NDArray[Any],
    genes: NDArray[np.int64],
) -> None:
    """The same as :func:`fill_padded` in NumPy."""
    for row, (start, stop) in enumerate(pairwise(indptr.tolist())):
        order = np.arange(stop - start)
        if len(keys):
            order = np.argsort(keys[start:stop], kind="stable")
        order = start + order[: values.shape[1]]
        values[row, : len(order)], genes[row, : len(order)] = data[order], indices[order]


@kernel
def sample_rows(
    indptr: NDArray[np.int64],
    most: int,
    key: np.uint64,
    chosen: NDArray[np.int64],
    chosen_indptr: NDArray[np.int64],
) -> None:
    """Draw at most so many entries of each row, each as likely as another, in rising order.

    Selection sampling: D. Knuth, The Art of Computer Programming 2, algorithm 3.4.2 S. The numbers
    are those of :func:`scdl.kernels.hashing.hashed`.

    Parameters
    ----------
    indptr
        n + 1 offsets from 0.
    most
        Entries of a row that are kept.
    key
        What the draws depend on, besides the number of the row and of the entry.
    chosen
        Output: the entries, as many as are kept.
    chosen_indptr
        Output: n + 1 offsets into `chosen`.
    """
    at = 0
    chosen_indptr[0] = 0
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        row_key = _spread(np.uint64(row) ^ key)
        wanted = min(stop - start, most)
        for k in range(start, stop):
            if not wanted:
                break
            drawn = _spread(np.uint64(k - start) ^ row_key) >> np.uint64(11)
            if np.float64(drawn) * 2.0**-53 * (stop - k) < wanted:
                chosen[at] = k
                at += 1
                wanted -= 1
        chosen_indptr[row + 1] = at


@kernel
def _spread(x: np.uint64) -> np.uint64:
    x += np.uint64(hashing.GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(hashing.FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(hashing.SECOND)
    return x ^ (x >> np.uint64(31))


def sample_rows_numpy(
    indptr: NDArray[np.int64],
    most: int,
    key: np.uint64,
    chosen: NDArray[np.int64],
    chosen_indptr: NDArray[np.int64],
) -> None:
    """The same as :func:`sample_rows` in NumPy."""
    keys = hashing.hashed(np.arange(len(indptr) - 1), int(key))
    kept: list[int] = []
    chosen_indptr[0] = 0
    for row, (start, stop) in enumerate(pairwise(indptr.tolist())):
        draws = hashing.uniform(hashing.hashed(np.arange(stop - start), int(keys[row])))
        wanted = min(stop - start, most)
        for k, drawn in enumerate(draws.tolist()):
            if drawn * (stop - start - k) < wanted:
                kept.append(start + k)
                wanted -= 1
        chosen_indptr[row + 1] = len(kept)
    chosen[: len(kept)] = kept


@kernel
def choose_by_weight(
    weights: NDArray[Any],
    indptr: NDArray[np.int64],
    draws: NDArray[np.float64],
    chosen: NDArray[np.int64],
) -> int:
    """Choose entries of rows in proportion to their weights.

    Parameters
    ----------
    weights
        Weights of the entries of all rows, one row after the other.
    indptr
        n + 1 offsets from 0.
    draws
        n x k numbers in [0, 1), each of which chooses one entry of its row.
    chosen
        Output, n x k: position of the entry within its row; -1 where no weight is above 0.

    Returns
    -------
    int
        The first entry whose weight is negative or not finite, or -1.
    """
    longest = 0
    for row in range(len(indptr) - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    ends = np.empty(longest, np.float64)
    for row in range(len(indptr) - 1):
        start, n = indptr[row], indptr[row + 1] - indptr[row]
        total = 0.0
        last = -1
        for j in range(n):
            weight = np.float64(weights[start + j])
            if not 0.0 <= weight < np.inf:
                return int(start + j)
            if weight > 0.0:
                last = j
            total += weight
            ends[j] = total
        for i in range(draws.shape[1]):
            # Rounding may reach the total itself, behind which only weights of zero can stand.
            drawn = draws[row, i] * total
            chosen[row, i] = min(np.searchsorted(ends[:n], drawn, side="right"), last)
    return -1


def choose_by_weight_numpy(
    weights: NDArray[Any],
    indptr: NDArray[np.int64],
    draws: NDArray[np.float64],
    chosen: NDArray[np.int64],
) -> int:
    """The same as :func:`choose_by_weight` in NumPy."""
    bad = np.flatnonzero(~((weights >= 0) & (weights < np.inf)))
    if len(bad):
        return int(bad[0])
    for row, (start, stop) in enumerate(pairwise(indptr.tolist())):
        ends = np.cumsum(weights[start:stop], dtype=np.float64)
        last = np.flatnonzero(weights[start:stop] > 0)[-1:]
        drawn = draws[row] * (ends[-1] if len(ends) else 0.0)
        found = np.searchsorted(ends, drawn, side="right")
        chosen[row] = np.minimum(found, last[0] if len(last) else -1)
    return -1
