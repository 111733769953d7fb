"""Decoding of pcodec chunks in compiled code.

One call decodes many chunks of 16-bit unsigned numbers in classic mode, which conversions use for
column ids and counts. The package decodes all others, and is the reference in tests.

Sources: Pco format specification (wrapped format 3 within standalone format 2, and 4 within 3);
J. Duda, Asymmetric numeral systems, 2013, for the tables.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import kernel
from storage_backends.directory.content import CHECKSUM_BYTES, Content
from storage_backends.zarr.codecs import bit_lanes
from storage_backends.zarr.codecs.bit_lanes import LANES
from storage_backends.zarr.codecs.blosc import (
    CRC32C,
    SOUND,
    UNFIT,
    UNKNOWN,
    byte_at,
    is_intact,
    leading_zeros,
    word_at,
)

#: Type of the numbers that are decoded here.
DTYPE = np.dtype(np.uint16)

_UINT16_CODE = 7
_BATCH = 256
#: Maximum bytes of a batch: 14 bits per state, 16 per offset, and the span of one load.
_BATCH_BYTES = _BATCH * (14 + 16) // 8 + bit_lanes.LOADED_BYTES
_MOST_STATES = 1 << 14

#: Whether the processor supports lanes; a constant, so that others do not compile that code.
_IN_LANES = bit_lanes.IS_KNOWN

#: int64 in compiled code; the static type differs between callers, so it is Any.
_Int = Any

_ONE = np.uint64(1)
_BYTE = np.uint64(0xFF)
_MIDDLE = np.uint64(1 << 15)


class _Scratch(NamedTuple):
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
    def new(cls) -> _Scratch:
        states, weights, contents = np.empty((3, _MOST_STATES), np.uint64)
        batch, tail = np.empty(_BATCH, np.uint32), np.empty(2 * _BATCH_BYTES, np.uint8)
        return cls(states, weights, contents, np.empty(4, np.uint64), batch, tail)


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
        _local.scratch = _Scratch.new()
    where = content.addresses, content.lengths, needed
    return int(_decode(CRC32C, *where, _local.scratch, out))


@kernel
def _decode(
    crc32c: int,
    addresses: NDArray[np.int64],
    lengths: NDArray[np.int64],
    needed: NDArray[np.int64],
    scratch: _Scratch,
    out: NDArray[np.uint16],
) -> _Int:
    for i in range(len(addresses)):
        size = lengths[i] - CHECKSUM_BYTES
        if not is_intact(crc32c, addresses[i], size):
            return i
        end = addresses[i] + size
        position, size_log, n_moments = _read_head(addresses[i], end, scratch, out.shape[1])
        if position < 0:
            return i - position
        left = _decode_page(position, end, size_log, n_moments, scratch, out[i], needed[i])
        # A zero follows the last chunk.
        is_whole = needed[i] < out.shape[1] or (left == 1 and byte_at(end - 1) == 0)
        if left < 0 or not is_whole:
            return i + UNFIT
    return SOUND


@kernel
def _bits(position: _Int, end: _Int) -> Any:
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


@kernel
def _read_head(
    address: _Int, end: _Int, scratch: _Scratch, length: _Int
) -> tuple[_Int, _Int, _Int]:
    """Read the header of a file with one chunk of `length` numbers.

    Returns the position of the numbers, the logarithm of the number of states, and the order of
    differences. A position of -UNFIT or -UNKNOWN reports the chunk as such.
    """
    where = _first_chunk(address, end)
    if where == 0:
        return -UNKNOWN, 0, 0
    start, settings = _bits(8 * where, end), _bits(8 * where + 32, end)
    mode, delta = settings & np.uint64(15), (settings >> np.uint64(4)) & np.uint64(15)
    # First-order differences, without a secondary latent variable.
    first_order = (settings >> np.uint64(8)) & np.uint64(15) == _ONE
    if start & _BYTE != np.uint64(_UINT16_CODE) or length <= np.int64(delta):
        return -UNKNOWN, 0, 0
    if np.int64((start >> np.uint64(8)) & np.uint64(0xFFFFFF)) + 1 != length:
        return -UNFIT, 0, 0
    if mode != np.uint64(0) or delta > _ONE or (delta == _ONE and not first_order):
        return -UNKNOWN, 0, 0
    position, size_log = _read_bins(8 * where + 40 + 4 * np.int64(delta), end, scratch)
    return position if position >= 0 else -UNFIT, size_log, np.int64(delta)


@kernel
def _first_chunk(address: _Int, end: _Int) -> _Int:
    """Address of the first chunk; 0 for unsupported formats."""
    start = _bits(8 * address, end)
    if end - address < 16 or start & np.uint64(0xFFFFFFFF) != np.uint64(0x216F6370):  # pco!
        return 0
    standalone = (start >> np.uint64(32)) & _BYTE
    if standalone == np.uint64(2):
        n_hint = np.int64(start >> np.uint64(40)) & 63
        version, wrapped = address + 5 + ((n_hint + 14) >> 3), 3
        head = 1
    elif standalone == np.uint64(3) and (start >> np.uint64(40)) & _BYTE == np.uint64(0):
        n_hint = np.int64(start >> np.uint64(48)) & 63
        version, wrapped = address + 6 + ((n_hint + 14) >> 3), 4
        head = 2
    else:
        return 0
    return version + head if byte_at(version) == wrapped else 0


@kernel
def _read_bins(position: _Int, end: _Int, scratch: _Scratch) -> tuple[_Int, _Int]:
    """Fill the table of states.

    Returns the position after the bins, or -1 if they are invalid, and the logarithm of the number
    of states. A state packs the number of bits to read (8 bits), the number of bits of the offset
    (8), the lower bound of the bin (16), and the next state without its new bits (32).
    """
    start = _bits(position, end)
    size_log = np.int64(start & np.uint64(15))
    n_bins, n_states = np.int64((start >> np.uint64(4)) & np.uint64(0x7FFF)), 1 << size_log
    position += 19
    if n_states > _MOST_STATES or n_bins < 1 or n_bins > n_states:
        return -1, 0
    states, weights, contents = scratch.states, scratch.weights, scratch.contents
    total = np.int64(0)
    for i in range(n_bins):
        word = _bits(position, end)
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
    position: _Int,
    end: _Int,
    size_log: _Int,
    n_moments: _Int,
    scratch: _Scratch,
    out: NDArray[np.uint16],
    needed: _Int,
) -> _Int:
    """Decode batches up to `needed`; returns the number of unread bytes, negative if some lack."""
    moment = _bits(position, end) & np.uint64(0xFFFF)
    position += 16 * n_moments
    word, mask = _bits(position, end), np.uint64((1 << size_log) - 1)
    for k in range(4):
        scratch.current[k] = (word >> np.uint64(k * size_log)) & mask
    position = (position + 4 * size_log + 7) & ~7
    # There is one difference less than numbers.
    left, in_tail = len(out) - n_moments, False
    for start in range(0, needed, _BATCH):
        n = max(0, min(_BATCH, left))
        left -= n
        if not in_tail and (position >> 3) + _BATCH_BYTES > end:
            if position > 8 * end:
                return -1
            in_tail = True
            position, end = _move_to(scratch.tail, position, end)
        position = _read_bins_of(position, scratch, n)
        done = 0
        if _IN_LANES:
            done = n & -LANES
            target = out.ctypes.data + 2 * start
            if n_moments:
                position, moment = sum_up_in_lanes(position, scratch.batch, done, moment, target)
            else:
                position = add_offsets_in_lanes(position, scratch.batch, done, target)
        if done < _BATCH and n_moments:
            position, moment = sum_up(position, scratch.batch, done, n, moment, out, start)
        elif done < n:
            position = add_offsets(position, scratch.batch, done, n, out, start)
        if position > 8 * end:
            return -1
    return end - ((position + 7) >> 3)


@kernel
def _move_to(tail: NDArray[np.uint8], position: _Int, end: _Int) -> tuple[_Int, _Int]:
    """Copy the rest of a file; returns the position and the end in the copy."""
    first = position >> 3
    for k in range(len(tail)):
        tail[k] = byte_at(first + k) if k < end - first else 0
    address = np.int64(tail.ctypes.data)
    return 8 * address + (position & 7), address + end - first


@kernel
def _read_bins_of(position: _Int, scratch: _Scratch, n: _Int) -> _Int:
    """Decode the bin of each number with four interleaved states, which share each load."""
    states, at, batch = scratch.states, scratch.current, scratch.batch
    a, b, c, d = at[0], at[1], at[2], at[3]
    place = np.uint64(position)
    n_by_four = n & ~3
    for i in range(0, n_by_four, 4):
        word = word_at(np.int64(place >> np.uint64(3))) >> (place & np.uint64(7))
        one, two, three, four = states[a], states[b], states[c], states[d]
        batch[i], batch[i + 1], batch[i + 2], batch[i + 3] = one, two, three, four
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
        word = word_at(np.int64(place >> np.uint64(3))) >> (place & np.uint64(7))
        at[i & 3] = (state >> np.uint64(32)) + (word & ((_ONE << n_bits) - _ONE))
        place += n_bits
        batch[i] = state
    return np.int64(place)


@kernel
def add_offsets(
    position: _Int,
    batch: NDArray[np.uint32],
    first: _Int,
    n: _Int,
    out: NDArray[np.uint16],
    start: _Int,
) -> _Int:
    """Compute numbers `first` to `n` of a batch from bins and offsets; `out` gets it from `start`.

    Returns the position after the offsets.
    """
    place = np.uint64(position)
    for i in range(first, n):
        n_bits = (batch[i] >> np.uint64(8)) & _BYTE
        word = word_at(np.int64(place >> np.uint64(3))) >> (place & np.uint64(7))
        number = (batch[i] >> np.uint64(16)) + (word & ((_ONE << n_bits) - _ONE))
        out[start + i] = np.uint16(number)
        place += n_bits
    return np.int64(place)


@kernel
def sum_up(
    position: _Int,
    batch: NDArray[np.uint32],
    first: _Int,
    n: _Int,
    moment: Any,
    out: NDArray[np.uint16],
    start: _Int,
) -> tuple[_Int, np.uint64]:
    """As :func:`add_offsets`, for differences; also returns the next number."""
    place = np.uint64(position)
    for i in range(first, n):
        n_bits = (batch[i] >> np.uint64(8)) & _BYTE
        word = word_at(np.int64(place >> np.uint64(3))) >> (place & np.uint64(7))
        out[start + i] = np.uint16(moment)
        # Differences are stored around the middle of their range.
        moment += (batch[i] >> np.uint64(16)) + (word & ((_ONE << n_bits) - _ONE)) + _MIDDLE
        place += n_bits
    if n < _BATCH and start + n < len(out):
        out[start + n] = np.uint16(moment)
    return np.int64(place), moment


@kernel
def add_offsets_in_lanes(position: _Int, batch: NDArray[np.uint32], n: _Int, out: _Int) -> _Int:
    """Vectorized :func:`add_offsets` for whole groups; `out` is an address."""
    bins = batch.ctypes.data
    for i in range(0, n, LANES):
        where = position >> 3, np.uint64(position & 7)
        position += np.int64(bit_lanes.add_offsets(bins + 4 * i, *where, out + 2 * i))
    return position


@kernel
def sum_up_in_lanes(
    position: _Int, batch: NDArray[np.uint32], n: _Int, moment: Any, out: _Int
) -> tuple[_Int, np.uint64]:
    """Vectorized :func:`sum_up` for whole groups; `out` is an address."""
    bins = batch.ctypes.data
    for i in range(0, n, LANES):
        where = position >> 3, np.uint64(position & 7)
        packed = bit_lanes.sum_up(bins + 4 * i, *where, moment, out + 2 * i)
        position += np.int64(packed & np.uint64(0xFFFFFFFF))
        moment += packed >> np.uint64(32)
    return position, moment
