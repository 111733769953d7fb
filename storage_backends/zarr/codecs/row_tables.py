"""Chunks of numbers that follow from those of another array, by a table of each row.

``docs/format.md`` describes them byte by byte. The table of a row has the number of each different
number of the other array, in the order in which they occur first. So the chunk needs no codes, and
the other array may be decoded to any type that tells its numbers apart.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import Int, helper, kernel
from storage_backends.directory.content import CHECKSUM_BYTES, Content, checksum
from storage_backends.zarr.codecs import blosc as native
from storage_backends.zarr.codecs.ans_reading import number_in_sevens
from storage_backends.zarr.codecs.ans_writing import in_sevens, rows_of
from storage_backends.zarr.codecs.blosc import LATER, SOUND, UNFIT, byte_at, is_intact
from storage_backends.zarr.codecs.chunk_errors import DamagedChunkError, check
from storage_backends.zarr.codecs.profiles import OF

#: First byte of a chunk.
VERSION = 1
#: Fewest bits of a position in the hash table, and most positions that are tried.
_LEAST_BITS, _MOST_TRIED = 8, 256
#: Fibonacci hashing: 2^64 divided by the golden ratio.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def encode(
    values: NDArray[Any], others: NDArray[Any], ends: NDArray[np.int64] | None
) -> bytes | None:
    """Encode a chunk with its checksum; None if it does not follow from the other numbers.

    The chunk is decoded again, and compared bit by bit.

    Parameters
    ----------
    values, others
        Numbers of the chunk and of the other array, one-dimensional.
    ends
        Where rows end, see :func:`~.ans_writing.encode`.
    """
    edges = np.unique(np.clip(rows_of(len(values), ends), 0, len(values)))
    bits = values.view(f"u{values.itemsize}")
    sizes, entries = np.empty(len(edges) - 1, np.int64), np.empty_like(bits)
    n = _encode(bits, others.view(f"u{others.itemsize}"), edges, sizes, entries)
    if n < 0:
        return None
    rows = np.stack([np.diff(edges), sizes], axis=1).reshape(-1).tolist()
    tables = entries[:n].astype(entries.dtype.newbyteorder("<")).tobytes()
    data = b"".join([bytes([VERSION]), *map(in_sevens, [len(sizes), *rows]), tables])
    chunk = np.frombuffer(data + checksum(data), np.uint8)
    content = Content(np.array([chunk.ctypes.data]), np.array([chunk.nbytes]), chunk)
    n_items, back = np.array([len(bits)]), np.empty((1, len(bits)), bits.dtype)
    with suppress(DamagedChunkError):
        decode(content, n_items, n_items, others.reshape(1, -1), back)
        if np.array_equal(back[0], bits):
            return chunk.tobytes()
    return None


def decode(
    content: Content,
    needed: NDArray[np.int64],
    n_items: NDArray[np.int64],
    others: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Decode chunks of `n_items` numbers each, and of each as many as are needed.

    Parameters
    ----------
    others
        The needed numbers of the other array, a row for each chunk.

    Raises
    ------
    DamagedChunkError
        A chunk is damaged, or a later version wrote it.
    """
    found = int(
        _decode(
            native.CRC32C,
            content.addresses,
            content.lengths,
            needed,
            n_items,
            others.view(f"u{others.itemsize}"),
            out.view(f"u{out.itemsize}"),
        )
    )
    check(found, OF, VERSION)


@helper
def _bits_for(n_entries: Int) -> Int:
    n_bits = _LEAST_BITS
    while (1 << n_bits) < 4 * n_entries:
        n_bits += 1
    return n_bits


@kernel
def _tables(n_entries: Int) -> tuple[Int, NDArray[np.int64], NDArray[np.uint64]]:
    """A hash table: bits of a position, entry at each position, and its number and value."""
    n_bits = _bits_for(n_entries)
    return n_bits, np.zeros(1 << n_bits, np.int64), np.empty((1 << n_bits, 2), np.uint64)


@helper
def _find(
    number: np.uint64,
    first: Int,
    n_bits: Int,
    entries: NDArray[np.int64],
    pairs: NDArray[np.uint64],
) -> Int:
    """Position of a number, or of the place for it; -1 if there is none.

    Entries count from 1 over all rows; those up to `first` are of rows before.
    """
    at = np.int64((number * _FACTOR) >> np.uint64(64 - n_bits))
    for _ in range(_MOST_TRIED):
        if entries[at] <= first or pairs[at, 0] == number:
            return at
        at = (at + 1) & ((1 << n_bits) - 1)
    return -1


@kernel
def _encode(
    values: NDArray[Any],
    others: NDArray[Any],
    edges: NDArray[np.int64],
    sizes: NDArray[np.int64],
    out: NDArray[Any],
) -> Int:
    """Write the entries of all tables, and the size of each; returns how many, or -1."""
    most = 0
    for row in range(len(edges) - 1):
        most = max(most, edges[row + 1] - edges[row])
    n_bits, entries, pairs = _tables(most)
    n = 0
    for row in range(len(edges) - 1):
        first = n
        for k in range(edges[row], edges[row + 1]):
            number, value = np.uint64(others[k]), np.uint64(values[k])
            at = _find(number, first, n_bits, entries, pairs)
            if at < 0:
                return -1
            if entries[at] <= first:
                out[n] = values[k]
                n += 1
                entries[at], pairs[at, 0], pairs[at, 1] = n, number, value
            elif pairs[at, 1] != value:
                return -1
        sizes[row] = n - first
    return n


@helper
def _check_rows(address: Int, end: Int, n_items: Int, itemsize: Int) -> tuple[Int, Int, Int, Int]:
    """Number of rows, address of the first, address of the tables, and size of the largest one.

    The number of rows is -1 if the chunk has not the right number of items or bytes.
    """
    n_rows, rows = number_in_sevens(address + 1, end)
    at, left, total, most = rows, n_items, np.int64(0), np.int64(0)
    for _ in range(n_rows):
        length, at = number_in_sevens(at, end)
        size, at = number_in_sevens(at, end)
        if size < 1 or length < size or length > left:
            return -1, 0, 0, 0
        left, total, most = left - length, total + size, max(most, size)
    is_valid = n_rows >= 0 and left == 0 and end - at == total * itemsize
    return (n_rows if is_valid else -1), rows, at, most


@kernel
def _decode(
    crc32c: Int,
    addresses: NDArray[np.int64],
    lengths: NDArray[np.int64],
    needed: NDArray[np.int64],
    n_items: NDArray[np.int64],
    others: NDArray[Any],
    out: NDArray[Any],
) -> Int:
    """Check and decode chunks; returns SOUND, or the position of a damaged one plus a problem."""
    n_bits, entries, pairs = _tables(0)
    n: Int = 0
    for i in range(len(addresses)):
        end = addresses[i] + lengths[i] - CHECKSUM_BYTES
        if not is_intact(crc32c, addresses[i], lengths[i] - CHECKSUM_BYTES):
            return i
        if end == addresses[i]:
            return i + UNFIT
        version = np.int64(byte_at(addresses[i]))
        if version != VERSION:
            return i + (version * LATER if version > VERSION else UNFIT)
        n_rows, at, table, most = _check_rows(addresses[i], end, n_items[i], out.itemsize)
        if n_rows < 0:
            return i + UNFIT
        # Of one size for one chunk, so that whether it can be decoded does not depend on others.
        if n_bits != _bits_for(most):
            n_bits, entries, pairs = _tables(most)
            n = 0
        start: Int = 0
        for _ in range(n_rows):
            length, at = number_in_sevens(at, end)
            size, at = number_in_sevens(at, end)
            first, stop = n, start + length
            for k in range(start, min(stop, needed[i])):
                number = np.uint64(others[i, k])
                place = _find(number, first, n_bits, entries, pairs)
                if place < 0:
                    return i + UNFIT
                if entries[place] <= first:
                    if n - first == size:
                        return i + UNFIT
                    n += 1
                    entries[place], pairs[place, 0] = n, number
                    address = table + (n - first - 1) * out.itemsize
                    pairs[place, 1] = _value_at(address, out.itemsize)
                out[i, k] = pairs[place, 1]
            if stop > needed[i]:
                break
            if n - first != size:
                return i + UNFIT
            start, table = stop, table + size * out.itemsize
    return SOUND


@helper
def _value_at(address: Int, itemsize: Int) -> np.uint64:
    value = np.uint64(0)
    for k in range(itemsize):
        value |= np.uint64(byte_at(address + k)) << np.uint64(8 * k)
    return value
