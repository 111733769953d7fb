"""Memory-mapped files that stay readable after they were removed or replaced."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.c_library import c_function
from storage_backends.directory import files as archive_files
from storage_backends.errors import ArchiveFormatError

_mmap = c_function(
    *("mmap", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_long,
    result=ctypes.c_void_p,
)
_munmap = c_function("munmap", ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value

#: Maximum number of files that an open archive keeps mapped; 64 open archives use half of the
#: mappings that Linux allows for a process.
_MAX_MAPPED = 512


def map_files(keys: Iterable[str], open_file: Callable[[str], MappedFile]) -> dict[str, MappedFile]:
    """Map files of an archive, up to a limit, so that they stay readable after their removal."""
    mapped: dict[str, MappedFile] = {}
    for key in keys:
        if len(mapped) == _MAX_MAPPED:
            break
        if key not in mapped:
            # Unreadable files raise an error when they are needed.
            with contextlib.suppress(OSError, ArchiveFormatError):
                mapped[key] = open_file(key)
    return mapped


class MappedFile:
    """A file, mapped read-only.

    Unlike ``mmap.mmap`` it does not keep a file descriptor open, of which a process may have only
    about a thousand, so an open archive can map all of its files.

    Parameters
    ----------
    path
        Path of the file.
    small
        Bytes of a file that is read instead, as mapping takes longer.

    Attributes
    ----------
    data
        Bytes of the file, uint8; arrays that share its memory keep the mapping alive.
    address, size
        Address of the first byte, and number of bytes.

    Raises
    ------
    ArchiveFormatError
        The path is not a regular file.
    FileNotFoundError
        The path does not exist.
    """

    def __init__(self, path: str, small: int = 0) -> None:
        descriptor, size = archive_files.open_file(path)
        try:
            self.data: NDArray[np.uint8]
            if size <= small:
                self.data = np.frombuffer(archive_files.read_opened(descriptor, size), np.uint8)
            elif _mmap is None:
                region = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
                self.data = np.frombuffer(region, np.uint8).view()
            else:
                self.data = np.asarray(_Region(descriptor, size))
        finally:
            os.close(descriptor)
        self.data.flags.writeable = False
        self.address, self.size = self.data.ctypes.data, len(self.data)


class _Region:
    """A memory mapping, unmapped when nothing refers to it."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._size = size
        self._address = _mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if self._address == _FAILED:
            self._size = 0
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        data = self._address, True
        self.__array_interface__ = {"version": 3, "shape": (size,), "typestr": "|u1", "data": data}

    def __del__(self) -> None:
        if self._size:
            _munmap(self._address, self._size)
