"""Bytes of chunks, their checksum, and where C functions for them are."""

from __future__ import annotations

import ctypes
from importlib import import_module
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


def c_function(module: str, name: str) -> int:
    """Address of a C function of an extension module; 0 where a build hides it."""
    try:
        library = ctypes.CDLL(import_module(module).__file__)
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    except (ImportError, OSError, AttributeError, TypeError):
        return 0


#: ``uint32_t crc32c_extend(uint32_t crc, const uint8_t *data, size_t n)``: called by its address it
#: copies nothing, and lets other threads run.
_EXTEND = c_function("google_crc32c._crc32c", "crc32c_extend")
_extend = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)(
    _EXTEND
)


def crc32c(data: bytes | memoryview | NDArray[np.uint8], before: int = 0) -> int:
    """CRC32C of bytes that follow others, whose CRC32C is `before`."""
    if not _EXTEND:
        return int(google_crc32c.extend(before, bytes(data)))
    array = np.frombuffer(data, np.uint8)
    return int(_extend(before, array.ctypes.data, array.nbytes)) if array.nbytes else before


def checksum(data: bytes | memoryview) -> bytes:
    """CRC32C, as Zarr stores it behind the bytes."""
    return crc32c(data).to_bytes(CHECKSUM_BYTES, "little")
