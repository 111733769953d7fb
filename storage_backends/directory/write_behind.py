"""Letting the system write a file to the disk while the rest of it is computed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

#: Of ``sync_file_range``: begin to write, and wait for nothing.
_BEGIN = 2


def write_behind(descriptor: int, start: int, n_bytes: int) -> None:
    """Begin to write a range of a file to the disk.

    Otherwise the system begins when much has gathered, or when the file is flushed, which then
    takes as long as the disk does. Nothing is promised: whatever goes wrong flushing tells.
    """
    if begin := _sync_file_range():
        begin(descriptor, start, n_bytes, _BEGIN)


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """The function of Linux; None where there is none."""
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    called: Callable[[int, int, int, int], int] = function
    return called
