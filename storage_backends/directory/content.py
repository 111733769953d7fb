"""Encoded bytes of chunks, CRC32C, and addresses of C functions."""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

CHECKSUM_BYTES = 4


class Content(NamedTuple):
    """The encoded bytes of chunks, by their addresses in memory.

    Attributes
    ----------
    addresses, lengths
        Address and length in bytes of each chunk, int64.
    owners
        Objects that keep the memory alive.
    """

    addresses: NDArray[np.int64]
    lengths: NDArray[np.int64]
    owners: Any

    def part(self, start: int, stop: int) -> Content:
        """The chunks from `start` to `stop`."""
        return Content(self.addresses[start:stop], self.lengths[start:stop], self.owners)

    def copies(self) -> list[bytes]:
        """Copy of the bytes of each chunk."""
        pairs = zip(self.addresses.tolist(), self.lengths.tolist(), strict=True)
        return [ctypes.string_at(address, length) for address, length in pairs]


def c_function(module: str, name: str) -> int:
    """Address of a C function of an extension module; 0 if it is not exported."""
    try:
        library = ctypes.CDLL(import_module(module).__file__)
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    except (ImportError, OSError, AttributeError, TypeError):
        return 0


#: ``uint32_t crc32c_extend(uint32_t crc, const uint8_t *data, size_t n)``. Calling it through
#: ctypes avoids a copy and releases the GIL.
_EXTEND = c_function("google_crc32c._crc32c", "crc32c_extend")
_extend = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)(
    _EXTEND
)


def crc32c(data: bytes | memoryview | NDArray[np.uint8], before: int = 0) -> int:
    """CRC32C of bytes; `before` is the CRC32C of the bytes in front of them."""
    if not _EXTEND:
        return int(google_crc32c.extend(before, bytes(data)))
    array = np.frombuffer(data, np.uint8)
    return int(_extend(before, array.ctypes.data, array.nbytes)) if array.nbytes else before


def checksum(data: bytes | memoryview) -> bytes:
    """CRC32C in the form that Zarr appends to the bytes of a chunk."""
    return crc32c(data).to_bytes(CHECKSUM_BYTES, "little")
