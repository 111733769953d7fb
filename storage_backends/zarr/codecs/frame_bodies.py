"""Decoding the body of a frame, see :mod:`storage_backends.zarr.codecs.frame_format`."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from storage_backends.compute.jit import intrinsic, kernel
from storage_backends.zarr.codecs.blosc import byte_at, number_at, word_at
from storage_backends.zarr.codecs.frame_format import (
    BLOCK,
    FLOAT,
    GAP_BITS,
    GAPS,
    OFFSETS,
    RAW,
    SIGNED,
    TABLE,
    WIDE,
    Integer,
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
    """The bits of an item of at most eight bytes, extended to 64."""
    if itemsize == 0:
        return np.int64(0)
    shift = np.uint64(64 - 8 * itemsize)
    word = word_at(address) << shift
    if kind == SIGNED:
        return np.int64(word) >> np.int64(shift)
    return np.int64(word >> shift)


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
def _look_up(
    table: Integer, n_table: Integer, itemsize: Integer, kind: Integer, out: NDArray[Any]
) -> bool:
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
        return _look_up(table, n_table, itemsize, kind, out)
    if encoding != RAW or end - body != len(out) * itemsize:
        return False
    for k in range(len(out)):
        out[k] = _item_at(body + k * itemsize, itemsize, kind)
    return True
