"""Decoding the body of a frame, see :mod:`storage_backends.zarr.codecs.frame_format`."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from storage_backends.compute.jit import Int, helper, intrinsic, kernel
from storage_backends.zarr.codecs.blosc import byte_at, number_at, word_at
from storage_backends.zarr.codecs.frame_format import (
    BLOCK,
    FLOAT,
    GAP_BITS,
    GAPS,
    INVALID,
    MIXED,
    OFFSETS,
    RAW,
    SIGNED,
    TABLE,
    WIDE,
)
from storage_backends.zarr.codecs.frame_lanes import (
    MOST_BITS,
    MOST_GAP_BITS,
    put_floats,
    put_numbers,
    put_sums,
)

_WORD = np.uint64(64)


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


@helper
def _unpack(address: Int, width: Int, out: NDArray[Any], first: Int, n: Int) -> None:
    """Unpack a block of `n` numbers of any width, from `first` on, one by one."""
    if width == 0:
        for k in range(n):
            out[first + k] = 0
        return
    mask = ~np.uint64(0) >> (_WORD - np.uint64(width))
    for k in range(n):
        bit = k * width
        shift = np.uint64(bit & 7)
        word = word_at(address + (bit >> 3)) >> shift
        if width > 57 and shift:
            word |= np.uint64(byte_at(address + (bit >> 3) + 8)) << (_WORD - shift)
        out[first + k] = word & mask


@helper
def _width(address: Int, block: Int, is_wide: bool) -> Int:
    if is_wide:
        return np.int64(byte_at(address + block))
    return np.int64((byte_at(address + (block >> 1)) >> np.uint8(4 * (block & 1))) & np.uint8(15))


@helper
def _measure(address: Int, size: Int, is_wide: bool, n: Int, most: Int) -> tuple[Int, Int]:
    """Address of the first block of packed numbers, and the largest width.

    The width is -1 if it is more than `most`, or if the numbers do not take all of `size` bytes.
    """
    n_blocks = (n + BLOCK - 1) // BLOCK
    n_widths = n_blocks if is_wide else (n_blocks + 1) // 2
    if size < n_widths:
        return address, -1
    n_bits = width = largest = 0
    for block in range(n_blocks):
        width = _width(address, block, is_wide)
        n_bits += width * BLOCK
        largest = max(largest, width)
    # The last block may be shorter.
    n_bits -= width * (n_blocks * BLOCK - n)
    is_valid = largest <= most and (n_bits + 7) >> 3 == size - n_widths
    return address + n_widths, largest if is_valid else -1


@helper
def _item_at(address: Int, itemsize: Int, kind: Int) -> Int:
    """The bits of an item of at most eight bytes, extended to 64."""
    if itemsize == 0:
        return np.int64(0)
    shift = np.uint64(64 - 8 * itemsize)
    word = word_at(address) << shift
    if kind == SIGNED:
        return np.int64(word) >> np.int64(shift)
    return np.int64(word >> shift)


@helper
def _limits(itemsize: Int, kind: Int) -> tuple[Int, Int]:
    """The least and the largest integer of a type; of floats those between which all are exact."""
    if kind == FLOAT:
        most = np.int64(1) << np.int64(53 if itemsize == 8 else 24)
        return -most, most
    bits = np.int64(8 * itemsize - (kind == SIGNED))
    most = np.int64(0x7FFFFFFFFFFFFFFF) if bits >= 63 else (np.int64(1) << bits) - 1
    return (-most - 1 if kind == SIGNED else np.int64(0)), most


@helper
def _add(base: Int, as_floats: bool, out: NDArray[Any], first: Int, n: Int) -> None:
    """Add the base to numbers, and convert them to floats if these are wanted."""
    for k in range(np.uint64(first), np.uint64(first + n)):
        number = np.int64(out[k]) + base
        if not as_floats:
            out[k] = number
        elif out.itemsize == 4:
            out[k] = _bits_of_single(number)
        else:
            out[k] = _bits_of_double(number)


@helper
def _put(
    address: Int, widths: Int, is_wide: bool, base: Int, as_floats: bool,
    out: NDArray[Any],
) -> None:  # fmt: skip
    """Unpack measured numbers, add the base, and convert them to floats if these are wanted."""
    for block in range((len(out) + BLOCK - 1) // BLOCK):
        width, first = _width(widths, block, is_wide), block * BLOCK
        n = min(BLOCK, len(out) - first)
        if n == BLOCK and width <= MOST_BITS:
            if as_floats:
                put_floats(address, width, base, out, first)
            else:
                put_numbers(address, width, base, out, first)
        else:
            _unpack(address, width, out, first, n)
            _add(base, as_floats, out, first, n)
        address += (n * width + 7) >> 3


@helper
def _put_sums(address: Int, widths: Int, is_wide: bool, out: NDArray[Any]) -> Int:
    """Sum up measured gaps; returns the last integer."""
    total = np.int64(-1)
    for block in range((len(out) + BLOCK - 1) // BLOCK):
        width, first = _width(widths, block, is_wide), block * BLOCK
        n = min(BLOCK, len(out) - first)
        if n == BLOCK and width <= MOST_GAP_BITS:
            total = put_sums(address, width, total, out, first)
        else:
            _unpack(address, width, out, first, n)
            for k in range(first, first + n):
                total += np.int64(out[k]) + 1
                out[k] = total
        address += (n * width + 7) >> 3
    return total


@helper
def _put_within(
    address: Int, widths: Int, is_wide: bool, largest: Int, base: Int,
    itemsize: Int, kind: Int, out: NDArray[Any],
) -> bool:  # fmt: skip
    """As :func:`_put`, of numbers of a largest width; False if one does not fit the type."""
    least, most = _limits(itemsize, kind)
    fits = kind != FLOAT and itemsize == 8
    # Most frames are far from the limits.
    fits = fits or (largest < 32 and base >= least and base <= most - (np.int64(1) << largest))
    _put(address, widths, is_wide, base if fits else np.int64(0), fits and kind == FLOAT, out)
    if fits:
        return True
    low = high = np.int64(out[0]) + base
    for k in range(len(out)):
        number = np.int64(out[k]) + base
        low, high = min(low, number), max(high, number)
    _add(base, kind == FLOAT, out, 0, len(out))
    return bool(low >= least and high <= most)


@helper
def _look_up(table: Int, n_table: Int, itemsize: Int, kind: Int, out: NDArray[Any]) -> bool:
    """Replace positions by the items of a table; False if one lies beyond it."""
    most = out.dtype.type(0)
    for k in range(len(out)):
        most = max(most, out[k])
    if np.uint64(most) >= np.uint64(n_table):
        return False
    if itemsize == 4 and kind != SIGNED:
        # Most floats are of this size, and such a loop takes a fourth of the time.
        for k in range(len(out)):
            out[k] = number_at(table + np.int64(out[k]) * 4)
    else:
        for k in range(len(out)):
            out[k] = _item_at(table + np.int64(out[k]) * itemsize, itemsize, kind)
    return True


@kernel
def decode_frame(
    address: Int,
    size: Int,
    itemsize: Int,
    kind: Int,
    out: NDArray[Any],
) -> Int:
    """Decode a frame without its checksum to all of `out`.

    Parameters
    ----------
    itemsize, kind
        Bytes of a stored item; :data:`UNSIGNED`, :data:`SIGNED` or :data:`FLOAT`.
    out
        Bits of the output, items of the same type or wider integers.

    Returns
    -------
    int
        :data:`INVALID`; the largest integer if they ascend; or :data:`MIXED`.
    """
    head = np.int64(byte_at(address))
    is_wide, encoding = head & WIDE != 0, head & ~WIDE
    body, end, bits = address + 1, address + size, 8 * itemsize
    if encoding == RAW:
        if end - body != len(out) * itemsize:
            return INVALID
        for k in range(len(out)):
            out[k] = _item_at(body + k * itemsize, itemsize, kind)
        return MIXED
    n_table: Int = 0
    widths, base, most = body, np.int64(0), bits
    if encoding == GAPS:
        most = min(bits, GAP_BITS)
    elif encoding == OFFSETS:
        n_base = np.int64(byte_at(body))
        widths += 1 + n_base
        if n_base > 8 or widths > end:
            return INVALID
        base = _item_at(body + 1, n_base, SIGNED)
    elif encoding == TABLE:
        n_table = np.int64(byte_at(body)) | (np.int64(byte_at(body + 1)) << 8)
        widths, most = body + 2 + n_table * itemsize, min(bits, 16)
        if widths > end:
            return INVALID
    else:
        return INVALID
    if encoding != TABLE and kind == FLOAT and itemsize == 2:
        return INVALID
    at, largest = _measure(widths, end - widths, is_wide, len(out), most)
    if largest < 0:
        return INVALID
    if encoding == GAPS:
        last = _put_sums(at, widths, is_wide, out)
        if last > _limits(itemsize, kind)[1]:
            return INVALID
        if kind != FLOAT:
            return last
        _add(0, True, out, 0, len(out))
    elif encoding == OFFSETS:
        if not _put_within(at, widths, is_wide, largest, base, itemsize, kind, out):
            return INVALID
    else:
        _put(at, widths, is_wide, base, False, out)
        if not _look_up(body + 2, n_table, itemsize, kind, out):
            return INVALID
    return MIXED
