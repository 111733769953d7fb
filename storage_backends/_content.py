"""Bytes of chunks, and their checksum."""

from __future__ import annotations

from typing import NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

CHECKSUM_BYTES = 4


class Content(NamedTuple):
    """The bytes of pieces, which lie somewhere in an array."""

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def checksum(data: bytes) -> bytes:
    """CRC32C, as Zarr stores it behind the bytes."""
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM_BYTES, "little")
