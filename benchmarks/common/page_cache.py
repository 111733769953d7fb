"""Files in the page cache of Linux: which are there, and how to drop and load them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from pathlib import Path

import numpy as np


def drop(path: Path) -> float:
    """Drop an archive from the page cache, and return the share that stays.

    Mapped pages stay: a process that has read the archive has to close it first.
    """
    for file in files(path):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # Only pages that are on disk can be dropped.
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("1")
    return cached(path)


def cached(path: Path) -> float:
    """Share of an archive that is in the page cache."""
    stored = files(path)
    return sum(map(_cached_bytes, stored)) / sum(file.stat().st_size for file in stored)


def files(path: Path) -> list[Path]:
    """All files of an archive that are not empty, or the file itself."""
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    return [file for file in found if file.is_file() and file.stat().st_size]


def bring_in(path: Path) -> None:
    """Read all files of an archive into the page cache."""
    buffer = bytearray(1 << 22)
    for file in files(path):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def _cached_bytes(file: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = np.frombuffer(mapped, np.uint8).ctypes.data
        if libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(len(mapped)), pages):
            raise OSError(ctypes.get_errno(), "mincore")
        return min(len(mapped), mmap.PAGESIZE * int((np.ctypeslib.as_array(pages) & 1).sum()))
