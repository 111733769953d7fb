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
    most = 2 * len(starts) + int(np.add.reduce(stops - starts)) // chunk_length
    pieces = np.empty((4, most), np.int64)
    n = _cut(starts, stops, targets, chunk_length, *pieces)
    return _grouped(*pieces.take(np.argsort(pieces[0, :n], kind="stable"), axis=1))


def _grouped(
    chunk_of: NDArray[np.int64],
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> ChunkPlan:
    """The plan of pieces that are ordered by chunk."""
    first = np.flatnonzero(np.diff(chunk_of, prepend=-1))
    ends = sources + lengths
    needed = np.maximum.reduceat(ends, first) if len(first) else ends
    bounds = np.append(first, len(chunk_of))
    return ChunkPlan(chunk_of[first], bounds, sources, targets, lengths, needed)


@kernel
def _cut(
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    begin: NDArray[np.int64],
    chunk_length: int,
    chunks: NDArray[np.int64],
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> int:
    """Write the pieces of ranges, one after the other, each up to the end of its chunk."""
    n = 0
    for i in range(len(starts)):
        position, target = starts[i], begin[i]
        while position < stops[i]:
            chunk = position // chunk_length
            first = chunk * chunk_length
            end = stops[i] if stops[i] < first + chunk_length else first + chunk_length
            chunks[n], sources[n] = chunk, position - first
            targets[n], lengths[n] = target, end - position
            target += end - position
            position = end
            n += 1
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
