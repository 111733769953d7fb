"""Reading rows of sparse matrices whose values and ids are in frames, both at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.capabilities import RowsRead
from storage_backends.compute.threads import for_each, n_threads
from storage_backends.zarr.chunks.reading import ZarrArray
from storage_backends.zarr.codecs import blosc, frame_rows
from storage_backends.zarr.codecs.packed import kind_of

#: Most rows whose chunks are in memory at once.
_WINDOW_ROWS = 4096
#: Groups of rows for each thread, so that threads end at about the same time, and the least numbers
#: of a group.
_GROUPS_PER_THREAD, _LEAST_NUMBERS = 3, 1 << 15


def _are_together(
    values: Sequence[ZarrArray], ids: Sequence[ZarrArray], out: tuple[NDArray[Any], NDArray[Any]]
) -> bool:
    """Whether the arrays of matrices are in frames of equal chunks, and of the type to read."""
    equal = [len({array.kind for array in arrays}) == 1 for arrays in (values, ids)]
    pairs = list(zip(values, ids, strict=True))
    return all(equal) and all(
        one.reader.framed
        and other.reader.framed
        and (one.chunk_rows, one.spec.length) == (other.chunk_rows, other.spec.length)
        and one.reader.dtype == out[0].dtype
        and other.reader.dtype.itemsize <= out[1].dtype.itemsize
        for one, other in pairs
    )


def read(
    values: Sequence[ZarrArray],
    ids: Sequence[ZarrArray],
    which: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    out: tuple[NDArray[Any], NDArray[Any]],
    *,
    ordered: bool,
) -> RowsRead:
    """Read checked ranges, sorted if they should be `ordered`.

    Nothing is read if the arrays are not in frames, or if a chunk is damaged: reading one array
    after the other tells which.

    Parameters
    ----------
    values, ids
        The arrays of each matrix.
    which
        The matrix of each range.
    """
    n_columns = ids[0].bound.below if ordered else 0
    if (ordered and not n_columns) or not _are_together(values, ids, out):
        return RowsRead.NOTHING
    length, n = values[0].chunk_rows, len(starts)
    targets = np.cumsum(stops - starts)
    n_numbers = int(targets[-1]) if n else 0
    targets -= stops - starts
    n_chunks = np.array([-(-array.spec.length // length) for array in values])
    first = np.cumsum(n_chunks) - n_chunks
    if len(values) > 1:
        base = first[which] * length
        starts, stops = starts + base, stops + base
    bits = tuple(part.view(f"u{part.itemsize}") for part in out)
    order, results = np.argsort(starts, kind="stable"), []
    for row in range(0, n, _WINDOW_ROWS):
        window = order[row : row + _WINDOW_ROWS]
        most = 2 * len(window) + n_numbers // length
        bounds, distinct = np.empty(len(window) + 1, np.int64), np.empty(most, np.int64)
        pieces = np.empty((4, most), np.int64)
        n_distinct = frame_rows.cut_rows(
            window, starts, stops, targets, length, bounds, pieces, distinct
        )
        if n_distinct:
            chunks, rows = distinct[:n_distinct], (bounds, pieces, bits)
            results.append(_decode(values, ids, first, chunks, rows, n_columns))
    if frame_rows.DAMAGED in results:
        return RowsRead.NOTHING
    return RowsRead.AS_STORED if frame_rows.STORED in results else RowsRead.SORTED


def _decode(
    values: Sequence[ZarrArray],
    ids: Sequence[ZarrArray],
    first: NDArray[np.int64],
    chunks: NDArray[np.int64],
    rows: tuple[NDArray[np.int64], NDArray[np.int64], tuple[NDArray[Any], ...]],
    n_columns: int,
) -> int:
    """Fetch chunks and decode rows; the result is that of the kernel.

    Parameters
    ----------
    first
        The number of the first chunk of each array.
    rows
        The rows as :func:`~.frame_rows.cut_rows` returns them, and the outputs.
    """
    bounds, pieces, out = rows
    which = np.searchsorted(first, chunks, side="right") - 1
    fetched, places, types = [], np.empty((4, len(chunks)), np.int64), list[int]()
    for k, arrays in enumerate((values, ids)):
        readers = [reader for array in arrays if (reader := array.reader.framed)]
        fetched.append(readers[0].fetch(readers, which, chunks - first[which]).content())
        places[2 * k], places[2 * k + 1] = fetched[k].addresses, fetched[k].lengths
        types += [readers[0].dtype.itemsize, kind_of(readers[0].dtype)]
    below, mapping = ids[0].bound
    settings: tuple[Any, ...] = (
        bounds,
        pieces,
        values[0].chunk_rows,
        places,
        np.array(types),
        below,
        mapping.astype(np.uint32, copy=False),
        n_columns,
        *out,
    )
    n_groups = 1
    if n_threads() > 1:
        n_groups = min(_GROUPS_PER_THREAD * n_threads(), 1 + len(out[0]) // _LEAST_NUMBERS)
    edges = np.linspace(0, len(bounds) - 1, n_groups + 1).astype(np.int64).tolist()
    results: list[int] = []

    def decode(group: int) -> None:
        ends = edges[group], edges[group + 1]
        results.append(int(frame_rows.decode_rows(blosc.CRC32C, *ends, *settings)))

    for_each(decode, range(n_groups))
    if frame_rows.DAMAGED in results:
        return frame_rows.DAMAGED
    return min(results)
