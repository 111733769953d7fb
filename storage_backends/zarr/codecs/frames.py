"""Finding, checking and decoding frames of chunks.

The format is that of :mod:`storage_backends.zarr.codecs.frame_format`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import LINE, Int, fetch_ahead, fetch_line, helper, kernel
from storage_backends.zarr.codecs.blosc import LATER, SOUND, UNFIT, byte_at, is_intact, number_at
from storage_backends.zarr.codecs.frame_bodies import decode_frame
from storage_backends.zarr.codecs.frame_format import (
    BEYOND,
    ENTRY_BYTES,
    INVALID,
    MAGIC,
    MIXED,
    MOST_ITEMS,
    SUM_BYTES,
    TAIL_BYTES,
    VERSION,
)
from storage_backends.zarr.plan import Bound

#: Chunks to fetch ahead of the one whose directory is read, and of the one that is decoded.
TAILS_AHEAD, FRAMES_AHEAD = 8, 2


@helper
def entry_at(directory: Int, frame: Int) -> tuple[Int, Int]:
    """Items and bytes of a frame."""
    entry = number_at(directory + ENTRY_BYTES * frame)
    return np.int64(entry & np.uint32(0xFFFF)), np.int64(entry >> np.uint32(16))


@helper
def directory_at(address: Int, length: Int) -> tuple[Int, Int]:
    """Address of the directory of a chunk with a checked tail, and its number of frames."""
    tail = address + length - TAIL_BYTES
    n_frames = np.int64(number_at(tail))
    return tail - ENTRY_BYTES * n_frames, n_frames


@helper
def bounded(items: NDArray[Any], largest: Int, below: Int, mapping: NDArray[np.uint32]) -> bool:
    """Replace ids by those of a mapping, if there is one; False if an id is out of bounds.

    `largest` is that of ascending ids, or MIXED.
    """
    if not 0 <= largest < below:
        most = items.dtype.type(0)
        for k in range(len(items)):
            most = max(most, items[k])
        if np.uint64(most) >= np.uint64(below):
            return False
    if len(mapping):
        for k in range(len(items)):
            items[k] = mapping[np.uint64(items[k])]
    return True


@helper
def fetch_tail(address: Int, length: Int) -> None:
    """Prefetch the directory of a chunk."""
    fetch_line(address + length - TAIL_BYTES)
    fetch_line(address + length - TAIL_BYTES - LINE)


@helper
def find_frame(
    crc32c: Int, address: Int, length: Int, n_items: Int, item: Int,
    found: NDArray[np.int64], k: Int,
) -> Int:  # fmt: skip
    """Check the tail of a chunk, and find the frame of an item.

    Returns SOUND, or the value to add to the position of the chunk. Row `k` of `found` gets the
    number of the frame, and the items and bytes before it.
    """
    tail = address + length - TAIL_BYTES
    if length < TAIL_BYTES or number_at(tail + 4) & 0xFFFFFF != MAGIC:
        return UNFIT
    n_frames = np.int64(number_at(tail))
    directory = tail - ENTRY_BYTES * n_frames
    if directory < address or not is_intact(crc32c, directory, tail + 8 - directory):
        return 0
    version = np.int64(byte_at(tail + 7))
    if version != VERSION:
        return version * LATER if version > VERSION else UNFIT
    frame = first = begin = 0
    while frame < n_frames:
        items, size = entry_at(directory, frame)
        if first + items > item:
            break
        frame, first, begin = frame + 1, first + items, begin + size
    found[k, 0], found[k, 1], found[k, 2] = frame, first, begin
    while frame < n_frames and first <= n_items:
        items, size = entry_at(directory, frame)
        frame, first, begin = frame + 1, first + items, begin + size
    return SOUND if first == n_items and begin == directory - address else UNFIT


@helper
def fetch_frame(address: Int, length: Int, found: NDArray[np.int64], k: Int) -> None:
    """Prefetch a frame that was found."""
    directory, n_frames = directory_at(address, length)
    if found[k, 0] < n_frames:
        fetch_ahead(address + found[k, 2], entry_at(directory, found[k, 0])[1])


@helper
def decode_items(
    crc32c: Int,
    address: Int,
    length: Int,
    found: NDArray[np.int64],
    k: Int,
    start: Int,
    itemsize: Int,
    kind: Int,
    out: NDArray[Any],
) -> tuple[Int, Int]:
    """Decode the items of a chunk from `start` on, as many as `out` takes.

    Parameters
    ----------
    found, k
        Where the frame of the first item is, see :func:`find_frame`.

    Returns
    -------
    problem, largest
        SOUND, or the value to add to the position of the chunk; the largest item of frames if each
        ascends, or MIXED.
    """
    directory, n_frames = directory_at(address, length)
    frame, first, begin = found[k, 0], found[k, 1], found[k, 2]
    largest: Int = np.int64(0)
    stop = start + len(out)
    at = start
    while at < stop:
        if frame >= n_frames:
            return UNFIT, MIXED
        items, size = entry_at(directory, frame)
        last = first + items
        if not 0 < items <= MOST_ITEMS or size <= SUM_BYTES:
            return UNFIT, MIXED
        if not is_intact(crc32c, address + begin, size - SUM_BYTES):
            return 0, MIXED
        is_whole = at == first and last <= stop
        if is_whole and items == len(out):
            # Without a slice, which is counted.
            most = decode_frame(address + begin, size - SUM_BYTES, itemsize, kind, out)
        else:
            part = out[first - start : last - start] if is_whole else np.empty(items, out.dtype)
            most = decode_frame(address + begin, size - SUM_BYTES, itemsize, kind, part)
            if not is_whole:
                # A loop, as numba compiles the error of slices of other lengths for seconds.
                for i in range(at, min(stop, last)):
                    out[i - start] = part[i - first]
        if most == INVALID:
            return UNFIT, MIXED
        largest = MIXED if most == MIXED or largest == MIXED else max(largest, most)
        at, first, begin, frame = min(stop, last), last, begin + size, frame + 1
    return SOUND, largest


@kernel
def place_frames(
    crc32c: Int,
    addresses: NDArray[np.int64],
    lengths: NDArray[np.int64],
    bounds: NDArray[np.int64],
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    counts: NDArray[np.int64],
    n_items: Int,
    itemsize: Int,
    kind: Int,
    bound: Bound,
    out: NDArray[Any],
) -> Int:
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
        SOUND; or the position of the first damaged chunk, to which UNFIT, BEYOND, or a version
        times LATER, may be added.
    """
    n = len(addresses)
    found = np.empty((bounds[n] - bounds[0], 3), np.int64)
    for row in range(n):
        later = min(row + TAILS_AHEAD, n - 1)
        fetch_tail(addresses[later], lengths[later])
        for piece in range(bounds[row], bounds[row + 1]):
            k = piece - bounds[0]
            problem = find_frame(
                crc32c, addresses[row], lengths[row], n_items, sources[piece], found, k
            )
            if problem != SOUND:
                return row + problem
    for row in range(n):
        later = min(row + FRAMES_AHEAD, n - 1)
        if bounds[later] < bounds[later + 1]:
            fetch_frame(addresses[later], lengths[later], found, bounds[later] - bounds[0])
        for piece in range(bounds[row], bounds[row + 1]):
            part = out[targets[piece] : targets[piece] + counts[piece]]
            problem, largest = decode_items(
                crc32c, addresses[row], lengths[row], found, piece - bounds[0], sources[piece],
                itemsize, kind, part,
            )  # fmt: skip
            if problem != SOUND:
                return row + problem
            if bound.below and not bounded(part, largest, bound.below, bound.mapping):
                return row + BEYOND
    return SOUND
