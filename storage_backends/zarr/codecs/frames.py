"""Finding, checking and decoding frames of chunks.

The format is that of :mod:`storage_backends.zarr.codecs.frame_format`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import fetch_ahead, fetch_line, kernel
from storage_backends.zarr.codecs.blosc import SOUND, UNFIT, byte_at, is_intact, number_at
from storage_backends.zarr.codecs.frame_bodies import decode_frame
from storage_backends.zarr.codecs.frame_format import (
    BEYOND,
    ENTRY_BYTES,
    INVALID,
    MAGIC,
    MOST_ITEMS,
    OTHER_VERSION,
    SUM_BYTES,
    TAIL_BYTES,
    VERSION,
    Integer,
)
from storage_backends.zarr.plan import Bound

#: Chunks to fetch ahead of the one that is decoded.
_ROWS_AHEAD = 2


@kernel
def _check_tail(crc32c: Integer, address: Integer, length: Integer, n_items: Integer) -> Integer:
    """SOUND, or the value to add to the position of a chunk."""
    tail = address + length - TAIL_BYTES
    if length < TAIL_BYTES or number_at(tail + 4) & 0xFFFFFF != MAGIC:
        return UNFIT
    if byte_at(tail + 7) != VERSION:
        return OTHER_VERSION
    n_frames = np.int64(number_at(tail))
    directory = tail - ENTRY_BYTES * n_frames
    if directory < address or not is_intact(crc32c, directory, tail + 8 - directory):
        return 0
    total = n_bytes = 0
    for frame in range(n_frames):
        items, size = _entry(directory, frame)
        total, n_bytes = total + items, n_bytes + size
    return SOUND if total == n_items and n_bytes == directory - address else UNFIT


@kernel
def _entry(directory: Integer, frame: Integer) -> tuple[Integer, Integer]:
    """Items and bytes of a frame."""
    entry = number_at(directory + ENTRY_BYTES * frame)
    return np.int64(entry & np.uint32(0xFFFF)), np.int64(entry >> np.uint32(16))


@kernel
def _directory(address: Integer, length: Integer) -> tuple[Integer, Integer]:
    """Address of the directory of a chunk with a checked tail, and its number of frames."""
    tail = address + length - TAIL_BYTES
    n_frames = np.int64(number_at(tail))
    return tail - ENTRY_BYTES * n_frames, n_frames


@kernel
def _locate(directory: Integer, n_frames: Integer, item: Integer, found: NDArray[np.int64]) -> None:
    """Find the frame of an item: its number, and the items and bytes before it."""
    frame = first = begin = 0
    while frame < n_frames:
        items, size = _entry(directory, frame)
        if first + items > item:
            break
        frame, first, begin = frame + 1, first + items, begin + size
    found[0], found[1], found[2] = frame, first, begin


@kernel
def _bounded(items: NDArray[Any], bound: Bound) -> bool:
    """Replace ids by those of the bound; False if an id is out of bounds."""
    most = items.dtype.type(0)
    for k in range(len(items)):
        most = max(most, items[k])
    if np.uint64(most) >= np.uint64(bound.below):
        return False
    if len(bound.mapping):
        for k in range(len(items)):
            items[k] = bound.mapping[items[k]]
    return True


@kernel
def place_frames(
    crc32c: Integer,
    addresses: NDArray[np.int64],
    lengths: NDArray[np.int64],
    bounds: NDArray[np.int64],
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    counts: NDArray[np.int64],
    n_items: Integer,
    itemsize: Integer,
    kind: Integer,
    bound: Bound,
    out: NDArray[Any],
) -> Integer:
    """Decode the frames that pieces of chunks touch, and no others, into `out`.

    Parameters
    ----------
    crc32c
        :data:`~storage_backends.zarr.codecs.blosc.CRC32C`.
    addresses, lengths
        Addresses and lengths of the chunks.
    bounds, sources, targets, counts
        The pieces of a :class:`~storage_backends.zarr.plan.ChunkPlan`.
    n_items
        Items of each chunk.
    itemsize, kind
        Bytes of a stored item; :data:`~.frame_format.UNSIGNED`, `SIGNED` or `FLOAT`.
    bound
        Bounds of ids, and their replacements.
    out
        Bits of the output, items of the same type or wider integers.

    Returns
    -------
    int
        SOUND; or the position of the first damaged chunk, to which UNFIT, OTHER_VERSION or BEYOND
        may be added.
    """
    n = len(addresses)
    # The first frame of each piece: its number, and the items and bytes before it.
    located = np.empty((bounds[n] - bounds[0], 3), np.int64)
    for row in range(n):
        later = min(row + _ROWS_AHEAD, n - 1)
        fetch_line(addresses[later] + lengths[later] - TAIL_BYTES)
        found = _check_tail(crc32c, addresses[row], lengths[row], n_items)
        if found != SOUND:
            return row + found
        for piece in range(bounds[row], bounds[row + 1]):
            found_at = located[piece - bounds[0]]
            _locate(*_directory(addresses[row], lengths[row]), sources[piece], found_at)
    for row in range(n):
        directory, n_frames = _directory(addresses[row], lengths[row])
        frames = addresses[row]
        for piece in range(bounds[row], bounds[row + 1]):
            start, stop = sources[piece], sources[piece] + counts[piece]
            target = targets[piece] - start
            frame, first, begin = located[piece - bounds[0]]
            while start < stop:
                if frame >= n_frames:
                    return row + UNFIT
                items, size = _entry(directory, frame)
                last, end = first + items, begin + size
                if not 0 < items <= MOST_ITEMS or size <= SUM_BYTES:
                    return row + UNFIT
                if not is_intact(crc32c, frames + begin, size - SUM_BYTES):
                    return row
                upto = min(stop, last)
                is_whole = start == first and last <= stop
                part = out[target + first : target + last]
                if not is_whole:
                    part = np.empty(items, out.dtype)
                largest = decode_frame(frames + begin, size - SUM_BYTES, itemsize, kind, part)
                if largest == INVALID:
                    return row + UNFIT
                # Items behind the end of the array have any value.
                if bound.below and not _bounded(part[start - first : upto - first], bound):
                    return row + BEYOND
                if not is_whole:
                    for k in range(start, upto):
                        out[target + k] = part[k - first]
                start, first, begin, frame = upto, last, end, frame + 1
        later = min(row + _ROWS_AHEAD, n - 1)
        if bounds[later] < bounds[later + 1]:
            directory, n_frames = _directory(addresses[later], lengths[later])
            frame, _, begin = located[bounds[later] - bounds[0]]
            if frame < n_frames:
                fetch_ahead(addresses[later] + begin, _entry(directory, frame)[1])
    return SOUND
