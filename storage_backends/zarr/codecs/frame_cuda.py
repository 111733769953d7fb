"""Decoding frames on a GPU, with a block of threads for each frame.

The format is that of :mod:`storage_backends.zarr.codecs.frame_format`. The position of a block of
numbers follows from the widths of the blocks before it, and the integer before a block of gaps from
their sums; so threads share no other state. The checks are those of
:mod:`storage_backends.zarr.codecs.frame_bodies`. Checksums are checked before frames are copied to
the device. Kernels may also run in the simulator of numba (``NUMBA_ENABLE_CUDASIM=1``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from storage_backends.compute.device import cuda, device_function, device_kernel, lesser
from storage_backends.compute.jit import Int
from storage_backends.encoded import DeviceArray
from storage_backends.zarr.codecs.frame_format import (
    BLOCK,
    FLOAT,
    GAP_BITS,
    GAPS,
    MOST_ITEMS,
    OFFSETS,
    RAW,
    SIGNED,
    TABLE,
    WIDE,
)
from storage_backends.zarr.codecs.frame_gathering import (
    ITEMS,
    N_COLUMNS,
    OFFSET,
    SIZE,
    SKIP,
    TAKE,
    TARGET,
)

#: Threads of a block: one for each block of numbers of the longest frame.
THREADS = MOST_ITEMS // BLOCK
_MOST_BLOCKS = MOST_ITEMS // BLOCK
#: Bytes of a block that is too wide, more than those of a frame.
_TOO_MANY = 1 << 20


@device_function
def _number(content: Any, bit: Int, width: Int) -> Any:
    """The number of `width` bits, at most 64, from a bit of the content on; uint64."""
    first, shift = bit >> 3, bit & 7
    n_bytes = (shift + width + 7) >> 3
    word = np.uint64(0)
    for k in range(lesser(n_bytes, 8)):
        word |= np.uint64(content[first + k]) << np.uint64(8 * k)
    word >>= np.uint64(shift)
    if n_bytes > 8:
        word |= np.uint64(content[first + 8]) << np.uint64(64 - shift)
    if width < 64:
        word &= (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    return word


@device_function
def _width(content: Any, widths: Int, block: Int, is_wide: bool) -> Any:
    """Bits of each number of a block."""
    if is_wide:
        return np.int64(content[widths + block])
    return (np.int64(content[widths + (block >> 1)]) >> (4 * (block & 1))) & 15


@device_function
def _base(content: Any, at: Int, n_bytes: Int) -> Any:
    """A signed integer of at most eight bytes."""
    if n_bytes == 0:
        return np.int64(0)
    return np.int64(_number(content, 8 * at, 8 * n_bytes) << np.uint64(64 - 8 * n_bytes)) >> (
        64 - 8 * n_bytes
    )


@device_function
def _least(itemsize: Int, kind: Int) -> Any:
    """The least integer of a type; of floats the least of those that are all exact."""
    if kind == FLOAT:
        return -(np.int64(1) << (53 if itemsize == 8 else 24))
    return -(np.int64(1) << (8 * itemsize - 2)) * 2 if kind == SIGNED else np.int64(0)


@device_function
def _most(itemsize: Int, kind: Int) -> Any:
    """The largest integer of a type, likewise."""
    if kind == FLOAT:
        return np.int64(1) << (53 if itemsize == 8 else 24)
    bits = lesser(8 * itemsize - (1 if kind == SIGNED else 0), 63)
    return ((np.int64(1) << (bits - 1)) - 1) * 2 + 1


@device_function
def _put(
    item: Int, at: Int, is_wanted: bool, is_integer: bool, below: Int, mapping: Any,
    out: Any, bits: Any, problem: Any,
) -> None:  # fmt: skip
    """Write an integer, or the bits of an item; of ids that which it is mapped to."""
    if below:
        if item < 0 or item >= below:
            problem[0] = 1
            return
        if len(mapping):
            item = np.int64(mapping[item])
    if is_wanted:
        if is_integer:
            out[at] = item
        else:
            bits[at] = item


@device_kernel
def _decode(
    content: Any, table: Any, itemsize: Int, kind: Int, below: Int, mapping: Any,
    out: Any, bits: Any, problem: Any,
) -> None:  # fmt: skip
    begins = cuda.shared.array(_MOST_BLOCKS, np.int32)
    shares = cuda.shared.array(_MOST_BLOCKS, np.int64)
    row, thread, step = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    offset, end, n = table[row, OFFSET], table[row, OFFSET] + table[row, SIZE], table[row, ITEMS]
    skip, stop = table[row, SKIP], table[row, SKIP] + table[row, TAKE]
    target = table[row, TARGET] - skip
    head, body = np.int64(content[offset]), offset + 1
    is_wide, encoding = head & WIDE != 0, head & ~WIDE
    # All threads of a block return here, or none.
    if encoding == RAW:
        if end - body != n * itemsize:
            problem[0] = 1
            return
        for k in range(thread, n, step):
            item = np.int64(_number(content, 8 * (body + k * itemsize), 8 * itemsize))
            _put(
                item, target + k, skip <= k < stop, False, below, mapping, out, bits, problem
            )  # fmt: skip
        return
    n_table, base, widths, most = np.int64(0), np.int64(0), body, 8 * itemsize
    if encoding == GAPS:
        most = lesser(GAP_BITS, most)
    elif encoding == OFFSETS and body < end:
        n_base = np.int64(content[body])
        widths = body + 1 + n_base
        if n_base <= 8 and widths <= end:
            base = _base(content, body + 1, n_base)
        else:
            widths = end + 1
    elif encoding == TABLE and body + 2 <= end:
        n_table = np.int64(content[body]) | np.int64(content[body + 1]) << 8
        widths, most = body + 2 + n_table * itemsize, lesser(most, 16)
    else:
        widths = end + 1
    n_blocks = (n + BLOCK - 1) // BLOCK
    first = widths + (n_blocks if is_wide else (n_blocks + 1) // 2)
    if first > end or (encoding != TABLE and kind == FLOAT and itemsize == 2):
        problem[0] = 1
        return
    for block in range(thread, n_blocks, step):
        width = _width(content, widths, block, is_wide)
        n_bits = width * lesser(BLOCK, n - block * BLOCK)
        shares[block] = (n_bits + 7) >> 3 if width <= most else _TOO_MANY
    cuda.syncthreads()
    total = np.int64(0)
    for block in range(n_blocks):
        if block % step == thread:
            begins[block] = total
        total += shares[block]
    if total != end - first:
        problem[0] = 1
        return
    cuda.syncthreads()
    least_integer, most_integer = _least(itemsize, kind), _most(itemsize, kind)
    if encoding == GAPS:
        for block in range(thread, n_blocks, step):
            width, bit = _width(content, widths, block, is_wide), 8 * (first + begins[block])
            total = np.int64(0)
            for k in range(lesser(BLOCK, n - block * BLOCK)):
                total += np.int64(_number(content, bit + k * width, width)) + 1
            shares[block] = total
        cuda.syncthreads()
        for block in range(thread, n_blocks, step):
            width, bit = _width(content, widths, block, is_wide), 8 * (first + begins[block])
            item = np.int64(-1)
            for before in range(block):
                item += shares[before]
            for k in range(block * BLOCK, lesser(n, (block + 1) * BLOCK)):
                item += np.int64(_number(content, bit + (k % BLOCK) * width, width)) + 1
                _put(
                    item, target + k, skip <= k < stop, True, below, mapping, out, bits, problem
                )  # fmt: skip
            if item > most_integer:
                problem[0] = 1
        return
    is_checked = encoding == OFFSETS and (kind == FLOAT or itemsize < 8)
    for k in range(thread, n, step):
        block = k // BLOCK
        width = _width(content, widths, block, is_wide)
        bit = 8 * (first + begins[block]) + (k % BLOCK) * width
        item = np.int64(_number(content, bit, width)) + base
        if encoding == TABLE:
            if item >= n_table:
                problem[0] = 1
                continue
            at = body + 2 + item * itemsize
            item = np.int64(_number(content, 8 * at, 8 * itemsize))
        elif is_checked and (item < least_integer or item > most_integer):
            problem[0] = 1
            continue
        _put(
            item, target + k, skip <= k < stop, encoding == OFFSETS, below, mapping, out, bits,
            problem,
        )  # fmt: skip


def decode(
    content: DeviceArray,
    table: slice,
    item: tuple[int, int],
    bound: tuple[int, DeviceArray],
    out: DeviceArray,
    problem: DeviceArray,
) -> None:
    """Enqueue the kernel that decodes frames.

    Parameters
    ----------
    content
        The frames, and their table at its beginning.
    table
        The rows of the table to decode, see :mod:`~.frame_gathering`.
    item
        Bytes and kind of a stored item.
    bound
        Upper bound of ids, 0 for values, and their replacements, if there are any.
    out
        Output, of the stored type or wider integers.
    problem
        Output, set to 1 if a frame is invalid.
    """
    n = table.stop - table.start
    if not n:
        return
    row_bytes = 8 * N_COLUMNS
    rows = content[row_bytes * table.start : row_bytes * table.stop].view(np.int64)
    bits = out.view(f"u{out.dtype.itemsize}")
    _decode[n, THREADS](content, rows.reshape(n, N_COLUMNS), *item, *bound, out, bits, problem)


def decode_rows(
    n_values: int,
    n_frames: int,
    items: tuple[tuple[int, int], tuple[int, int]],
    below: int,
    content: DeviceArray,
    mapping: DeviceArray,
    values: DeviceArray,
    ids: DeviceArray,
    problem: DeviceArray,
) -> None:
    """Enqueue the kernels that decode `n_values` frames of values, and then those of ids.

    The other parameters are those of :func:`decode`, of the values and of the ids.
    """
    decode(content, slice(0, n_values), items[0], (0, mapping), values, problem)
    decode(content, slice(n_values, n_frames), items[1], (below, mapping), ids, problem)
