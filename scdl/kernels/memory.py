"""Arrays whose memory is reused.

The operating system zeroes every page of new memory, which takes longer than gathering cells into
recently used memory. The memory of an array is returned to a pool when the last array or tensor
that refers to it is deleted. Recently returned memory is reused first.
"""

from __future__ import annotations

import math
import operator
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

#: Smaller arrays use the regular allocator, which reuses their memory itself.
_LEAST = 1 << 17
#: Smallest granularity of allocations in bytes; larger arrays use an eighth to a quarter of their
#: size. Arrays of similar size can then share memory; pages that are not written take none.
_STEP = 1 << 19
#: Largest number of idle bytes to keep for reuse.
_MOST_IDLE = 512 << 20

_SIZE = operator.attrgetter("nbytes")

_idle: list[NDArray[np.uint8]] = []
_lock = threading.Lock()


def _unlock() -> None:
    """Replace the lock after a fork: a thread that the child lacks may have held it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


class _Memory(np.ndarray[Any, np.dtype[np.uint8]]):
    """Pooled memory; a separate type, since NumPy collapses chains of views of the same type."""


class _Loan(np.ndarray[Any, np.dtype[np.uint8]]):
    """A view of pooled memory, which is returned to the pool when the view is deleted."""

    def __del__(self, give_back: Callable[[Any], None] = _idle.append) -> None:
        # Appending needs no lock, for which a finalizer must not wait. The default argument keeps
        # the list alive at interpreter exit, when names of this module may already be cleared.
        give_back(self.base)


def empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Like ``numpy.empty``, but large arrays reuse memory."""
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
    """Take idle memory that is large enough and not much larger; None if there is none."""
    # Never wait: the holder may be running garbage collection, which may join this thread.
    if not _lock.acquire(blocking=False):
        return None
    try:
        while len(_idle) > 1 and sum(map(_SIZE, _idle)) > _MOST_IDLE:
            del _idle[0]
        for i in range(len(_idle) - 1, -1, -1):
            if n_bytes <= _idle[i].nbytes <= n_bytes + n_bytes // 4 + _STEP:
                return _idle.pop(i)
    finally:
        _lock.release()
    return None


def release() -> None:
    """Return idle memory to the allocator."""
    del _idle[:]


def recyclable(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An uninitialised array whose memory the allocator can reuse for arrays of similar size.

    Blocks of a file differ slightly in size. Exact allocations would fragment the heap, which would
    grow with the length of the file. Sizes are therefore rounded up to powers of two.
    """
    items = math.prod(shape)
    rounded = 1 << max(items - 1, 0).bit_length()
    return np.empty(rounded, dtype)[:items].reshape(shape)
