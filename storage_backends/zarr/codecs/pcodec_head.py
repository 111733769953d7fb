"""Headers of pcodec chunks, and the tables with which their numbers are decoded.

Sources: Pco format specification (wrapped format 3 within standalone format 2, and 4 within 3);
J. Duda, Asymmetric numeral systems, 2013, for the tables.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import Int, helper
from storage_backends.zarr.codecs import bit_lanes
from storage_backends.zarr.codecs.blosc import UNFIT, UNKNOWN, byte_at, leading_zeros, word_at

_UINT16_CODE = 7
BATCH = 256
#: Maximum bytes of a batch: 14 bits per state, 16 per offset, and the span of one load.
BATCH_BYTES = BATCH * (14 + 16) // 8 + bit_lanes.LOADED_BYTES
_MOST_STATES = 1 << 14


ONE = np.uint64(1)
BYTE = np.uint64(0xFF)


class Scratch(NamedTuple):
    """Memory of the decoder.

    Attributes
    ----------
    states
        Table of the states.
    weights, contents
        Weight and packed content of each bin.
    current
        The four interleaved states.
    batch
        Bins of the numbers of a batch.
    tail
        The last bytes of a file followed by zeros, so that loads may exceed its end.
    """

    states: NDArray[np.uint64]
    weights: NDArray[np.uint64]
    contents: NDArray[np.uint64]
    current: NDArray[np.uint64]
    batch: NDArray[np.uint32]
    tail: NDArray[np.uint8]

    @classmethod
    def new(cls) -> Scratch:
        """New memory, not initialised."""
        states, weights, contents = np.empty((3, _MOST_STATES), np.uint64)
        batch, tail = np.empty(BATCH, np.uint32), np.empty(2 * BATCH_BYTES, np.uint8)
        return cls(states, weights, contents, np.empty(4, np.uint64), batch, tail)


@helper
def bits(position: Int, end: Int) -> Any:
    """Load at least 57 bits, zero-padded; never reads at or beyond the address `end`.

    Positions are addresses in bits.
    """
    first = position >> 3
    word = np.uint64(0)
    if first <= end - 8:
        word = word_at(first)
    else:
        for k in range(min(8, end - first)):
            word |= np.uint64(byte_at(first + k)) << np.uint64(8 * k)
    return word >> np.uint64(position & 7)


@helper
def read_head(address: Int, end: Int, scratch: Scratch, length: Int) -> tuple[Int, Int, Int]:
    """Read the header of a file with one chunk of `length` numbers.

    Returns the position of the numbers, the logarithm of the number of states, and the order of
    differences. A position of -UNFIT or -UNKNOWN reports the chunk as such.
    """
    where = _first_chunk(address, end)
    if where == 0:
        return -UNKNOWN, 0, 0
    start, settings = bits(8 * where, end), bits(8 * where + 32, end)
    mode, delta = settings & np.uint64(15), (settings >> np.uint64(4)) & np.uint64(15)
    # First-order differences, without a secondary latent variable.
    first_order = (settings >> np.uint64(8)) & np.uint64(15) == ONE
    if start & BYTE != np.uint64(_UINT16_CODE) or length <= np.int64(delta):
        return -UNKNOWN, 0, 0
    if np.int64((start >> np.uint64(8)) & np.uint64(0xFFFFFF)) + 1 != length:
        return -UNFIT, 0, 0
    if mode != np.uint64(0) or delta > ONE or (delta == ONE and not first_order):
        return -UNKNOWN, 0, 0
    position, size_log = _read_bins(8 * where + 40 + 4 * np.int64(delta), end, scratch)
    return position if position >= 0 else -UNFIT, size_log, np.int64(delta)


@helper
def _first_chunk(address: Int, end: Int) -> Int:
    """Address of the first chunk; 0 for unsupported formats."""
    start = bits(8 * address, end)
    if end - address < 16 or start & np.uint64(0xFFFFFFFF) != np.uint64(0x216F6370):  # pco!
        return 0
    standalone = (start >> np.uint64(32)) & BYTE
    if standalone == np.uint64(2):
        n_hint = np.int64(start >> np.uint64(40)) & 63
        version, wrapped = address + 5 + ((n_hint + 14) >> 3), 3
        head = 1
    elif standalone == np.uint64(3) and (start >> np.uint64(40)) & BYTE == np.uint64(0):
        n_hint = np.int64(start >> np.uint64(48)) & 63
        version, wrapped = address + 6 + ((n_hint + 14) >> 3), 4
        head = 2
    else:
        return 0
    return version + head if byte_at(version) == wrapped else 0


@helper
def _read_bins(position: Int, end: Int, scratch: Scratch) -> tuple[Int, Int]:
    """Fill the table of states.

    Returns the position after the bins, or -1 if they are invalid, and the logarithm of the number
    of states. A state packs the number of bits to read (8 bits), the number of bits of the offset
    (8), the lower bound of the bin (16), and the next state without its new bits (32).
    """
    start = bits(position, end)
    size_log = np.int64(start & np.uint64(15))
    n_bins, n_states = np.int64((start >> np.uint64(4)) & np.uint64(0x7FFF)), 1 << size_log
    position += 19
    if n_states > _MOST_STATES or n_bins < 1 or n_bins > n_states:
        return -1, 0
    states, weights, contents = scratch.states, scratch.weights, scratch.contents
    total = np.int64(0)
    for i in range(n_bins):
        word = bits(position, end)
        weights[i] = (word & np.uint64(n_states - 1)) + ONE
        lower, n_bits = word >> np.uint64(size_log), (word >> np.uint64(size_log + 16))
        lower, n_bits = lower & np.uint64(0xFFFF), n_bits & np.uint64(31)
        if n_bits > np.uint64(16):
            return -1, 0
        contents[i] = n_bits << np.uint64(8) | lower << np.uint64(16)
        total += np.int64(weights[i])
        position += size_log + 21
    if total != n_states:
        return -1, 0
    # The bins are spread over the states by steps of about three fifths.
    mask = np.uint64(n_states - 1)
    step, state = np.uint64((3 * n_states) // 5 | 1), np.uint64(0)
    for i in range(n_bins):
        for _ in range(np.int64(weights[i])):
            states[state] = np.uint64(i)
            state = (state + step) & mask
    for k in range(n_states):
        i = states[k]
        visit = weights[i]
        weights[i] += ONE
        n_bits = np.uint64(size_log) + leading_zeros(visit) - np.uint64(63)
        following = (visit << n_bits) - np.uint64(n_states)
        states[k] = n_bits | contents[i] | following << np.uint64(32)
    return (position + 7) & ~7, size_log
