"""A file in memory, which stays what it was when it was opened, whatever becomes of its name."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.directory import files as archive_files
from storage_backends.errors import ArchiveFormatError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_long,
)
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value

#: Files that an open archive holds; with 64 archives open, half of what a process may map.
_MOST_HELD = 512


def hold(keys: Iterable[str], open_file: Callable[[str], MappedFile]) -> dict[str, MappedFile]:
    """Map files of an archive, so that they outlive their removal; of very many not all."""
    held: dict[str, MappedFile] = {}
    for key in keys:
        if len(held) == _MOST_HELD:
            break
        if key not in held:
            # What cannot be read is missed when it is asked for.
            with contextlib.suppress(OSError, ArchiveFormatError):
                held[key] = open_file(key)
    return held


class MappedFile:
    """A file, mapped read-only.

    Unlike ``mmap.mmap`` it keeps no file descriptor, of which a process has a thousand: an open
    archive can hold all of its files.

    Attributes
    ----------
    data
        Its bytes, uint8; arrays made of it keep them in memory.

    Raises
    ------
    ArchiveFormatError
        What is at the path is no file.
    FileNotFoundError
        There is nothing.
    """

    def __init__(self, path: str) -> None:
        descriptor = archive_files.open_file(path)
        try:
            size = os.fstat(descriptor).st_size
            self.data: NDArray[np.uint8] = (
                np.asarray(_Region(descriptor, size)) if size else np.empty(0, np.uint8)
            )
        finally:
            os.close(descriptor)
        self.data.flags.writeable = False
        self.address = self.data.ctypes.data

    def will_need(self, offset: int, length: int) -> None:
        """Let the system read a part in the background."""
        if len(self.data) and hasattr(mmap, "MADV_WILLNEED"):
            page = (self.address + offset) % mmap.PAGESIZE
            start = ctypes.c_void_p(self.address + offset - page)
            _libc.madvise(start, ctypes.c_size_t(length + page), mmap.MADV_WILLNEED)


class _Region:
    """Mapped memory, until nothing refers to it."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._size = size
        self._address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if self._address == _FAILED:
            self._size = 0
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": (self._size,),
            "typestr": "|u1",
            "data": (self._address, True),
        }

    def __del__(self) -> None:
        if self._size:
            _libc.munmap(self._address, self._size)
