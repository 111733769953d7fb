"""Decoding of pcodec chunks in compiled code.

One call decodes many chunks of 16-bit unsigned numbers in classic mode, which conversions use for
column ids and counts. The package decodes all others, and is the reference in tests.

Source: Pco format specification.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import Int, helper, kernel
from storage_backends.directory.content import CHECKSUM_BYTES, Content
from storage_backends.zarr.codecs import bit_lanes
from storage_backends.zarr.codecs.bit_lanes import LANES
from storage_backends.zarr.codecs.blosc import CRC32C, SOUND, UNFIT, byte_at, is_intact, word_at
from storage_backends.zarr.codecs.pcodec_head import (
    BATCH,
    BATCH_BYTES,
    BYTE,
    ONE,
    Scratch,
    bits,
    read_head,
)

#: Type of the numbers that are decoded here.
DTYPE = np.dtype(np.uint16)

#: Whether the processor supports lanes; a constant, so that others do not compile that code.
_IN_LANES = bit_lanes.IS_KNOWN

_MIDDLE = np.uint64(1 << 15)


#: Has the attribute `scratch` in threads that have decoded chunks.
_local = threading.local()


def decode(content: Content, needed: NDArray[np.int64], out: NDArray[np.uint16]) -> int:
    """Check and decode chunks into the rows of `out`.

    Parameters
    ----------
    content
        Files with their checksums.
    needed
        Numbers to decode of each chunk; a few more may be decoded.

    Returns
    -------
    int
        SOUND, or see :func:`~storage_backends.zarr.codecs.blosc.problem_at`.
    """
    if not hasattr(_local, "scratch"):
        _local.scratch = Scratch.new()
    where = content.addresses, content.lengths, needed
    return int(_decode(CRC32C, *where, _local.scratch, out))


@kernel
def _decode(
    crc32c: int,
    addresses: NDArray[np.int64],
    lengths: NDArray[np.int64],
    needed: NDArray[np.int64],
    scratch: Scratch,
    out: NDArray[np.uint16],
) -> Int:
    for i in range(len(addresses)):
        size = lengths[i] - CHECKSUM_BYTES
        if not is_intact(crc32c, addresses[i], size):
            return i
        end = addresses[i] + size
        position, size_log, n_moments = read_head(addresses[i], end, scratch, out.shape[1])
        if position < 0:
            return i - position
        left = _decode_page(position, end, size_log, n_moments, scratch, out[i], needed[i])
        # A zero follows the last chunk.
        is_whole = needed[i] < out.shape[1] or (left == 1 and byte_at(end - 1) == 0)
        if left < 0 or not is_whole:
            return i + UNFIT
    return SOUND


@helper
def _decode_page(
    position: Int,
    end: Int,
    size_log: Int,
    n_moments: Int,
    scratch: Scratch,
    out: NDArray[np.uint16],
    needed: Int,
) -> Int:
    """Decode batches up to `needed`; returns the number of unread bytes, negative if some lack."""
    moment = bits(position, end) & np.uint64(0xFFFF)
    position += 16 * n_moments
    word, mask = bits(position, end), np.uint64((1 << size_log) - 1)
    for k in range(4):
        scratch.current[k] = (word >> np.uint64(k * size_log)) & mask
    position = (position + 4 * size_log + 7) & ~7
    # There is one difference less than numbers.
    left, in_tail = len(out) - n_moments, False
    for start in range(0, needed, BATCH):
        n = max(0, min(BATCH, left))
        left -= n
        if not in_tail and (position >> 3) + BATCH_BYTES > end:
            if position > 8 * end:
                return -1
            in_tail = True
            position, end = move_to(scratch.tail, position, end)
        position = _read_bins_of(position, scratch, n)
        done = 0
        if _IN_LANES:
            done = n & -LANES
            target = out.ctypes.data + 2 * start
            if n_moments:
                position, moment = sum_up_in_lanes(position, scratch.batch, done, moment, target)
            else:
                position = add_offsets_in_lanes(position, scratch.batch, done, target)
        if done < BATCH and n_moments:
            position, moment = sum_up(position, scratch.batch, done, n, moment, out, start)
        elif done < n:
            position = add_offsets(position, scratch.batch, done, n, out, start)
        if position > 8 * end:
            return -1
    return end - ((position + 7) >> 3)


@helper
def move_to(tail: NDArray[np.uint8], position: Int, end: Int) -> tuple[Int, Int]:
    """Copy the rest of a file; returns the position and the end in the copy."""
    first = position >> 3
    for k in range(len(tail)):
        tail[k] = byte_at(first + k) if k < end - first else 0
    address = np.int64(tail.ctypes.data)
    return 8 * address + (position & 7), address + end - first


@helper
def _read_bins_of(position: Int, scratch: Scratch, n: Int) -> Int:
    """Decode the bin of each number with four interleaved states, which share each load."""
    states, at, batch = scratch.states, scratch.current, scratch.batch
    a, b, c, d = at[0], at[1], at[2], at[3]
    place = np.uint64(position)
    n_by_four = n & ~3
    for i in range(0, n_by_four, 4):
        word = word_at(np.int64(place >> np.uint64(3))) >> (place & np.uint64(7))
        one, two, three, four = states[a], states[b], states[c], states[d]
        batch[i], batch[i + 1], batch[i + 2], batch[i + 3] = one, two, three, four
        a = (one >> np.uint64(32)) + (word & ((ONE << (one & BYTE)) - ONE))
        word >>= one & BYTE
        b = (two >> np.uint64(32)) + (word & ((ONE << (two & BYTE)) - ONE))
        word >>= two & BYTE
        c = (three >> np.uint64(32)) + (word & ((ONE << (three & BYTE)) - ONE))
        word >>= three & BYTE
        d = (four >> np.uint64(32)) + (word & ((ONE << (four & BYTE)) - ONE))
        place += (one + two + three + four) & BYTE
    at[0], at[1], at[2], at[3] = a, b, c, d
    for i in range(n_by_four, n):
        state = states[at[i & 3]]
        n_bits = state & BYTE
        word = word_at(np.int64(place >> np.uint64(3))) >> (place & np.uint64(7))
        at[i & 3] = (state >> np.uint64(32)) + (word & ((ONE << n_bits) - ONE))
        place += n_bits
        batch[i] = state
    return np.int64(place)


@kernel
def add_offsets(
    position: Int,
    batch: NDArray[np.uint32],
    first: Int,
    n: Int,
    out: NDArray[np.uint16],
    start: Int,
) -> Int:
    """Compute numbers `first` to `n` of a batch from bins and offsets; `out` gets it from `start`.

    Returns the position after the offsets.
    """
    place = np.uint64(position)
    for i in range(first, n):
        n_bits = (batch[i] >> np.uint64(8)) & BYTE
        word = word_at(np.int64(place >> np.uint64(3))) >> (place & np.uint64(7))
        number = (batch[i] >> np.uint64(16)) + (word & ((ONE << n_bits) - ONE))
        out[start + i] = np.uint16(number)
        place += n_bits
    return np.int64(place)


@kernel
def sum_up(
    position: Int,
    batch: NDArray[np.uint32],
    first: Int,
    n: Int,
    moment: Any,
    out: NDArray[np.uint16],
    start: Int,
) -> tuple[Int, np.uint64]:
    """As :func:`add_offsets`, for differences; also returns the next number."""
    place = np.uint64(position)
    for i in range(first, n):
        n_bits = (batch[i] >> np.uint64(8)) & BYTE
        word = word_at(np.int64(place >> np.uint64(3))) >> (place & np.uint64(7))
        out[start + i] = np.uint16(moment)
        # Differences are stored around the middle of their range.
        moment += (batch[i] >> np.uint64(16)) + (word & ((ONE << n_bits) - ONE)) + _MIDDLE
        place += n_bits
    if n < BATCH and start + n < len(out):
        out[start + n] = np.uint16(moment)
    return np.int64(place), moment


@kernel
def add_offsets_in_lanes(position: Int, batch: NDArray[np.uint32], n: Int, out: Int) -> Int:
    """Vectorized :func:`add_offsets` for whole groups; `out` is an address."""
    bins = batch.ctypes.data
    for i in range(0, n, LANES):
        where = position >> 3, np.uint64(position & 7)
        position += np.int64(bit_lanes.add_offsets(bins + 4 * i, *where, out + 2 * i))
    return position


@kernel
def sum_up_in_lanes(
    position: Int, batch: NDArray[np.uint32], n: Int, moment: Any, out: Int
) -> tuple[Int, np.uint64]:
    """Vectorized :func:`sum_up` for whole groups; `out` is an address."""
    bins = batch.ctypes.data
    for i in range(0, n, LANES):
        where = position >> 3, np.uint64(position & 7)
        packed = bit_lanes.sum_up(bins + 4 * i, *where, moment, out + 2 * i)
        position += np.int64(packed & np.uint64(0xFFFFFFFF))
        moment += packed >> np.uint64(32)
    return position, moment
