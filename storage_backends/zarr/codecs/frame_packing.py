"""Numbers of frames that are written: read from items, and packed in blocks.

The format is that of :mod:`storage_backends.zarr.codecs.frame_format`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import Int, helper, kernel
from storage_backends.zarr.codecs.blosc import leading_zeros, put_word
from storage_backends.zarr.codecs.frame_format import BLOCK, FLOAT, SIGNED


@kernel
def _copy(items: NDArray[Any], bits: NDArray[np.uint64]) -> None:
    for k in range(len(bits)):
        bits[k] = items[k]


@helper
def load_bits(raw: NDArray[np.uint8], itemsize: Int, bits: NDArray[np.uint64]) -> None:
    """Read the bits of items."""
    if itemsize == 1:
        _copy(raw, bits)
    elif itemsize == 2:
        _copy(raw.view(np.uint16), bits)
    elif itemsize == 4:
        _copy(raw.view(np.uint32), bits)
    else:
        _copy(raw.view(np.uint64), bits)


@kernel
def _integers(floats: NDArray[Any], numbers: NDArray[np.int64]) -> bool:
    """Convert floats to the integers that represent them bit by bit; False if one has none."""
    limit = 1 << (24 if floats.itemsize == 4 else 53)
    wrong = 0
    for k in range(len(numbers)):
        number = floats[k]
        # The conversion of others is undefined.
        integer = np.int64(number) if abs(number) <= limit else 0
        numbers[k] = integer
        wrong += (integer != number) | ((integer == 0) & np.signbit(number))
    return wrong == 0


@kernel
def load(raw: NDArray[np.uint8], itemsize: Int, kind: Int,
          numbers: NDArray[np.int64], bits: NDArray[np.uint64]) -> bool:  # fmt: skip
    """Read items as integers; False if these do not represent them bit by bit.

    `bits` are the same memory as `numbers`.
    """
    if kind == FLOAT and itemsize == 2:
        return False
    if kind == FLOAT:
        if itemsize == 4:
            return _integers(raw.view(np.float32), numbers)
        return _integers(raw.view(np.float64), numbers)
    load_bits(raw, itemsize, bits)
    if kind == SIGNED:
        shift = 64 - 8 * itemsize
        for k in range(len(numbers)):
            numbers[k] = (numbers[k] << shift) >> shift
    return True


@kernel
def bit_length(number: Int) -> Int:
    """Bits of an unsigned number without leading zeros."""
    return 64 - np.int64(leading_zeros(np.uint64(number)))


@helper
def find_widths(numbers: NDArray[np.uint64], n: Int, widths: NDArray[np.uint8]) -> tuple[Int, Int]:
    """Find the widths of blocks; returns the bytes of packed numbers, and the largest width."""
    n_blocks = (n + BLOCK - 1) // BLOCK
    numbers[n : n_blocks * BLOCK] = 0
    size = most = width = 0
    for block in range(n_blocks):
        union = np.uint64(0)
        for k in range(BLOCK):
            union |= numbers[block * BLOCK + k]
        width = bit_length(union)
        widths[block] = width
        size += width * (BLOCK // 8)
        most = max(most, width)
    # The last block may be shorter.
    size -= (width * (n_blocks * BLOCK - n)) >> 3
    return size + (n_blocks if most > 15 else (n_blocks + 1) // 2), most


@kernel
def pack(numbers: NDArray[np.uint64], n: Int, widths: NDArray[np.uint8], wide: bool,
          out: NDArray[np.uint8], at: Int) -> Int:  # fmt: skip
    """Write packed numbers, which zeros follow to the end of the last block.

    Returns the position after them.
    """
    n_blocks = (n + BLOCK - 1) // BLOCK
    for block in range(n_blocks):
        if wide:
            out[at + block] = widths[block]
        elif block & 1:
            out[at + (block >> 1)] |= widths[block] << np.uint8(4)
        else:
            out[at + (block >> 1)] = widths[block]
    at += n_blocks if wide else (n_blocks + 1) // 2
    joined = np.empty(BLOCK // 4, np.uint64)
    for block in range(n_blocks):
        width, first = np.int64(widths[block]), block * BLOCK
        if width <= 16:
            # What is written beyond the last byte is written again.
            _join(numbers, first, width, joined)
            _put_numbers(joined, 4 * width, out, at)
        else:
            _put_numbers(numbers[first : first + BLOCK], width, out, at)
        at += (min(n - first, BLOCK) * width + 7) >> 3
    return at


@kernel
def _join(numbers: NDArray[np.uint64], first: Int, width: Int, out: NDArray[np.uint64]) -> None:
    """Join each four numbers of a block to one that is four times as wide."""
    w = np.uint64(width)
    for k in range(len(out)):
        at = first + 4 * k
        low = numbers[at] | numbers[at + 1] << w
        high = numbers[at + 2] | numbers[at + 3] << w
        out[k] = low | high << (w + w)


@kernel
def _put_numbers(numbers: NDArray[np.uint64], width: Int, out: NDArray[np.uint8], at: Int) -> None:
    """Write numbers of a width one after the other."""
    word, filled = np.uint64(0), np.int64(0)
    for k in range(len(numbers)):
        word |= numbers[k] << np.uint64(filled)
        filled += width
        if filled >= 64:
            put_word(out, at, word)
            at, filled = at + 8, filled - 64
            # A shift by 64 would have no effect.
            word = numbers[k] >> np.uint64(width - filled) if filled else np.uint64(0)
    put_word(out, at, word)
