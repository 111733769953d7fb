"""Copying rows from memory addresses into one batch while mapping them to a gene space.

Rows of several archives come from several memory mappings. The kernels take addresses, so that one
call handles all archives of a batch and writes rows in the order of the batch. Genes outside the
gene space are dropped during the copy, without a second pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.kernels import lanes
from scdl.kernels.lanes import LANES, map_lanes
from scdl.kernels.rows import pointer_in, pointer_to
from storage_backends.compute.jit import LINE, Int, fetch_ahead, fetch_line, helper, kernel
from storage_backends.compute.rowsort import count_bits

#: Returned if a column id is out of range for its feature block.
OUT_OF_RANGE = -1
#: Returned if a row has two values of the same gene.
REPEATED = -2
#: Constants to compute the bit and the word of a gene in a bitmap.
_ONE, _LOW, _HIGH = np.uint64(1), np.uint64(63), np.uint64(6)


@kernel
def map_values(
    ids: Any, values: Any, start: Int, stop: Int, table: Any, out_ids: Any, out: Any, at: Int
) -> Int:
    """Copy values and map their ids to genes; see :func:`~scdl.kernels.lanes.map_lanes`."""
    kept = np.uint64(at)
    for k in range(start, stop):
        new = table[np.uint64(ids[k])]
        # Always written, without a branch; overwritten by the next value if not kept.
        out[kept] = values[k]
        out_ids[kept] = new
        kept += np.uint64(new >= 0)
    return int(kept) - at


@kernel
def _map_one_by_one(
    ids: Any, values: Any, start: Int, table: Any, out_ids: Any, out: Any, at: Int
) -> Int:
    return map_values(ids, values, start, start + LANES, table, out_ids, out, at)


_map_lanes = map_lanes if lanes.IS_FAST else _map_one_by_one


@helper
def _map_row(
    rows: NDArray[np.int64],
    i: int,
    lookup: NDArray[np.int32],
    bounds: NDArray[np.int64],
    like: NDArray[Any],
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
    place: Int,
) -> Int:
    """Copy one row for :func:`map_rows`, and prefetch the next row.

    The output starts at `place` and must have room for the whole row. Returns the number of values
    that were kept, or :data:`OUT_OF_RANGE`.
    """
    length, first = rows[i, 2], bounds[rows[i, 3]]
    values, ids = pointer_to(rows[i, 0], out_data), pointer_to(rows[i, 1], like)
    if not _all_below(ids, length, bounds[rows[i, 3] + 1] - first):
        return OUT_OF_RANGE
    table = pointer_in(lookup, first)
    out, out_ids = pointer_in(out_data, place), pointer_in(out_indices, place)
    following = min(i + 1, len(rows) - 1)
    next_values, value_bytes = rows[following, 0], rows[following, 2] * out_data.itemsize
    next_ids, id_bytes = rows[following, 1], rows[following, 2] * like.itemsize
    kept, whole, fetched = 0, length - length % LANES, 0
    for k in range(0, whole, LANES):
        # Prefetch gradually: a core supports only a limited number of outstanding cache lines.
        fetch_line(next_values + min(fetched, value_bytes))
        fetch_line(next_ids + min(fetched, id_bytes))
        fetched += LINE
        kept += _map_lanes(ids, values, k, table, out_ids, out, kept)
    fetch_ahead(next_values + fetched, value_bytes - fetched)
    fetch_ahead(next_ids + fetched, id_bytes - fetched)
    return kept + map_values(ids, values, whole, length, table, out_ids, out, kept)


@kernel
def map_rows(
    rows: NDArray[np.int64],
    lookup: NDArray[np.int32],
    bounds: NDArray[np.int64],
    like: NDArray[Any],
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
) -> int:
    """Copy rows into another gene space, keeping the order of their values.

    Parameters
    ----------
    rows
        n x 4: address of the values of each row, address of its column ids, number of values
        (replaced by the number of kept values), and index of its table in `lookup`.
    lookup
        Concatenated lookup tables: position of each gene in the gene space, -1 if not included.
    bounds
        Offsets of the tables and the end of the last.
    like
        Any array with the dtype of the column ids.
    out_data, out_indices
        Outputs with room for all values of all rows; `out_data` has the dtype of the values. If
        genes are left out, the ends of the outputs are unused.

    Returns
    -------
    int
        0, or :data:`OUT_OF_RANGE`.
    """
    place = 0
    for i in range(len(rows)):
        kept = _map_row(rows, i, lookup, bounds, like, out_data, out_indices, place)
        if kept == OUT_OF_RANGE:
            return OUT_OF_RANGE
        rows[i, 2] = kept
        place += kept
    return 0


@helper
def _all_below(ids: Any, length: int, n: int) -> bool:
    """Whether all ids are in ``[0, n)``; checked first so that later loops need no checks."""
    if length == 0:
        return True
    least, most = ids[0], ids[0]
    for k in range(length):
        least, most = min(least, ids[k]), max(most, ids[k])
    return bool(least >= 0 and np.uint64(most) < np.uint64(n))


@kernel
def map_rows_sorted(
    rows: NDArray[np.int64],
    lookup: NDArray[np.int32],
    bounds: NDArray[np.int64],
    like: NDArray[Any],
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
    n_columns: int,
) -> int:
    """Like :func:`map_rows`, but sort the genes of each row.

    Parameters
    ----------
    n_columns
        Number of genes in the gene space.

    Returns
    -------
    int
        0, :data:`OUT_OF_RANGE`, or :data:`REPEATED` if a row has two values of the same gene.
        Unless it is 0, the contents of `rows` and the outputs are undefined.
    """
    longest = 0
    for i in range(len(rows)):
        longest = max(longest, rows[i, 2])
    values, genes = np.empty(longest, out_data.dtype), np.empty(longest, np.int32)
    seen = np.zeros(n_columns // 64 + 1, np.uint64)
    before = np.empty(len(seen), np.int64)
    place = 0
    for i in range(len(rows)):
        kept = _map_row(rows, i, lookup, bounds, like, values, genes, 0)
        if kept == OUT_OF_RANGE:
            return OUT_OF_RANGE
        if not _mark(genes, kept, seen, before):
            return REPEATED
        target, target_ids = pointer_in(out_data, place), pointer_in(out_indices, place)
        for k in range(kept):
            gene = np.uint64(genes[k])
            below = seen[gene >> _HIGH] & ((_ONE << (gene & _LOW)) - _ONE)
            at = np.uint64(before[gene >> _HIGH]) + count_bits(below)
            target[at] = values[k]
            target_ids[at] = gene
        seen[:] = np.uint64(0)
        rows[i, 2] = kept
        place += kept
    return 0


@kernel
def _mark(
    genes: NDArray[np.int32], n: int, seen: NDArray[np.uint64], before: NDArray[np.int64]
) -> bool:
    """Set the bit of each gene and count the bits before each word; whether genes are unique.

    The sorted position of a gene is the number of bits below its own.
    """
    for k in range(n):
        gene = np.uint64(genes[k])
        seen[gene >> _HIGH] |= _ONE << (gene & _LOW)
    count = 0
    for word in range(len(seen)):
        before[word] = count
        count += int(count_bits(seen[word]))
    return count == n
