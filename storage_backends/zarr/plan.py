"""Planning which chunks to read for ranges of an array, and copying from them: pure functions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import kernel

#: Bounds, sources, targets and lengths of pieces of consecutive chunks, see :class:`ChunkPlan`.
ChunkPieces = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class ChunkPlan(NamedTuple):
    """Pieces of chunks to copy, ordered by chunk.

    Attributes
    ----------
    chunks
        Number of each chunk to read, in ascending order.
    bounds
        Offsets into the pieces: those of ``chunks[i]`` are ``bounds[i]`` to ``bounds[i + 1]``.
    sources, targets, lengths
        Position in the chunk, position in the output, and length of each piece.
    needed
        Length of each chunk up to the end of its last piece.
    """

    chunks: NDArray[np.int64]
    bounds: NDArray[np.int64]
    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    needed: NDArray[np.int64]


def plan(
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    targets: NDArray[np.int64],
    chunk_length: int,
) -> ChunkPlan:
    """Split ranges at the edges of chunks and group the pieces by chunk.

    Parameters
    ----------
    starts, stops, targets
        Half-open ranges of numbers, and the position of each in the output.
    chunk_length
        Numbers per chunk.
    """
    # At most: a range that begins and ends within chunks has one piece more than it fills chunks.
    most = 2 * len(starts) + int((stops - starts).sum()) // chunk_length
    pieces = np.empty((4, most), np.int64)
    n = _cut(starts, stops, targets, chunk_length, pieces)
    by_chunk, found = np.empty((3, n), np.int64), np.empty((3, n + 1), np.int64)
    n_chunks = _group(pieces, pieces[0, :n].argsort(kind="stable"), by_chunk, found)
    (chunks, bounds, needed), (sources, targets, lengths) = found, by_chunk
    edges = bounds[: n_chunks + 1]
    return ChunkPlan(chunks[:n_chunks], edges, sources, targets, lengths, needed[:n_chunks])


@kernel
def _cut(
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    targets: NDArray[np.int64],
    chunk_length: int,
    pieces: NDArray[np.int64],
) -> int:
    """Write the chunk, source, target and length of the pieces of ranges; returns their number."""
    n = 0
    for i in range(len(starts)):
        position, target = starts[i], targets[i]
        while position < stops[i]:
            chunk = position // chunk_length
            end = min(stops[i], (chunk + 1) * chunk_length)
            pieces[0, n], pieces[1, n] = chunk, position - chunk * chunk_length
            pieces[2, n], pieces[3, n] = target, end - position
            target += end - position
            position, n = end, n + 1
    return n


@kernel
def _group(
    pieces: NDArray[np.int64],
    order: NDArray[np.int64],
    by_chunk: NDArray[np.int64],
    found: NDArray[np.int64],
) -> int:
    """Write pieces in an order by chunk, and chunks, bounds and needed; returns their number."""
    n, last = 0, np.int64(-1)
    for i in range(len(order)):
        piece = order[i]
        if pieces[0, piece] != last:
            last = pieces[0, piece]
            found[0, n], found[1, n], found[2, n] = last, i, 0
            n += 1
        for part in range(3):
            by_chunk[part, i] = pieces[1 + part, piece]
        found[2, n - 1] = max(found[2, n - 1], by_chunk[0, i] + by_chunk[2, i])
    found[1, n] = len(order)
    return n


class Bound(NamedTuple):
    """Bounds that the numbers of an array must satisfy, and their replacements.

    Attributes
    ----------
    below
        Every number must be at least 0 and less than this; 0 disables the check.
    mapping
        Replacement of each number, `below` items; empty to keep the numbers.
    """

    below: int
    mapping: NDArray[Any]

    @classmethod
    def of(cls, below: int = 0, mapping: NDArray[Any] | None = None) -> Bound:
        """The bound of a mapping, or of numbers that stay as they are."""
        if mapping is None:
            # Of the type that frames take, as a kernel is compiled for each type.
            return cls(below, np.empty(0, np.uint32))
        return cls(len(mapping), mapping)


def place(
    chunks: NDArray[Any],
    bounds: NDArray[np.int64],
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    lengths: NDArray[np.int64],
    bound: Bound,
    out: NDArray[Any],
) -> int:
    """Copy pieces of chunks to `out`, whose type may be wider.

    Parameters
    ----------
    chunks
        Decoded chunks, one per row.
    bounds
        Offsets into the pieces, one more than there are chunks.
    sources, targets, lengths
        The pieces of a :class:`ChunkPlan`.

    Returns
    -------
    int
        Position of the first chunk with a number out of bounds, or -1.
    """
    if bound.below:
        return _place_bounded(chunks, bounds, sources, targets, lengths, *bound, out)
    _place(chunks, bounds, sources, targets, lengths, out)
    return -1


@kernel
def _place(
    chunks: NDArray[Any],
    bounds: NDArray[np.int64],
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    lengths: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    """Copy pieces; divided from the copy with bounds since each type is compiled separately."""
    for row in range(len(chunks)):
        for i in range(bounds[row], bounds[row + 1]):
            piece = chunks[row, sources[i] : sources[i] + lengths[i]]
            target = out[targets[i] : targets[i] + lengths[i]]
            for k in range(len(target)):
                target[k] = piece[k]


@kernel
def _place_bounded(
    chunks: NDArray[Any],
    bounds: NDArray[np.int64],
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    lengths: NDArray[np.int64],
    below: int,
    mapping: NDArray[Any],
    out: NDArray[Any],
) -> int:
    for row in range(len(chunks)):
        for i in range(bounds[row], bounds[row + 1]):
            piece = chunks[row, sources[i] : sources[i] + lengths[i]]
            target = out[targets[i] : targets[i] + lengths[i]]
            # One comparison per piece: a branch per number costs more than the copy.
            least = most = piece[0]
            for k in range(len(piece)):
                number = piece[k]
                least = number if number < least else least
                most = number if number > most else most
            if least < 0 or most >= below:
                return row
            if len(mapping):
                for k in range(len(target)):
                    target[k] = mapping[np.uint64(piece[k])]
            else:
                for k in range(len(target)):
                    target[k] = piece[k]
    return -1
