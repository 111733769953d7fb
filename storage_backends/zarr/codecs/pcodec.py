"""Decoding of pcodec chunks in compiled code.

This module decodes chunks of 16-bit unsigned numbers in classic mode, the form of ids and counts:
many in one call, each placed while it is in the CPU cache. The package decodes all others, and
serves as the reference in tests.

Sources: Pco format specification (wrapped format 3 within standalone format 2, and 4 within 3);
J. Duda, Asymmetric numeral systems, 2013, for the tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import kernel
from storage_backends.directory.content import CHECKSUM_BYTES
from storage_backends.zarr.codecs import bit_lanes
from storage_backends.zarr.codecs.bit_lanes import LANES
from storage_backends.zarr.codecs.blosc import (
    SOUND,
    UNFIT,
    UNKNOWN,
    byte_at,
    is_intact,
    leading_zeros,
    word_at,
)
from storage_backends.zarr.plan import Bound
from storage_backends.zarr.plan import place as place_pieces

#: Type of the numbers that are decoded here.
DTYPE = np.dtype(np.uint16)

_UINT16_CODE = 7
_BATCH = 256
#: Maximum bytes of a batch: 14 bits per state, 16 per offset, and the span of one load.
_BATCH_BYTES = _BATCH * (14 + 16) // 8 + bit_lanes.LOADED_BYTES
_MOST_STATES = 1 << 14

#: Whether the processor supports lanes; a constant, so that others do not compile that code.
_IN_LANES = bit_lanes.IS_KNOWN

#: An int64, which is an int to callers and not to NumPy.
_Int = Any

_ONE = np.uint64(1)
_BYTE = np.uint64(0xFF)
_MIDDLE = np.uint64(1 << 15)


@kernel
def place(
    crc32c: int,
    addresses: NDArray[np.int64],
    lengths: NDArray[np.int64],
    start: int,
    stop: int,
    memory: NDArray[np.uint16],
    bounds: NDArray[np.int64],
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    piece_lengths: NDArray[np.int64],
    bound: Bound,
    out: NDArray[Any],
) -> _Int:
    """Check and decode chunks ``[start, stop)`` in turn into `memory`, and copy pieces to `out`.

    Parameters and result are those of :func:`~storage_backends.zarr.codecs.blosc.place_blosc`.
    """
    states, bins, offsets = _scratch()
    for i in range(start, stop):
        size = lengths[i] - CHECKSUM_BYTES
        if not is_intact(crc32c, addresses[i], size):
            return i
        pieces = slice(bounds[i], bounds[i + 1])
        needed = (sources[pieces] + piece_lengths[pieces]).max()
        found = _decode_file(addresses[i], size, states, bins, offsets, memory, needed)
        if found != SOUND:
            return i + found
        where = sources[pieces], targets[pieces], piece_lengths[pieces]
        if not place_pieces(memory, *where, bound, out):
            return i + UNFIT
    return SOUND


@kernel
def decode(
    crc32c: int,
    addresses: NDArray[np.int64],
    lengths: NDArray[np.int64],
    out: NDArray[np.uint16],
) -> _Int:
    """Check and decode whole chunks into the rows of `out`; the result is that of :func:`place`."""
    states, bins, offsets = _scratch()
    for i in range(len(addresses)):
        size = lengths[i] - CHECKSUM_BYTES
        if not is_intact(crc32c, addresses[i], size):
            return i
        found = _decode_file(addresses[i], size, states, bins, offsets, out[i], out.shape[1])
        if found != SOUND:
            return i + found
    return SOUND


@kernel
def _scratch() -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]:
    """Allocate memory for decoder states, weights and contents of bins, and a batch."""
    return (
        np.empty(_MOST_STATES, np.uint64),
        np.empty((2, _MOST_STATES), np.uint64),
        np.empty(_BATCH, np.uint32),
    )


@kernel
def _bits(address: _Int, size: _Int, position: _Int) -> Any:
    """Load at least 57 bits at a position, zero-padded; never reads beyond `size` bytes."""
    first = position >> 3
    if first <= size - 8:
        return word_at(address + first) >> np.uint64(position & 7)
    word = np.uint64(0)
    for k in range(min(8, size - first)):
        word |= np.uint64(byte_at(address + first + k)) << np.uint64(8 * k)
    return word >> np.uint64(position & 7)


@kernel
def _decode_file(
    address: _Int,
    size: _Int,
    states: NDArray[np.uint64],
    bins: NDArray[np.uint64],
    offsets: NDArray[np.uint32],
    out: NDArray[np.uint16],
    needed: _Int,
) -> _Int:
    """Decode the first `needed` numbers of a file of one chunk, and perhaps some more.

    Returns SOUND, or the value to add to the position of the chunk.
    """
    head = _head_bytes(address, size)
    if head < 0:
        return UNKNOWN
    where, size = address + head, size - head
    start = _bits(where, size, 0)
    if start & np.uint64(0xFF) != np.uint64(_UINT16_CODE):
        return UNKNOWN
    if np.int64((start >> np.uint64(8)) & np.uint64(0xFFFFFF)) + 1 != len(out):
        return UNFIT
    settings = _bits(where, size, 32)
    mode, delta = settings & np.uint64(15), (settings >> np.uint64(4)) & np.uint64(15)
    # First-order differences, without a secondary latent variable.
    first_order = (settings >> np.uint64(8)) & np.uint64(15) == _ONE
    if mode != np.uint64(0) or delta > _ONE or (delta == _ONE and not first_order):
        return UNKNOWN
    n_moments = np.int64(delta)
    if len(out) <= n_moments:
        return UNKNOWN
    position, size_log = _read_bins(where, size, 40 + 4 * n_moments, states, bins)
    if position < 0:
        return UNFIT
    end = _decode_page(where, size, position, size_log, n_moments, states, offsets, out, needed)
    if end < 0 or needed < len(out):
        return SOUND if end >= 0 else UNFIT
    # A zero follows the last chunk.
    last = (end + 7) >> 3
    return SOUND if last == size - 1 and byte_at(where + last) == 0 else UNFIT


@kernel
def _head_bytes(address: _Int, size: _Int) -> _Int:
    """Bytes before the first chunk; -1 for unsupported formats."""
    start = _bits(address, size, 0)
    if size < 16 or start & np.uint64(0xFFFFFFFF) != np.uint64(0x216F6370):  # pco!
        return -1
    standalone = (start >> np.uint64(32)) & np.uint64(0xFF)
    if standalone == np.uint64(2):
        n_hint = np.int64(start >> np.uint64(40)) & 63
        head = 5 + ((n_hint + 14) >> 3) + 1
        return head if byte_at(address + head - 1) == 3 else -1
    if standalone == np.uint64(3) and (start >> np.uint64(40)) & np.uint64(0xFF) == np.uint64(0):
        n_hint = np.int64(start >> np.uint64(48)) & 63
        head = 6 + ((n_hint + 14) >> 3) + 2
        return head if byte_at(address + head - 2) == 4 else -1
    return -1


@kernel
def _read_bins(
    address: _Int,
    size: _Int,
    position: _Int,
    states: NDArray[np.uint64],
    bins: NDArray[np.uint64],
) -> tuple[_Int, _Int]:
    """Fill the table of states; returns the position behind the bins, or -1, and its logarithm.

    A state is how many bits to read (8), how many the offset has (8), the lower bound of the bin
    (16), which together tell the bin, and the next state without its new bits.
    """
    start = _bits(address, size, position)
    size_log = np.int64(start & np.uint64(15))
    n_bins, n_states = np.int64((start >> np.uint64(4)) & np.uint64(0x7FFF)), 1 << size_log
    position += 19
    if n_states > _MOST_STATES or n_bins < 1 or n_bins > n_states:
        return -1, 0
    weights, contents = bins
    total = np.int64(0)
    for i in range(n_bins):
        word = _bits(address, size, position)
        weights[i] = (word & np.uint64(n_states - 1)) + _ONE
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
        weights[i] += _ONE
        n_bits = np.uint64(size_log) + leading_zeros(visit) - np.uint64(63)
        following = (visit << n_bits) - np.uint64(n_states)
        states[k] = n_bits | contents[i] | following << np.uint64(32)
    return (position + 7) & ~7, size_log


@kernel
def _decode_page(
    address: _Int,
    size: _Int,
    position: _Int,
    size_log: _Int,
    n_moments: _Int,
    states: NDArray[np.uint64],
    offsets: NDArray[np.uint32],
    out: NDArray[np.uint16],
    needed: _Int,
) -> _Int:
    """Decode batches up to `needed`; returns the position behind, or -1 where bytes do not last."""
    moment = _bits(address, size, position) & np.uint64(0xFFFF)
    position += 16 * n_moments
    word, mask, shift = _bits(address, size, position), (1 << size_log) - 1, size_log
    at = np.empty(4, np.uint64)
    for k in range(4):
        at[k] = (word >> np.uint64(k * shift)) & np.uint64(mask)
    position = (position + 4 * size_log + 7) & ~7
    # There is one difference less than numbers.
    left = len(out) - n_moments
    tail = np.zeros(0, np.uint8)
    for start in range(0, needed, _BATCH):
        n = max(0, min(_BATCH, left))
        left -= n
        if len(tail) == 0 and (position >> 3) + _BATCH_BYTES > size:
            # Copy the rest into a zero-padded buffer, so that loads may exceed its end.
            tail = np.zeros(2 * _BATCH_BYTES, np.uint8)
            done = position >> 3
            for k in range(size - done):
                tail[k] = byte_at(address + done + k)
            address = tail.ctypes.data - done
        position = _read_bins_of(address, position, states, at, offsets, n)
        done = 0
        if _IN_LANES:
            done = n & -LANES
            bins, target = offsets.ctypes.data, out.ctypes.data + 2 * start
            if n_moments:
                position, moment = sum_up_in_lanes(address, position, bins, done, moment, target)
            else:
                position = add_offsets_in_lanes(address, position, bins, done, target)
        if done < _BATCH and n_moments:
            position, moment = sum_up(address, position, offsets, done, n, moment, out, start)
        elif done < n:
            position = add_offsets(address, position, offsets, done, n, out, start)
        if position > 8 * size:
            return -1
    return position


@kernel
def _read_bins_of(
    address: _Int,
    position: _Int,
    states: NDArray[np.uint64],
    at: NDArray[np.uint64],
    offsets: NDArray[np.uint32],
    n: _Int,
) -> _Int:
    """Decode the bin of each number with four interleaved states, which share each load."""
    a, b, c, d = at[0], at[1], at[2], at[3]
    place, base = np.uint64(position), np.uint64(address)
    n_by_four = n & ~3
    for i in range(0, n_by_four, 4):
        word = word_at(np.int64(base + (place >> np.uint64(3)))) >> (place & np.uint64(7))
        one, two, three, four = states[a], states[b], states[c], states[d]
        offsets[i], offsets[i + 1], offsets[i + 2], offsets[i + 3] = one, two, three, four
        a = (one >> np.uint64(32)) + (word & ((_ONE << (one & _BYTE)) - _ONE))
        word >>= one & _BYTE
        b = (two >> np.uint64(32)) + (word & ((_ONE << (two & _BYTE)) - _ONE))
        word >>= two & _BYTE
        c = (three >> np.uint64(32)) + (word & ((_ONE << (three & _BYTE)) - _ONE))
        word >>= three & _BYTE
        d = (four >> np.uint64(32)) + (word & ((_ONE << (four & _BYTE)) - _ONE))
        place += (one + two + three + four) & _BYTE
    at[0], at[1], at[2], at[3] = a, b, c, d
    for i in range(n_by_four, n):
        state = states[at[i & 3]]
        n_bits = state & _BYTE
        word = word_at(np.int64(base + (place >> np.uint64(3)))) >> (place & np.uint64(7))
        at[i & 3] = (state >> np.uint64(32)) + (word & ((_ONE << n_bits) - _ONE))
        place += n_bits
        offsets[i] = state
    return np.int64(place)


@kernel
def add_offsets(
    address: _Int,
    position: _Int,
    offsets: NDArray[np.uint32],
    first: _Int,
    n: _Int,
    out: NDArray[np.uint16],
    start: _Int,
) -> _Int:
    """Numbers from their bins and offsets: those from `first` to `n` of a batch, `start` in `out`.

    Returns the position behind the offsets.
    """
    place, base = np.uint64(position), np.uint64(address)
    for i in range(first, n):
        n_bits = (offsets[i] >> np.uint64(8)) & _BYTE
        word = word_at(np.int64(base + (place >> np.uint64(3)))) >> (place & np.uint64(7))
        number = (offsets[i] >> np.uint64(16)) + (word & ((_ONE << n_bits) - _ONE))
        out[start + i] = np.uint16(number)
        place += n_bits
    return np.int64(place)


@kernel
def sum_up(
    address: _Int,
    position: _Int,
    offsets: NDArray[np.uint32],
    first: _Int,
    n: _Int,
    moment: Any,
    out: NDArray[np.uint16],
    start: _Int,
) -> tuple[_Int, np.uint64]:
    """As :func:`add_offsets`, for differences; also returns the next number."""
    place, base = np.uint64(position), np.uint64(address)
    n_by_two = first + ((n - first) & ~1)
    for i in range(first, n_by_two, 2):
        one, two = offsets[i] >> np.uint64(8), offsets[i + 1] >> np.uint64(8)
        # Two offsets take at most 32 bits; a load has 57.
        word = word_at(np.int64(base + (place >> np.uint64(3)))) >> (place & np.uint64(7))
        out[start + i] = np.uint16(moment)
        # Differences are stored around the middle of their range.
        moment += (one >> np.uint64(8)) + (word & ((_ONE << (one & _BYTE)) - _ONE)) + _MIDDLE
        word >>= one & _BYTE
        out[start + i + 1] = np.uint16(moment)
        moment += (two >> np.uint64(8)) + (word & ((_ONE << (two & _BYTE)) - _ONE)) + _MIDDLE
        place += (one + two) & _BYTE
    for i in range(n_by_two, n):
        n_bits = (offsets[i] >> np.uint64(8)) & _BYTE
        word = word_at(np.int64(base + (place >> np.uint64(3)))) >> (place & np.uint64(7))
        out[start + i] = np.uint16(moment)
        moment += (offsets[i] >> np.uint64(16)) + (word & ((_ONE << n_bits) - _ONE)) + _MIDDLE
        place += n_bits
    if n < _BATCH and start + n < len(out):
        out[start + n] = np.uint16(moment)
    return np.int64(place), moment


@kernel
def add_offsets_in_lanes(address: _Int, position: _Int, offsets: _Int, n: _Int, out: _Int) -> _Int:
    """Vectorized :func:`add_offsets` for whole groups; arrays are given by address."""
    for i in range(0, n, LANES):
        where = address + (position >> 3), np.uint64(position & 7)
        position += np.int64(bit_lanes.add_offsets(offsets + 4 * i, *where, out + 2 * i))
    return position


@kernel
def sum_up_in_lanes(
    address: _Int, position: _Int, offsets: _Int, n: _Int, moment: Any, out: _Int
) -> tuple[_Int, np.uint64]:
    """Vectorized :func:`sum_up` for whole groups; arrays are given by address."""
    for i in range(0, n, LANES):
        where = address + (position >> 3), np.uint64(position & 7)
        packed = bit_lanes.sum_up(offsets + 4 * i, *where, moment, out + 2 * i)
        position += np.int64(packed & np.uint64(0xFFFFFFFF))
        moment += packed >> np.uint64(32)
    return position, moment
