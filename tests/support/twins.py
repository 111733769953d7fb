"""Compiled kernels again in NumPy, for the tests to compare them with.

Each function has the name, parameters and results of its kernel.
"""

from __future__ import annotations

import ctypes
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.kernels import hashing
from scdl.kernels.dense import OVERFLOW
from scdl.kernels.genes import OUT_OF_RANGE, REPEATED
from storage_backends.zarr.plan import Bound, ChunkPlan


def _array_at(address: int, length: int, like: NDArray[Any]) -> NDArray[Any]:
    """Copy numbers from an address to a new array."""
    return np.frombuffer(ctypes.string_at(address, length * like.itemsize), like.dtype)


def _shifted(x: NDArray[np.uint64], by: NDArray[np.uint64], n: np.uint64) -> NDArray[np.uint64]:
    """``(x + by) % n`` for numbers below `n`; uses that unsigned differences wrap around."""
    by += x
    np.minimum(by, by - n, out=by)
    return by


def _stir(x: NDArray[np.uint64], key: np.uint64, n: np.uint64) -> NDArray[np.uint64]:
    """Hash numbers and a key to numbers below `n`, which must be less than 2**32."""
    x = x ^ key
    x *= np.uint64(hashing.FIRST)
    x ^= x >> np.uint64(32)
    x *= np.uint64(hashing.SECOND)
    x >>= np.uint64(32)
    x *= n
    x >>= np.uint64(32)
    return x


def sample_rows(
    indptr: NDArray[np.int64],
    most: int,
    key: np.uint64,
    chosen: NDArray[np.int64],
    chosen_indptr: NDArray[np.int64],
) -> None:
    keys = hashing.hashed(np.arange(len(indptr) - 1), int(key))
    sampled: list[int] = []
    chosen_indptr[0] = 0
    for row, (start, stop) in enumerate(pairwise(indptr.tolist())):
        draws = hashing.uniform(hashing.hashed(np.arange(stop - start), int(keys[row])))
        wanted = min(stop - start, most)
        for k, drawn in enumerate(draws.tolist()):
            if drawn * (stop - start - k) < wanted:
                sampled.append(start + k)
                wanted -= 1
        chosen_indptr[row + 1] = len(sampled)
    chosen[: len(sampled)] = sampled


def choose_by_weight(
    weights: NDArray[Any],
    indptr: NDArray[np.int64],
    draws: NDArray[np.float64],
    chosen: NDArray[np.int64],
) -> int:
    bad = np.flatnonzero(~((weights >= 0) & (weights < np.inf)))
    if len(bad):
        return int(bad[0])
    for row, (start, stop) in enumerate(pairwise(indptr.tolist())):
        ends = np.cumsum(weights[start:stop], dtype=np.float64)
        last = np.flatnonzero(weights[start:stop] > 0)[-1:]
        drawn = draws[row] * (ends[-1] if len(ends) else 0.0)
        positions = np.searchsorted(ends, drawn, side="right")
        chosen[row] = np.minimum(positions, last[0] if len(last) else -1)
    return -1


def fill_dense(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    whole: bool,
    out: NDArray[Any],
) -> int:
    out[:] = 0
    if len(indices) and int(indices.max()) >= out.shape[1]:
        return OUT_OF_RANGE
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    places = rows, indices.astype(np.int64)
    if whole:
        # Sum as Python integers, which do not overflow.
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


def sum_rows(data: NDArray[Any], indptr: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    for row, (start, stop) in enumerate(pairwise(indptr.tolist())):
        out[row] = data[start:stop].sum(dtype=np.float64)


def scale_rows(
    data: NDArray[Any],
    indptr: NDArray[np.int64],
    totals: NDArray[np.float64],
    target: float,
    out: NDArray[Any],
) -> None:
    for start, stop, total in zip(indptr[:-1].tolist(), indptr[1:].tolist(), totals, strict=True):
        out[start:stop] = data[start:stop] * (target / total if total else 1.0)


def take_columns(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    n_vars: int,
    columns: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    dense = np.zeros((len(out), n_vars + 1), out.dtype)
    dense[np.repeat(np.arange(len(out)), np.diff(indptr)), indices.astype(np.int64)] = data
    out[:] = np.take_along_axis(dense, columns, axis=1)


def fill_padded(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    keys: NDArray[Any],
    values: NDArray[Any],
    genes: NDArray[np.int64],
) -> None:
    for row, (start, stop) in enumerate(pairwise(indptr.tolist())):
        order = np.arange(stop - start)
        if len(keys):
            order = np.argsort(keys[start:stop], kind="stable")
        order = start + order[: values.shape[1]]
        values[row, : len(order)], genes[row, : len(order)] = data[order], indices[order]


def map_rows(
    rows: NDArray[np.int64],
    lookup: NDArray[np.int32],
    bounds: NDArray[np.int64],
    like: NDArray[Any],
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
) -> int:
    place = 0
    for i, (data, indices, length, table) in enumerate(rows.tolist()):
        ids = _array_at(indices, length, like).astype(np.int64)
        genes = lookup[bounds[table] : bounds[table + 1]]
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(genes):
            return OUT_OF_RANGE
        new = genes[ids]
        rows[i, 2] = (new >= 0).sum()
        stop = place + int(rows[i, 2])
        out_data[place:stop] = _array_at(data, length, out_data)[new >= 0]
        out_indices[place:stop] = new[new >= 0]
        place = stop
    return 0


def map_rows_sorted(
    rows: NDArray[np.int64],
    lookup: NDArray[np.int32],
    bounds: NDArray[np.int64],
    like: NDArray[Any],
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
    n_columns: int,
) -> int:
    if map_rows(rows, lookup, bounds, like, out_data, out_indices) == OUT_OF_RANGE:
        return OUT_OF_RANGE
    place = 0
    for length in rows[:, 2].tolist():
        part = slice(place, place + length)
        order = np.argsort(out_indices[part], kind="stable")
        out_data[part], out_indices[part] = out_data[part][order], out_indices[part][order]
        if (out_indices[part][1:] == out_indices[part][:-1]).any():
            return REPEATED
        place += length
    return 0


def permuted(at: NDArray[np.int64], n: int, key: int) -> NDArray[np.int64]:
    high, low, keys = hashing._network(n, key)

    def walk(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left = x // low
        right = x - left * low
        for i in range(0, len(keys), 2):
            left = _shifted(left, _stir(right, keys[i], high), high)
            right = _shifted(right, _stir(left, keys[i + 1], low), low)
        return left * low + right

    out = walk(at.view(np.uint64))
    outside = np.flatnonzero(out >= np.uint64(n))
    while len(outside):
        out[outside] = walk(out[outside])
        outside = outside[out[outside] >= np.uint64(n)]
    return out.view(np.int64)


def row_order(
    indptr: NDArray[np.int64], indices: NDArray[Any], n_vars: int, order: NDArray[np.int64]
) -> int:
    if len(indices) and int(indices.max()) >= n_vars:
        return OUT_OF_RANGE
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order[:] = np.lexsort((indices, rows))
    falls = indices[1:] < indices[:-1]
    return len(np.unique(rows[1:][falls & (rows[1:] == rows[:-1])]))


def misplaced(indices: NDArray[Any], indptr: NDArray[np.int64], below: int, rises: bool) -> int:
    numbers = indices.astype(np.int64)
    wrong = (numbers < 0) | (numbers >= below)
    if rises:
        falls = numbers[1:] <= numbers[:-1]
        starts = indptr[(indptr > 0) & (indptr < len(numbers))]
        falls[starts - 1] = False
        wrong[1:] |= falls
    return int(wrong.argmax()) if wrong.any() else -1


def find_archives(
    at: NDArray[np.int64],
    starts: NDArray[np.int64],
    which: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> None:
    which[:] = np.searchsorted(starts, at, side="right") - 1
    rows[:] = at - starts[which]


def locate_rows(
    which: NDArray[np.int64],
    rows: NDArray[np.int64],
    arrays: NDArray[np.int64],
    value_bytes: int,
    id_bytes: int,
    out: NDArray[np.int64],
    indptr: NDArray[np.int64],
) -> int:
    for i, (number, row) in enumerate(zip(which.tolist(), rows.tolist(), strict=True)):
        data, indices, offsets, size, n_values = arrays[number].tolist()
        if size:
            pair = _array_at(offsets + row * size, 2, np.empty(0, f"u{size}")).astype(np.int64)
            start, stop = pair.tolist()
            if start < 0 or stop < start or stop > n_values:
                return i
            out[i, :3] = data + start * value_bytes, indices + start * id_bytes, stop - start
    indptr[:] = np.concatenate([[0], np.cumsum(out[:, 2])])
    return -1


def copy_rows(
    rows: NDArray[np.int64],
    indptr: NDArray[np.int64],
    like: NDArray[Any],
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
) -> np.uint64:
    largest = 0
    for i, (data, indices, length, _) in enumerate(rows.tolist()):
        part, ids = slice(indptr[i], indptr[i + 1]), _array_at(indices, length, like)
        out_data[part], out_indices[part] = _array_at(data, length, out_data), ids
        largest = max(largest, int(ids.max(initial=0)))
    return np.uint64(largest)


def sum_addressed_rows(
    rows: NDArray[np.int64], like: NDArray[Any], out: NDArray[np.float64]
) -> None:
    for i, (address, _, length, _) in enumerate(rows.tolist()):
        out[i] = _array_at(address, length, like).sum(dtype=np.float64)


def translate(
    ids: NDArray[np.int64],
    values: NDArray[Any],
    indptr: NDArray[np.int64],
    places: NDArray[np.int32],
    out_ids: NDArray[np.unsignedinteger[Any]],
    out: NDArray[Any],
) -> int:
    known = (ids >= 0) & (ids < len(places))
    found = np.full(len(ids), -1, np.int32)
    found[known] = places[ids[known]]
    kept = found >= 0
    indptr[:] = np.concatenate([[0], np.cumsum(kept)])[indptr]
    out_ids[: indptr[-1]], out[: indptr[-1]] = found[kept], values[kept]
    return int(indptr[-1])


def total_length(starts: NDArray[np.int64], stops: NDArray[np.int64], limit: int) -> int:
    bad = (starts < 0) | (stops < starts) | (stops > limit)
    return -1 - int(bad.argmax()) if bad.any() else int((stops - starts).sum())


def sort_rows(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    n_columns: int,
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
) -> int:
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


def gather_ranges(
    source: NDArray[Any], starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]
) -> None:
    lengths = stops - starts
    ends = np.cumsum(lengths)
    out[:] = source[np.arange(len(out)) + np.repeat(starts - (ends - lengths), lengths)]


def plan(
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    targets: NDArray[np.int64],
    chunk_length: int,
) -> ChunkPlan:
    lengths = stops - starts
    if not lengths.all():
        kept = lengths > 0
        starts, stops, targets = starts[kept], stops[kept], targets[kept]
    first = starts // chunk_length
    spans = (stops - 1) // chunk_length - first + 1
    # One piece for every chunk that a range touches.
    range_of = np.repeat(np.arange(len(starts)), spans)
    chunk_of = np.arange(len(range_of)) - np.repeat(np.cumsum(spans) - spans - first, spans)
    order = np.argsort(chunk_of, kind="stable")
    range_of, chunk_of = range_of[order], chunk_of[order]
    edges = chunk_of * chunk_length
    begin = np.maximum(starts[range_of], edges)
    end = np.minimum(stops[range_of], edges + chunk_length)
    targets = targets[range_of] + begin - starts[range_of]
    sources, lengths = begin - edges, end - begin
    first = np.flatnonzero(np.diff(chunk_of, prepend=-1))
    ends = sources + lengths
    needed = np.maximum.reduceat(ends, first) if len(first) else ends
    bounds = np.append(first, len(chunk_of))
    return ChunkPlan(chunk_of[first], bounds, sources, targets, lengths, needed)


def place(
    chunks: NDArray[Any],
    bounds: NDArray[np.int64],
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    lengths: NDArray[np.int64],
    bound: Bound,
    out: NDArray[Any],
) -> int:
    for row, chunk in enumerate(chunks):
        for i in range(bounds[row], bounds[row + 1]):
            piece = chunk[sources[i] : sources[i] + lengths[i]]
            if bound.below and ((piece < 0) | (piece >= bound.below)).any():
                return row
            target = slice(targets[i], targets[i] + lengths[i])
            out[target] = bound.mapping[piece] if len(bound.mapping) else piece
    return -1


def undo_delta(values: NDArray[Any]) -> None:
    np.cumsum(values, axis=1, out=values)
