"""A second reader of the codec scdl.of, from its page (docs/format.md) alone.

It decodes number by number, checks all that the page says, and shares no code with the library.
"""

from __future__ import annotations

import google_crc32c
import numpy as np


def _number(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(data) or shift == 42:
            raise ValueError("the rows are incomplete")
        number |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return number, at


def decode(piece: bytes, dtype: np.dtype, others: np.ndarray) -> np.ndarray:
    """Items of a piece, from those of the other array; ValueError if it is damaged."""
    data = piece[:-4]
    if google_crc32c.value(data).to_bytes(4, "little") != piece[-4:]:
        raise ValueError("another checksum")
    if not data or data[0] != 1:
        raise ValueError("another version")
    n_rows, at = _number(data, 1)
    rows = []
    for _ in range(n_rows):
        length, at = _number(data, at)
        size, at = _number(data, at)
        if not 1 <= size <= length:
            raise ValueError("a row of no items or entries, or of too many entries")
        rows.append((length, size))
    if sum(length for length, _ in rows) != len(others):
        raise ValueError("other number of items")
    if len(data) - at != sum(size for _, size in rows) * dtype.itemsize:
        raise ValueError("other number of entries")
    entries = np.frombuffer(data, dtype.newbyteorder("<"), offset=at).astype(dtype)
    found, keys = np.empty(len(others), dtype), [key.tobytes() for key in others]
    start = first = 0
    for length, size in rows:
        places: dict[bytes, int] = {}
        for k in range(start, start + length):
            place = places.setdefault(keys[k], len(places))
            if place >= size:
                raise ValueError("a number without an entry")
            found[k : k + 1] = entries[first + place : first + place + 1]
        if len(places) != size:
            raise ValueError("an entry without a number")
        start, first = start + length, first + size
    return found
