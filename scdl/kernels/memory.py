"""Arrays whose memory is used again.

The system clears every page of new memory, and a core fetches it, which takes longer than to gather
cells into memory that was used a moment ago. Memory of an array comes back when the last array or
tensor that looks at it is gone, and is given out again, the last first.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

#: Arrays of less are left to the allocator, which uses their memory again itself.
_LEAST = 1 << 17
#: Bytes, and an eighth to a quarter of an array, in which memory is had, so that arrays of about
#: one size can share it; what is not written to takes none.
_STEP = 1 << 19
#: Bytes that are kept for arrays to come.
_MOST_IDLE = 512 << 20

_idle: list[NDArray[np.uint8]] = []
_lock = threading.Lock()


def _unlock() -> None:
    """Let a child not wait for a thread that it did not inherit."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


class _Memory(np.ndarray[Any, np.dtype[np.uint8]]):
    """What is lent; of a type of its own, as NumPy lets views of one type look past each other."""


class _Loan(np.ndarray[Any, np.dtype[np.uint8]]):
    """A view of memory that is given back when nothing refers to it any more."""

    def __del__(self, give_back: Callable[[Any], None] = _idle.append) -> None:
        # Appending needs no lock, which a finalizer could not wait for. At the end of the process
        # the names of this module may be gone already, not what it holds.
        give_back(self.base)


def empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """As ``numpy.empty``."""
    dtype = np.dtype(dtype)
    n_bytes = (shape if isinstance(shape, int) else math.prod(shape)) * dtype.itemsize
    if n_bytes < _LEAST:
        return np.empty(shape, dtype)
    memory = _found(n_bytes)
    if memory is None:
        step = max(_STEP, 1 << (n_bytes.bit_length() - 3))
        memory = np.empty(-(-n_bytes // step) * step, np.uint8).view(_Memory)
    return np.ndarray(shape, dtype, memory.view(_Loan))


def _found(n_bytes: int) -> NDArray[np.uint8] | None:
    """Idle memory that is not much larger, if there is some."""
    # Not waited for: who holds it may be collecting garbage, and end the thread that asks here.
    if not _lock.acquire(blocking=False):
        return None
    try:
        while len(_idle) > 1 and sum(memory.nbytes for memory in _idle) > _MOST_IDLE:
            del _idle[0]
        for i in range(len(_idle) - 1, -1, -1):
            if n_bytes <= _idle[i].nbytes <= n_bytes + n_bytes // 4 + _STEP:
                return _idle.pop(i)
    finally:
        _lock.release()
    return None


def recyclable(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An uninitialised array whose memory the next array of about its size can take over.

    Blocks differ a little in size. Allocated as they are, they fragment the heap, which then grows
    with the length of the file; rounded up they fit into each other's place.
    """
    items = math.prod(shape)
    rounded = 1 << max(items - 1, 0).bit_length()
    return np.empty(rounded, dtype)[:items].reshape(shape)
