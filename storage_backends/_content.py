"""Bytes of chunks, and their checksum."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

CHECKSUM_BYTES = 4


class Content(NamedTuple):
    """The bytes of chunks, wherever they lie in memory.

    Attributes
    ----------
    addresses, lengths
        Of each chunk; int64.
    owners
        What keeps the memory alive.
    """

    addresses: NDArray[np.int64]
    lengths: NDArray[np.int64]
    owners: Any

    def part(self, start: int, stop: int) -> Content:
        """Some of the chunks."""
        return Content(self.addresses[start:stop], self.lengths[start:stop], self.owners)

    def copies(self) -> list[bytes]:
        """Each chunk as an object."""
        pairs = zip(self.addresses.tolist(), self.lengths.tolist(), strict=True)
        return [ctypes.string_at(address, length) for address, length in pairs]


def checksum(data: bytes) -> bytes:
    """CRC32C, as Zarr stores it behind the bytes."""
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM_BYTES, "little")
