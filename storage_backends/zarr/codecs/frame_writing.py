"""Writing chunks as frames, see :mod:`storage_backends.zarr.codecs.frame_format`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import kernel
from storage_backends.directory.content import checksum
from storage_backends.zarr.codecs.blosc import CRC32C, crc32c_at, leading_zeros, put_word
from storage_backends.zarr.codecs.frame_format import (
    BLOCK,
    GAP_BITS,
    GAPS,
    MAGIC,
    MOST_ITEMS,
    OFFSETS,
    RAW,
    SUM_BYTES,
    TABLE,
    VERSION,
    WIDE,
    Integer,
)

#: Least items of a frame, but for the last of a chunk: each has 13 bytes or more of its own.
_LEAST_ITEMS = 128
#: Items of a frame if it is not known where rows end.
_FRAME_ITEMS = 1 << 10
#: Most distinct items in a table, and slots to find them, a power of two.
_MOST_DISTINCT, _SLOTS = 1 << 11, 1 << 13
#: Integers of these magnitudes are exact as floats.
_EXACT = {4: 1 << 24, 8: 1 << 53}


def encode(values: NDArray[Any], ends: NDArray[np.int64] | None = None) -> bytes:
    """Encode a chunk.

    Parameters
    ----------
    values
        The items, one-dimensional numbers.
    ends
        Where rows end, in ascending order; the end of the chunk may be left out. Frames end there,
        but short rows share one, and long ones have several. Default: after every 1,024 items.
    """
    n, itemsize = len(values), values.itemsize
    if ends is None:
        ends = np.arange(_FRAME_ITEMS, n, _FRAME_ITEMS)
    edges = _edges(np.append(ends[(ends > 0) & (ends < n)], n))
    # One type, one compiled kernel.
    bits = values.view(f"u{itemsize}").astype(np.uint64)
    numbers, exact = _numbers(values)
    directory = np.empty((len(edges), 2), "<u2")
    out = np.empty(len(edges) * (16 + SUM_BYTES) + n * (itemsize + 1) + 64, np.uint8)
    size = _write_frames(CRC32C, bits, itemsize, numbers, exact, edges, directory, out)
    tail = directory.tobytes() + np.array([len(edges), MAGIC | VERSION << 24], "<u4").tobytes()
    return out[:size].tobytes() + tail + checksum(tail)


def _numbers(values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The items as integers, and which of them these represent bit by bit; empty if all."""
    if values.dtype.kind != "f":
        return values.astype(np.int64), np.empty(0, np.bool_)
    exact = np.zeros(len(values), np.bool_)
    limit = _EXACT.get(values.itemsize)
    if limit is None:
        return np.zeros(len(values), np.int64), exact
    with np.errstate(invalid="ignore"):
        numbers = values.astype(np.int64)
    bits = f"u{values.itemsize}"
    exact = (np.abs(values) <= limit) & (
        numbers.astype(values.dtype).view(bits) == values.view(bits)
    )
    return numbers, np.empty(0, np.bool_) if exact.all() else exact


@kernel
def _edges(ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ends of frames, from those of rows."""
    n = ends[-1]
    edges = np.empty(n // _LEAST_ITEMS + 2, np.int64)
    count = last = 0
    for k in range(len(ends)):
        while ends[k] - last > MOST_ITEMS:
            last += MOST_ITEMS
            edges[count] = last
            count += 1
        if ends[k] - last >= _LEAST_ITEMS or (ends[k] == n and last < n):
            edges[count] = last = ends[k]
            count += 1
    return edges[:count]


@kernel
def _bit_length(number: Integer) -> Integer:
    return 64 - np.int64(leading_zeros(np.uint64(number)))


@kernel
def _widths(
    numbers: NDArray[np.uint64], n: Integer, widths: NDArray[np.uint8]
) -> tuple[Integer, Integer]:
    """Find the widths of blocks; returns the bytes of packed numbers, and the largest width."""
    size = most = 0
    for block in range((n + BLOCK - 1) // BLOCK):
        start, stop = block * BLOCK, min(n, block * BLOCK + BLOCK)
        union = np.uint64(0)
        for k in range(start, stop):
            union |= numbers[k]
        width = _bit_length(union)
        widths[block] = width
        size += ((stop - start) * width + 7) >> 3
        most = max(most, width)
    n_blocks = (n + BLOCK - 1) // BLOCK
    return size + (n_blocks if most > 15 else (n_blocks + 1) // 2), most


@kernel
def _pack(numbers: NDArray[np.uint64], n: Integer, widths: NDArray[np.uint8], wide: bool,
          out: NDArray[np.uint8], at: Integer) -> Integer:  # fmt: skip
    """Write packed numbers; returns the position after them."""
    n_blocks = (n + BLOCK - 1) // BLOCK
    for block in range(n_blocks):
        if wide:
            out[at + block] = widths[block]
        elif block & 1:
            out[at + (block >> 1)] |= widths[block] << np.uint8(4)
        else:
            out[at + (block >> 1)] = widths[block]
    at += n_blocks if wide else (n_blocks + 1) // 2
    for block in range(n_blocks):
        width = np.int64(widths[block])
        word, filled = np.uint64(0), np.int64(0)
        for k in range(block * BLOCK, min(n, block * BLOCK + BLOCK)):
            word |= numbers[k] << np.uint64(filled)
            filled += width
            if filled >= 64:
                put_word(out, at, word)
                at, filled = at + 8, filled - 64
                # A shift by 64 would have no effect.
                word = numbers[k] >> np.uint64(width - filled) if filled else np.uint64(0)
        # What is written beyond the last byte is written again.
        put_word(out, at, word)
        at += (filled + 7) >> 3
    return at


@kernel
def _find_table(
    bits: NDArray[np.uint64], slots: NDArray[np.int64], distinct: NDArray[np.uint64]
) -> Integer:
    """Find the distinct items, in ascending order of their bits; 0 if they are too many."""
    slots[:] = -1
    n = 0
    for k in range(len(bits)):
        item = bits[k]
        at = np.int64((item * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(51))
        while slots[at] >= 0 and distinct[slots[at]] != item:
            at = (at + 1) % _SLOTS
        if slots[at] < 0:
            if n == _MOST_DISTINCT:
                return 0
            slots[at], distinct[n] = n, item
            n += 1
    distinct[:n].sort()
    return n


@kernel
def _put(word: np.uint64, n_bytes: Integer, out: NDArray[np.uint8], at: Integer) -> Integer:
    for k in range(n_bytes):
        out[at + k] = (word >> np.uint64(8 * k)) & np.uint64(0xFF)
    return at + n_bytes


@kernel
def _write_frames(
    crc32c: Integer,
    bits: NDArray[np.uint64],
    itemsize: Integer,
    values: NDArray[np.int64],
    exact: NDArray[np.bool_],
    edges: NDArray[np.int64],
    directory: NDArray[np.uint16],
    out: NDArray[np.uint8],
) -> Integer:
    """Write frames and the directory of a chunk; returns the size of the frames.

    Each frame has the kind that takes the fewest bytes.
    """
    at = first = 0
    numbers, gaps = np.empty(MOST_ITEMS, np.uint64), np.empty(MOST_ITEMS, np.uint64)
    widths = np.empty(MOST_ITEMS // BLOCK, np.uint8)
    other = np.empty(MOST_ITEMS // BLOCK, np.uint8)
    slots, distinct = np.empty(_SLOTS, np.int64), np.empty(_MOST_DISTINCT, np.uint64)
    for frame in range(len(edges)):
        stop, begin = edges[frame], at
        n = stop - first
        size, kind, n_table, n_base, most = n * itemsize, RAW, 0, 0, 0
        base = np.int64(0)
        is_exact = len(exact) == 0 or exact[first:stop].all()
        if is_exact:
            items = values[first:stop]
            base = items[0]
            for k in range(n):
                base = min(base, items[k])
            for k in range(n):
                numbers[k] = np.uint64(items[k] - base)
            found, largest = _widths(numbers, n, widths)
            # One more bit for the sign.
            n_base = (_bit_length(base if base >= 0 else ~base) + 8) // 8
            if found + 1 + n_base < size:
                size, kind, most = found + 1 + n_base, OFFSETS, largest
            previous, k = np.int64(-1), 0
            while k < n and items[k] > previous:
                gaps[k] = np.uint64(items[k] - previous - 1)
                previous, k = items[k], k + 1
            if k == n:
                found, largest = _widths(gaps, n, other)
                if found < size and largest <= GAP_BITS:
                    size, kind, most = found, GAPS, largest
                    numbers, gaps, widths, other = gaps, numbers, other, widths
        else:
            n_table = _find_table(bits[first:stop], slots, distinct)
            if n_table:
                for k in range(n):
                    numbers[k] = np.searchsorted(distinct[:n_table], bits[first + k])
                found, largest = _widths(numbers, n, widths)
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
            for k in range(first, stop):
                at = _put(bits[k], itemsize, out, at)
        else:
            at = _pack(numbers, n, widths, most > 15, out, at)
        found = crc32c_at(crc32c, out.ctypes.data + begin, at - begin)
        at = _put(np.uint64(found), SUM_BYTES, out, at)
        directory[frame, 0], directory[frame, 1] = n, at - begin
        first = stop
    return at
