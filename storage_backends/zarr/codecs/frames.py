"""Frames: a chunk of numbers in pieces that are packed, checked and decoded on their own.

``docs/format.md`` describes them byte by byte. A chunk has frames, a directory with the number of
items and bytes of each, and a tail. A frame has a kind, a body and a checksum. Its numbers are
packed in blocks of 32, each with a width of its own. Numbers are loaded as words, which may end
after the last frame, but not after the tail.

Lengths follow from the directory and the widths, so frames and blocks can be decoded in any order,
and so can the numbers of a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from storage_backends.compute.jit import fetch_ahead, fetch_line, intrinsic, kernel
from storage_backends.zarr.codecs.blosc import SOUND, UNFIT, byte_at, is_intact, number_at, word_at
from storage_backends.zarr.plan import Bound

#: An integer of compiled code, of any width.
Integer = Any

#: Near the end of a chunk, with the version, as a little-endian number.
MAGIC, VERSION = 0x706373, 1
TAIL_BYTES, ENTRY_BYTES, SUM_BYTES = 12, 4, 4
GAPS, OFFSETS, TABLE, RAW = range(4)
#: Added to the kind if widths take a byte each.
WIDE = 8
BLOCK = 32
#: Most items of a frame, and most bits of a gap: the sum of so many does not overflow.
MOST_ITEMS, GAP_BITS = 1 << 12, 40
#: Types of items: unsigned and signed integers, and floats.
UNSIGNED, SIGNED, FLOAT = range(3)

#: Added to the position of a chunk that another version of the format wrote, or with an id that is
#: out of bounds.
OTHER_VERSION, BEYOND = 1 << 34, 1 << 35

_WORD = np.uint64(64)
#: Chunks to fetch ahead of the one that is decoded.
_ROWS_AHEAD = 2


@intrinsic
def _bits_of_single(typingctx: Any, number: Any) -> Any:
    """The bits of an integer as float32."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.sitofp(arguments[0], ir.FloatType()), ir.IntType(32))

    return types.uint32(types.int64), codegen


@intrinsic
def _bits_of_double(typingctx: Any, number: Any) -> Any:
    """The bits of an integer as float64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.sitofp(arguments[0], ir.DoubleType()), ir.IntType(64))

    return types.uint64(types.int64), codegen


@kernel
def _unpack(
    address: Integer, width: Integer, out: NDArray[Any], first: Integer, n: Integer
) -> None:
    """Unpack a block of `n` numbers of at most 57 bits, from `first` on."""
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    if n == BLOCK and width <= 8:
        # One load for eight numbers, which the compiler shifts together.
        for group in range(4):
            word = word_at(address + group * width)
            for k in range(8):
                out[first + group * 8 + k] = (word >> np.uint64(k * width)) & mask
    elif n == BLOCK and width <= 15:
        for group in range(8):
            bit = group * 4 * width
            word = word_at(address + (bit >> 3)) >> np.uint64(bit & 7)
            for k in range(4):
                out[first + group * 4 + k] = (word >> np.uint64(k * width)) & mask
    else:
        for k in range(n):
            bit = k * width
            out[first + k] = (word_at(address + (bit >> 3)) >> np.uint64(bit & 7)) & mask


@kernel
def _unpack_wide(
    address: Integer, width: Integer, out: NDArray[Any], first: Integer, n: Integer
) -> None:
    """The same as :func:`_unpack` for 58 to 64 bits."""
    mask = ~np.uint64(0) >> (_WORD - np.uint64(width))
    for k in range(n):
        bit = k * width
        shift = np.uint64(bit & 7)
        word = word_at(address + (bit >> 3)) >> shift
        if shift:
            word |= np.uint64(byte_at(address + (bit >> 3) + 8)) << (_WORD - shift)
        out[first + k] = word & mask


@kernel
def _width(address: Integer, block: Integer, is_wide: bool) -> Integer:
    if is_wide:
        return np.int64(byte_at(address + block))
    return np.int64((byte_at(address + (block >> 1)) >> np.uint8(4 * (block & 1))) & np.uint8(15))


@kernel
def _unpack_all(
    address: Integer, size: Integer, is_wide: bool, most: Integer, out: NDArray[Any]
) -> bool:
    """Unpack numbers from `size` bytes; False if they are not what the widths say."""
    n = len(out)
    n_blocks = (n + BLOCK - 1) // BLOCK
    n_widths = n_blocks if is_wide else (n_blocks + 1) // 2
    if size < n_widths:
        return False
    at, end = address + n_widths, address + size
    for block in range(n_blocks):
        width = _width(address, block, is_wide)
        start = block * BLOCK
        items = min(BLOCK, n - start)
        after = at + ((items * width + 7) >> 3)
        if width > most or after > end:
            return False
        if width <= 57:
            _unpack(at, width, out, start, items)
        else:
            _unpack_wide(at, width, out, start, items)
        at = after
    return bool(at == end)


@kernel
def _item_at(address: Integer, itemsize: Integer, kind: Integer) -> Integer:
    """The bits of an item, extended to 64."""
    shift, word = 64 - 8 * itemsize, np.uint64(0)
    if itemsize == 0:
        return 0
    for k in range(itemsize):
        word |= np.uint64(byte_at(address + k)) << np.uint64(8 * k)
    return (
        np.int64(word << np.uint64(shift)) >> np.int64(shift) if kind == SIGNED else np.int64(word)
    )


@kernel
def _limits(itemsize: Integer, kind: Integer) -> tuple[Integer, Integer]:
    """The least and the largest integer of a type; of floats those between which all are exact."""
    if kind == FLOAT:
        most = np.int64(1) << np.int64(53 if itemsize == 8 else 24)
        return -most, most
    bits = np.int64(8 * itemsize - (kind == SIGNED))
    most = np.int64(0x7FFFFFFFFFFFFFFF) if bits >= 63 else (np.int64(1) << bits) - 1
    return (-most - 1 if kind == SIGNED else np.int64(0)), most


@kernel
def _add(base: Integer, itemsize: Integer, kind: Integer, out: NDArray[Any]) -> bool:
    """Add the base to all numbers, and convert them; False if one does not fit the type."""
    n, (least, most) = len(out), _limits(itemsize, kind)
    if kind != FLOAT and itemsize == 8:
        for k in range(n):
            out[k] = np.int64(out[k]) + base
        return True
    low = high = np.int64(out[0]) + base
    for k in range(n):
        number = np.int64(out[k]) + base
        low, high = min(low, number), max(high, number)
    if kind != FLOAT:
        for k in range(n):
            out[k] = np.int64(out[k]) + base
    elif itemsize == 4:
        for k in range(n):
            out[k] = _bits_of_single(np.int64(out[k]) + base)
    else:
        for k in range(n):
            out[k] = _bits_of_double(np.int64(out[k]) + base)
    return bool(low >= least and high <= most)


@kernel
def _sum_gaps(itemsize: Integer, kind: Integer, out: NDArray[Any]) -> bool:
    """Replace gaps by integers; False if the last does not fit the type."""
    total = np.int64(-1)
    for k in range(len(out)):
        total += np.int64(out[k]) + 1
        out[k] = total
    return bool(total <= _limits(itemsize, kind)[1])


@kernel
def _decode_frame(
    address: Integer,
    size: Integer,
    itemsize: Integer,
    kind: Integer,
    out: NDArray[Any],
) -> bool:
    """Decode a frame without its checksum to all of `out`; False if it is invalid.

    Parameters
    ----------
    itemsize, kind
        Bytes of a stored item; :data:`UNSIGNED`, :data:`SIGNED` or :data:`FLOAT`.
    out
        Bits of the output, items of the same type or wider integers.
    """
    head = np.int64(byte_at(address))
    is_wide, encoding = head & WIDE != 0, head & ~WIDE
    body, end, bits = address + 1, address + size, 8 * itemsize
    if encoding in (GAPS, OFFSETS) and kind == FLOAT and itemsize == 2:
        return False
    if encoding == GAPS:
        is_valid = _unpack_all(body, end - body, is_wide, min(bits, GAP_BITS), out)
        is_valid = is_valid and _sum_gaps(itemsize, kind, out)
        return is_valid and (kind != FLOAT or _add(np.int64(0), itemsize, kind, out))
    if encoding == OFFSETS:
        n_base = np.int64(byte_at(body))
        start = body + 1 + n_base
        if n_base > 8 or start > end:
            return False
        base = _item_at(body + 1, n_base, SIGNED)
        is_valid = _unpack_all(start, end - start, is_wide, bits, out)
        return is_valid and _add(base, itemsize, kind, out)
    if encoding == TABLE:
        n_table = np.int64(byte_at(body)) | (np.int64(byte_at(body + 1)) << 8)
        table, codes = body + 2, body + 2 + n_table * itemsize
        if codes > end or not _unpack_all(codes, end - codes, is_wide, min(bits, 16), out):
            return False
        for k in range(len(out)):
            code = np.int64(out[k])
            if code >= n_table:
                return False
            out[k] = _item_at(table + code * itemsize, itemsize, kind)
        return True
    if encoding != RAW or end - body != len(out) * itemsize:
        return False
    for k in range(len(out)):
        out[k] = _item_at(body + k * itemsize, itemsize, kind)
    return True


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
        Bytes of a stored item; :data:`UNSIGNED`, :data:`SIGNED` or :data:`FLOAT`.
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
                if not _decode_frame(frames + begin, size - SUM_BYTES, itemsize, kind, part):
                    return row + UNFIT
                # Items behind the end of the array have any value.
                if bound.below and not _bounded(part[start - first : upto - first], bound):
                    return row + BEYOND
                if not is_whole:
                    out[target + start : target + upto] = part[start - first : upto - first]
                start, first, begin, frame = upto, last, end, frame + 1
        later = min(row + _ROWS_AHEAD, n - 1)
        if bounds[later] < bounds[later + 1]:
            directory, n_frames = _directory(addresses[later], lengths[later])
            frame, _, begin = located[bounds[later] - bounds[0]]
            if frame < n_frames:
                fetch_ahead(addresses[later] + begin, _entry(directory, frame)[1])
    return SOUND
