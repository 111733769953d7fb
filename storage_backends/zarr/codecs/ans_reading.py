"""Decoding chunks in the format of :mod:`storage_backends.zarr.codecs.ans_format`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import Int, helper, kernel
from storage_backends.directory.content import CHECKSUM_BYTES
from storage_backends.zarr.codecs import bit_lanes
from storage_backends.zarr.codecs.ans_format import (
    BATCH,
    GROUP,
    MOST_LENGTH,
    N_CODERS,
    N_STATES,
    STATE_BITS,
    VERSION,
    context_of,
)
from storage_backends.zarr.codecs.ans_states import MIDDLE, read_tokens
from storage_backends.zarr.codecs.bit_lanes import LANES
from storage_backends.zarr.codecs.blosc import (
    LATER,
    SOUND,
    UNFIT,
    byte_at,
    is_intact,
    number_at,
    word_at,
)
from storage_backends.zarr.codecs.pcodec import (
    add_offsets,
    add_offsets_in_lanes,
    move_to,
    sum_up,
    sum_up_in_lanes,
)
from storage_backends.zarr.codecs.pcodec_head import BYTE, ONE, bits

#: Bytes that decoding a batch may load.
_BATCH_BYTES = BATCH * (STATE_BITS + 64) // 8 + bit_lanes.LOADED_BYTES
_STATE_BYTES = 2 * N_CODERS

_IN_LANES = bit_lanes.IS_KNOWN


@kernel
def decode(
    crc32c: Int,
    addresses: NDArray[np.int64],
    lengths: NDArray[np.int64],
    needed: NDArray[np.int64],
    differences: bool,
    contexts: NDArray[np.uint8],
    states: NDArray[np.uint64],
    out: NDArray[Any],
) -> Int:
    """Check and decode chunks, with their checksums, into the rows of `out`.

    Parameters
    ----------
    needed
        Numbers to decode of each chunk; a few more may be decoded.
    contexts, states
        Table of each context, and the tables of :func:`~.ans_states.states_of`.
    out
        Unsigned integers.

    Returns
    -------
    int
        SOUND, or the position of a damaged chunk, to which UNFIT, or a version times LATER, may be
        added.
    """
    for i in range(len(addresses)):
        size = lengths[i] - CHECKSUM_BYTES
        if not is_intact(crc32c, addresses[i], size):
            return i
        end = addresses[i] + size
        found = _decode_chunk(addresses[i], end, needed[i], differences, contexts, states, out[i])
        if found != SOUND:
            return i + found
    return SOUND


@helper
def number_in_sevens(address: Int, end: Int) -> tuple[Int, Int]:
    """A number in groups of seven bits, and the address after it; -1 if it is invalid."""
    number: Int = 0
    shift = 0
    while address < end and shift < 42:
        byte = np.int64(byte_at(address))
        number |= (byte & 127) << shift
        address, shift = address + 1, shift + 7
        if byte < 128:
            return number, address
    return -1, end


@helper
def _check_rows(address: Int, end: Int, n_items: Int) -> tuple[Int, Int, Int, Int]:
    """Number of rows, items of the first that are in other chunks, addresses of lengths and states.

    The number of rows is -1 if these are invalid, or not as many as the items.
    """
    n_rows, at = number_in_sevens(address + 1, end)
    before, at = number_in_sevens(at, end)
    last: Int = 0
    first, left = at, n_items + before
    if before < 0:
        return -1, 0, 0, 0
    for row in range(n_rows):
        last, at = number_in_sevens(at, end)
        # The first row has items in this chunk, and so has the last.
        if last < 1 or last >= MOST_LENGTH or left < 1 or (row == 0 and last <= before):
            return -1, 0, 0, 0
        left -= last
    is_valid = left <= 0 and (n_rows > 0) == (n_items > 0) and end - at >= _STATE_BYTES
    return (n_rows if is_valid else -1), before, first, at


@helper
def _decode_chunk(
    address: Int,
    end: Int,
    needed: Int,
    differences: bool,
    contexts: NDArray[np.uint8],
    states: NDArray[np.uint64],
    out: NDArray[Any],
) -> Int:
    """SOUND, or the value to add to the position of a chunk."""
    if address == end:
        return UNFIT
    version = np.int64(byte_at(address))
    if version != VERSION:
        return version * LATER if version > VERSION else UNFIT
    n_rows, before, at, position = _check_rows(address, end, len(out))
    if n_rows < 0:
        return UNFIT
    current = np.empty(N_CODERS, np.uint64)
    for k in range(N_CODERS):
        current[k] = bits(8 * (position + 2 * k), end) & np.uint64(0xFFFF)
        if current[k] >= np.uint64(N_STATES):
            return UNFIT
    batch, tail, in_tail = np.empty(BATCH, np.uint32), np.empty(2 * _BATCH_BYTES, np.uint8), False
    lengths_end = position
    position, start = 8 * (position + _STATE_BYTES), 0
    for _ in range(n_rows):
        length, at = number_in_sevens(at, lengths_end)
        previous, stop = np.int64(-1), min(start + length - before, len(out))
        for first in range(start, stop, BATCH):
            if first >= needed:
                return SOUND
            if not in_tail and (position >> 3) + _BATCH_BYTES > end:
                in_tail = True
                position, end = move_to(tail, position, end)
            n = min(BATCH, stop - first)
            for k in range(0, n, GROUP):
                table = contexts[context_of(before + first - start + k, length)]
                where = states.ctypes.data + 8 * N_STATES * np.int64(table)
                position = read_tokens(position, where, current, batch, k, min(k + GROUP, n))
            position, previous = _place(position, batch, n, differences, previous, out, first)
            if position > 8 * end:
                return UNFIT
        start, before = stop, 0
    return SOUND if (position + 7) >> 3 == end else UNFIT


@kernel
def _place(
    position: Int,
    batch: NDArray[np.uint32],
    n: Int,
    differences: bool,
    previous: Int,
    out: NDArray[Any],
    start: Int,
) -> tuple[Int, Int]:
    """Compute the numbers of a batch from tokens and offsets; `out` gets them from `start`.

    Returns the position after the offsets, and the last number.
    """
    done, target = 0, out.ctypes.data + out.itemsize * start
    if out.itemsize != 2:
        return _place_any(position, batch, n, differences, previous, out, start)
    if not differences:
        if _IN_LANES:
            done = n & -LANES
            position = add_offsets_in_lanes(position, batch, done, target)
        return add_offsets(position, batch, done, n, out, start), previous
    # Each number is stored before the next difference is added.
    width = (batch[0] >> np.uint64(8)) & BYTE
    word = word_at(position >> 3) >> np.uint64(position & 7)
    moment = np.uint64(np.int64(previous) + MIDDLE) + (batch[0] >> np.uint64(16))
    moment += word & ((ONE << width) - ONE)
    position, rest = position + np.int64(width), batch[1:]
    if _IN_LANES:
        done = (n - 1) & -LANES
        position, moment = sum_up_in_lanes(position, rest, done, moment, target)
    position, moment = sum_up(position, rest, done, n - 1, moment, out, start)
    return position, np.int64(moment)


@helper
def _place_any(
    position: Int,
    batch: NDArray[np.uint32],
    n: Int,
    differences: bool,
    previous: Int,
    out: NDArray[Any],
    start: Int,
) -> tuple[Int, Int]:
    """The same as :func:`_place` for numbers of any size."""
    moment = np.uint64(previous)
    for k in range(n):
        width = np.int64((batch[k] >> np.uint64(8)) & BYTE)
        number = np.uint64(batch[k] >> np.uint64(16))
        # In two halves, as one load has 57 bits at least.
        for shift in range(0, width, 32):
            taken: Int = min(32, width - shift)
            word = np.uint64(number_at(position >> 3))
            word |= np.uint64(byte_at((position >> 3) + 4)) << np.uint64(32)
            word >>= np.uint64(position & 7)
            number += (word & ((ONE << np.uint64(taken)) - ONE)) << np.uint64(shift)
            position += taken
        if differences:
            moment += number + ONE
            number = moment
        out[start + k] = number
    return position, np.int64(moment)
