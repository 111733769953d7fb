"""Memory in which reading too much ends the process."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

from storage_backends.directory.content import Content


class GuardedMemory:
    """Keeps a chunk before a page that cannot be read, on Linux."""

    def __init__(self, pages: int = 64) -> None:
        self._memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._end = start + pages * mmap.PAGESIZE
        if sys.platform == "linux":
            guard = ctypes.c_void_p(self._end), mmap.PAGESIZE, 0
            assert ctypes.CDLL(None).mprotect(*guard) == 0

    def content(self, chunk: bytes) -> Content:
        """Copy a chunk to the end of the memory; the next one overwrites it."""
        start = self._end - len(chunk)
        ctypes.memmove(start, chunk, len(chunk))
        return Content(np.array([start]), np.array([len(chunk)]), self)
