"""Writing chunks as frames, see :mod:`storage_backends.zarr.codecs.frame_format`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import Int, helper, kernel
from storage_backends.zarr.codecs.blosc import CRC32C, crc32c_at
from storage_backends.zarr.codecs.frame_format import (
    BLOCK,
    ENTRY_BYTES,
    GAP_BITS,
    GAPS,
    KINDS,
    MAGIC,
    MOST_ITEMS,
    OFFSETS,
    RAW,
    SUM_BYTES,
    TABLE,
    TAIL_BYTES,
    VERSION,
    WIDE,
)
from storage_backends.zarr.codecs.frame_packing import (
    bit_length,
    find_widths,
    load,
    load_bits,
    pack,
)

#: Least items of a frame, but for the last of a chunk: each has 13 bytes or more of its own.
_LEAST_ITEMS = 128
#: Items of a frame if it is not known where rows end.
_FRAME_ITEMS = 1 << 10
#: Most distinct items in a table, and slots to find them, a power of two.
_MOST_DISTINCT, _SLOTS = 1 << 11, 1 << 13
#: Most bytes that are written beyond the last frame: a block of the widest numbers.
_BEYOND = 8 * BLOCK + 64


def encode(values: NDArray[Any], ends: NDArray[np.int64] | None = None) -> bytes:
    """Encode a chunk, see :func:`encode_chunks`."""
    return encode_chunks(values, max(len(values), 1), ends)[0]


def encode_chunks(
    values: NDArray[Any], chunk_items: int, ends: NDArray[np.int64] | None = None
) -> tuple[bytes, list[int]]:
    """Encode consecutive chunks; returns their bytes and the size of each.

    Parameters
    ----------
    values
        The items, one-dimensional numbers.
    chunk_items
        Items of a chunk; the last one may have fewer.
    ends
        Where rows end, in ascending order. Frames end there, but short rows share one, and long
        ones have several. Default: after every 1,024 items.
    """
    n, itemsize = len(values), values.itemsize
    if ends is None:
        ends = np.arange(_FRAME_ITEMS, n, _FRAME_ITEMS)
    sizes = np.empty(max(1, -(-n // chunk_items)), np.int64)
    # Frames of the fewest items, one more for each chunk, and what is written beyond the end.
    n_frames = n // _LEAST_ITEMS + 2 * len(sizes)
    most = n_frames * (16 + SUM_BYTES + ENTRY_BYTES) + n * (itemsize + 1) + _BEYOND
    out = np.empty(most + TAIL_BYTES * len(sizes), np.uint8)
    # Of one type, so that there is one compiled kernel.
    raw, kind = np.ascontiguousarray(values).view(np.uint8), KINDS[values.dtype.kind]
    size = _encode(CRC32C, raw, itemsize, kind, n, chunk_items, ends, sizes, out)
    return out[:size].tobytes(), sizes.tolist()


@helper
def _find_edges(
    ends: NDArray[np.int64], first: Int, start: Int, stop: Int,
    edges: NDArray[np.int64],
) -> tuple[Int, Int]:  # fmt: skip
    """Find the ends of the frames of a chunk, from those of rows from `first` on.

    Returns the number of frames, and of the first end that is not before the end of the chunk.
    """
    count, last = 0, start
    while last < stop:
        end = ends[first] if first < len(ends) and ends[first] < stop else stop
        while end - last > MOST_ITEMS:
            last += MOST_ITEMS
            edges[count] = last
            count += 1
        if end - last >= _LEAST_ITEMS or end == stop:
            edges[count] = last = end
            count += 1
        first += end < stop
    while first < len(ends) and ends[first] < stop:
        first += 1
    return count, first


@helper
def _place_of(item: np.uint64, slots: NDArray[np.int16], distinct: NDArray[np.uint64]) -> Int:
    """The slot of a distinct item, or the free one for it."""
    at = np.int64((item * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(51))
    while slots[at] >= 0 and distinct[slots[at]] != item:
        at = (at + 1) % _SLOTS
    return at


@helper
def _find_table(
    bits: NDArray[np.uint64],
    slots: NDArray[np.int16],
    distinct: NDArray[np.uint64],
    places: NDArray[np.uint64],
) -> Int:
    """Find the distinct items, in ascending order of their bits; 0 if they are too many.

    `places` gets the place of each item among them.
    """
    slots[:] = -1
    n = 0
    for k in range(len(bits)):
        at = _place_of(bits[k], slots, distinct)
        if slots[at] < 0:
            if n == _MOST_DISTINCT:
                return 0
            slots[at], distinct[n] = n, bits[k]
            n += 1
        places[k] = np.uint64(slots[at])
    found, ranks = distinct[:n].copy(), np.empty(n, np.uint64)
    distinct[:n].sort()
    for k in range(n):
        ranks[slots[_place_of(distinct[k], slots, found)]] = k
    for k in range(len(bits)):
        places[k] = ranks[np.int64(places[k])]
    return n


@kernel
def _put(word: np.uint64, n_bytes: Int, out: NDArray[np.uint8], at: Int) -> Int:
    for k in range(n_bytes):
        out[at + k] = (word >> np.uint64(8 * k)) & np.uint64(0xFF)
    return at + n_bytes


@helper
def _find_gaps(items: NDArray[np.int64], gaps: NDArray[np.uint64]) -> bool:
    """Find the differences of items, minus 1; False if they do not ascend from 0 or more."""
    n = len(items)
    gaps[0] = np.uint64(items[0])
    falls = items[0] < 0
    # Most that do not ascend fall early.
    for start in range(1, n, BLOCK):
        for k in range(start, min(start + BLOCK, n)):
            falls |= items[k] <= items[k - 1]
            gaps[k] = np.uint64(items[k] - items[k - 1] - 1)
        if falls:
            return False
    return True


@kernel
def _encode(
    crc32c: Int,
    raw: NDArray[np.uint8],
    itemsize: Int,
    kind: Int,
    n: Int,
    chunk_items: Int,
    ends: NDArray[np.int64],
    sizes: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> Int:
    """Write chunks, and note the size of each; returns the size of all."""
    edges = np.empty(min(n, chunk_items) // _LEAST_ITEMS + 2, np.int64)
    directory = np.empty((len(edges), 2), np.uint16)
    at = end = 0
    for chunk in range(len(sizes)):
        begin, start = at, chunk * chunk_items
        n_frames, end = _find_edges(ends, end, start, min(n, start + chunk_items), edges)
        at = _write_frames(crc32c, raw, itemsize, kind, start, edges[:n_frames], directory, out, at)
        tail = at
        for frame in range(n_frames):
            at = _put(np.uint64(directory[frame, 0]), 2, out, at)
            at = _put(np.uint64(directory[frame, 1]), 2, out, at)
        at = _put(np.uint64(n_frames), 4, out, at)
        at = _put(np.uint64(MAGIC | VERSION << 24), 4, out, at)
        found = crc32c_at(crc32c, out.ctypes.data + tail, at - tail)
        at = _put(np.uint64(found), SUM_BYTES, out, at)
        sizes[chunk] = at - begin
    return at


@helper
def _write_frames(
    crc32c: Int,
    raw: NDArray[np.uint8],
    itemsize: Int,
    kind_of_items: Int,
    first: Int,
    edges: NDArray[np.int64],
    directory: NDArray[np.uint16],
    out: NDArray[np.uint8],
    at: Int,
) -> Int:
    """Write the frames of a chunk whose items begin at `first`; returns the position after them.

    Each frame has the kind that takes the fewest bytes. The directory gets the items and bytes of
    each.
    """
    items = np.empty(MOST_ITEMS, np.int64)
    bits = items.view(np.uint64)
    numbers, gaps = np.empty(MOST_ITEMS, np.uint64), np.empty(MOST_ITEMS, np.uint64)
    widths = np.empty(MOST_ITEMS // BLOCK, np.uint8)
    other = np.empty(MOST_ITEMS // BLOCK, np.uint8)
    slots, distinct = np.empty(_SLOTS, np.int16), np.empty(_MOST_DISTINCT, np.uint64)
    for frame in range(len(edges)):
        stop, begin = edges[frame], at
        n = stop - first
        size, kind, n_table, n_base, most = n * itemsize, RAW, 0, 0, 0
        base = np.int64(0)
        part = raw[first * itemsize : stop * itemsize]
        if load(part, itemsize, kind_of_items, items[:n], bits[:n]):
            base = items[0]
            for k in range(n):
                base = min(base, items[k])
            for k in range(n):
                numbers[k] = np.uint64(items[k] - base)
            found, largest = find_widths(numbers, n, widths)
            # One more bit for the sign.
            n_base = (bit_length(base if base >= 0 else ~base) + 8) // 8
            if found + 1 + n_base < size:
                size, kind, most = found + 1 + n_base, OFFSETS, largest
            if _find_gaps(items[:n], gaps):
                found, largest = find_widths(gaps, n, other)
                if found < size and largest <= GAP_BITS:
                    size, kind, most = found, GAPS, largest
                    numbers, gaps, widths, other = gaps, numbers, other, widths
        else:
            load_bits(part, itemsize, bits[:n])
            n_table = _find_table(bits[:n], slots, distinct, numbers)
            if n_table:
                found, largest = find_widths(numbers, n, widths)
                if found + 2 + n_table * itemsize < size:
                    kind, most = TABLE, largest
        form = kind | (WIDE if most > 15 and kind != RAW else 0)
        at = _put(np.uint64(form), 1, out, at)
        if kind == OFFSETS:
            at = _put(np.uint64(base), n_base, out, _put(np.uint64(n_base), 1, out, at))
        if kind == TABLE:
            at = _put(np.uint64(n_table), 2, out, at)
            for k in range(n_table):
                at = _put(distinct[k], itemsize, out, at)
        if kind == RAW:
            for k in range(len(part)):
                out[at + k] = part[k]
            at += len(part)
        else:
            at = pack(numbers, n, widths, most > 15, out, at)
        found = crc32c_at(crc32c, out.ctypes.data + begin, at - begin)
        at = _put(np.uint64(found), SUM_BYTES, out, at)
        directory[frame, 0], directory[frame, 1] = n, at - begin
        first = stop
    return at
