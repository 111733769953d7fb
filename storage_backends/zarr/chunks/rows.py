"""Reading rows of sparse matrices whose values and ids are in frames, both at once.

They are decoded here, or their frames are gathered to be decoded elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage_backends.capabilities import RowsRead
from storage_backends.compute.threads import for_each, n_threads
from storage_backends.directory.content import Content
from storage_backends.encoded import Allocate, EncodedRows
from storage_backends.zarr.chunks.reading import ZarrArray
from storage_backends.zarr.codecs import blosc, frame_gathering, frame_rows
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
    bits = tuple(part.view(f"u{part.itemsize}") for part in out)
    ranges, results = _Ranges.of(values, which, starts, stops), []
    for row in range(0, len(starts), _WINDOW_ROWS):
        cut = ranges.cut(slice(row, row + _WINDOW_ROWS))
        if len(cut.chunks):
            results.append(_decode(values, ids, cut, bits, n_columns))
    if frame_rows.DAMAGED in results:
        return RowsRead.NOTHING
    return RowsRead.AS_STORED if frame_rows.STORED in results else RowsRead.SORTED


class _Cut(NamedTuple):
    """Rows that are cut at the edges of chunks, see :func:`~.frame_rows.cut_rows`.

    Attributes
    ----------
    bounds, pieces
        Offsets into the pieces, and the pieces.
    which, chunks
        The array of each chunk, and its number there.
    """

    bounds: NDArray[np.int64]
    pieces: NDArray[np.int64]
    which: NDArray[np.int64]
    chunks: NDArray[np.int64]

    def fetch(self, values: Sequence[ZarrArray], ids: Sequence[ZarrArray]) -> Content:
        """The encoded chunks of values, then those of ids."""
        readers = [reader for array in (*values, *ids) if (reader := array.reader.framed)]
        which = np.concatenate([self.which, self.which + len(values)])
        return readers[0].fetch(readers, which, np.tile(self.chunks, 2)).content()


class _Ranges(NamedTuple):
    """Ranges of arrays in frames, whose chunks are numbered as if the arrays were one.

    Attributes
    ----------
    order
        The ranges by ascending starts.
    starts, stops, targets
        First and last item of each, and its position in the output.
    n_items, chunk_length
        Items of all ranges, and of each chunk.
    first
        The number of the first chunk of each array.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    targets: NDArray[np.int64]
    n_items: int
    chunk_length: int
    first: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        arrays: Sequence[ZarrArray],
        which: NDArray[np.int64],
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
    ) -> _Ranges:
        length = arrays[0].chunk_rows
        lengths = stops - starts
        targets = np.cumsum(lengths)
        n_items = int(targets[-1]) if len(targets) else 0
        targets -= lengths
        n_chunks = np.array([-(-array.spec.length // length) for array in arrays])
        first = np.cumsum(n_chunks) - n_chunks
        if len(arrays) > 1:
            base = first[which] * length
            starts, stops = starts + base, stops + base
        order = np.argsort(starts, kind="stable")
        return cls(order, starts, stops, targets, n_items, length, first)

    def cut(self, window: slice) -> _Cut:
        """Cut the ranges of a part of the order."""
        order, starts, stops, targets, n_items, length, first = self
        order = order[window]
        most = 2 * len(order) + n_items // length
        bounds, distinct = np.empty(len(order) + 1, np.int64), np.empty(most, np.int64)
        pieces = np.empty((4, most), np.int64)
        n = frame_rows.cut_rows(order, starts, stops, targets, length, bounds, pieces, distinct)
        chunks = distinct[:n]
        which = np.searchsorted(first, chunks, side="right") - 1
        return _Cut(bounds, pieces, which, chunks - first[which])


def _decode(
    values: Sequence[ZarrArray],
    ids: Sequence[ZarrArray],
    cut: _Cut,
    out: tuple[NDArray[Any], ...],
    n_columns: int,
) -> int:
    """Fetch chunks and decode rows; the result is that of the kernel."""
    fetched = cut.fetch(values, ids)
    places = np.empty((4, len(cut.chunks)), np.int64)
    places[::2], places[1::2] = (part.reshape(2, -1) for part in fetched[:2])
    below, mapping = ids[0].bound
    settings: tuple[Any, ...] = (
        cut.bounds,
        cut.pieces,
        values[0].chunk_rows,
        places,
        np.array([*_item(values), *_item(ids)]),
        below,
        mapping.astype(np.uint32, copy=False),
        n_columns,
        *out,
    )
    n_groups = 1
    if n_threads() > 1:
        n_groups = min(_GROUPS_PER_THREAD * n_threads(), 1 + len(out[0]) // _LEAST_NUMBERS)
    edges = np.linspace(0, len(cut.bounds) - 1, n_groups + 1).astype(np.int64).tolist()
    results: list[int] = []

    def decode(group: int) -> None:
        ends = edges[group], edges[group + 1]
        results.append(int(frame_rows.decode_rows(blosc.CRC32C, *ends, *settings)))

    for_each(decode, range(n_groups))
    if frame_rows.DAMAGED in results:
        return frame_rows.DAMAGED
    return min(results)


def _item(arrays: Sequence[ZarrArray]) -> tuple[int, int]:
    """Bytes and kind of the stored items of arrays of one type."""
    dtype = arrays[0].reader.dtype
    return dtype.itemsize, kind_of(dtype)


def encoded(
    values: Sequence[ZarrArray],
    ids: Sequence[ZarrArray],
    which: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    allocate: Allocate,
) -> EncodedRows | None:
    """Gather the frames of checked ranges; None as for :func:`read`, and if ids are unbounded.

    Checksums are checked here, where the processor has an instruction for them and copies the bytes
    anyway.
    """
    dtype, (below, mapping) = values[0].reader.dtype, ids[0].bound
    if not below or not _are_together(values, ids, (np.empty(0, dtype), np.empty(0, np.uint32))):
        return None
    cut = _Ranges.of(values, which, starts, stops).cut(slice(None))
    pieces = cut.pieces[:, : cut.bounds[-1]]
    parts, n_frames, n_bytes = [], [], 0
    fetched = cut.fetch(values, ids)
    for part in (slice(0, len(cut.chunks)), slice(len(cut.chunks), None)):
        places = np.stack([fetched.addresses[part], fetched.lengths[part]])
        found = np.empty((pieces.shape[1], 3), np.int64)
        n, n_more = frame_gathering.count_frames(
            blosc.CRC32C, pieces, places, values[0].chunk_rows, found
        )
        if n == frame_gathering.DAMAGED:
            return None
        parts.append((places, found))
        n_frames.append(n)
        n_bytes += n_more
    row_bytes = frame_gathering.N_COLUMNS * np.dtype(np.int64).itemsize
    at = sum(n_frames) * row_bytes
    content = allocate(at + n_bytes)
    table = content[:at].view(np.int64).reshape(-1, frame_gathering.N_COLUMNS)
    for k, (places, found) in enumerate(parts):
        rows = table[sum(n_frames[:k]) : sum(n_frames[: k + 1])]
        at = frame_gathering.copy_frames(blosc.CRC32C, pieces, places, found, rows, content, at)
        if at == frame_gathering.DAMAGED:
            return None

    def decode(*arrays: Any) -> None:
        # Imported only where it is needed: numba.cuda takes a while.
        from storage_backends.zarr.codecs import frame_cuda

        items = _item(values), _item(ids)
        frame_cuda.decode_rows(n_frames[0], sum(n_frames), items, below, *arrays)

    return EncodedRows(content[:at], mapping, dtype, decode)
