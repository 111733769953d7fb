"""Reading ranges of mapped files ahead, by their addresses in memory."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from storage_backends.compute.c_library import c_function
from storage_backends.compute.jit import intrinsic, kernel
from storage_backends.compute.threads import for_each

try:
    import resource
except ImportError:
    # Windows, where nothing is advised either.
    resource = None  # type: ignore[assignment]

#: Ranges with a gap of at most this many bytes are read as one.
_MAX_GAP = 1 << 16
#: Largest request; Linux reads no more at once than the device reads ahead or transfers at once.
_MAX_REQUEST = 1 << 17
#: Number of ranges that one thread requests.
_RANGES_AT_ONCE = 256
#: Number of ranges to sample for whether they are in the page cache.
_SAMPLE = 16
#: The advice to read pages that are not in memory; None on systems without it.
_WILLNEED: Any = getattr(mmap, "MADV_WILLNEED", None)


def are_cold(addresses: NDArray[np.int64]) -> bool:
    """Whether sampled bytes at addresses are not in memory; advising cached ranges wastes time."""
    if (madvise := _madvise()) is None:
        return False
    # The waits of this thread, or of all where the system does not tell.
    who, n_waited = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF), 0
    for address in addresses[:: max(1, len(addresses) // _SAMPLE)].tolist():
        # Only this page is read: touching it first would read as much as the device reads ahead.
        madvise(address - address % mmap.PAGESIZE, mmap.PAGESIZE, _WILLNEED)
        # Waits, not time: other work may take the core of this thread.
        before = resource.getrusage(who).ru_nvcsw
        ctypes.string_at(address, 1)
        # This thread may have waited for a lock of the system once.
        n_waited += resource.getrusage(who).ru_nvcsw > before
        if n_waited > 1:
            return True
    return False


def will_need(begin: NDArray[np.int64], end: NDArray[np.int64]) -> None:
    """Start reading mapped ranges of addresses from the disk, without waiting.

    Parameters
    ----------
    begin, end
        Half-open ranges in any order, int64. They are not checked.
    """
    if not len(begin):
        return
    order = np.argsort(begin)
    begin, end = begin[order], end[order]
    splits = np.flatnonzero(begin[1:] - end[:-1] > _MAX_GAP) + 1
    first = begin[np.append(0, splits)]
    first -= first % mmap.PAGESIZE
    last = np.maximum.reduceat(end, np.append(0, splits))
    _start(*_divided(first, last))


def _divided(
    begin: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide ranges into ranges of at most one request."""
    n = np.maximum(-(-(end - begin) // _MAX_REQUEST), 1)
    # Number of each request within its range.
    number = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    first = np.repeat(begin, n) + number * _MAX_REQUEST
    return first, np.minimum(first + _MAX_REQUEST, np.repeat(end, n))


class SinglePages:
    """While this exists, a page of mapped arrays that is read by accessing it is read alone.

    Otherwise the system reads what surrounds it as well, up to megabytes. If memory is scarce, that
    displaces pages that were requested and not used yet, and accessing these reads even more.

    Parameters
    ----------
    arrays
        Arrays in mapped memory, which stays mapped meanwhile.
    """

    #: One item by address of an array for each object that has it.
    _users: ClassVar[dict[int, list[None]]] = {}

    def __init__(self, arrays: Iterable[NDArray[Any]]) -> None:
        self._arrays = [array for array in arrays if array.nbytes]
        for array in self._arrays:
            self._users.setdefault(array.ctypes.data, []).append(None)
            _advise_whole(array, "MADV_RANDOM")

    def __del__(self) -> None:
        if sys.is_finalizing():
            return
        # Without a lock, which a finalizer must not wait for. At worst the advice is withdrawn too
        # early, and the next announcement gives it again.
        for array in self._arrays:
            users = self._users.get(array.ctypes.data) or [None]
            users.pop()
            if not users:
                self._users.pop(array.ctypes.data, None)
                _advise_whole(array, "MADV_NORMAL")


def _advise_whole(array: NDArray[Any], advice: str) -> None:
    """Advise on all pages of an array."""
    if madvise := _madvise():
        start = array.ctypes.data - array.ctypes.data % mmap.PAGESIZE
        madvise(start, array.ctypes.data + array.nbytes - start, getattr(mmap, advice))


def _start(begin: NDArray[np.int64], end: NDArray[np.int64]) -> None:
    if (madvise := _madvise()) is None:
        return
    advise = ctypes.cast(madvise, ctypes.c_void_p).value
    assert advise is not None

    def start(part: slice) -> None:
        _advise(advise, begin[part], end[part], _WILLNEED)

    if len(begin) <= _RANGES_AT_ONCE:
        start(slice(None))
        return
    # The system allocates the pages of a range before it returns, which takes longer than waking
    # a thread if there are many.
    for_each(start, [slice(i, i + _RANGES_AT_ONCE) for i in range(0, len(begin), _RANGES_AT_ONCE)])


def _madvise() -> Any:
    """``int madvise(void *addr, size_t length, int advice)``; None if there is none."""
    types = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return None if _WILLNEED is None else c_function("madvise", *types, keeps_gil=True)


@intrinsic
def _call_madvise(typingctx: Any, function: Any, address: Any, length: Any, advice: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(number, [pointer, ir.IntType(64), number])
        madvise = builder.inttoptr(arguments[0], kind.as_pointer())
        start = builder.inttoptr(arguments[1], pointer)
        return builder.call(madvise, [start, arguments[2], builder.trunc(arguments[3], number)])

    return types.int32(types.int64, types.int64, types.int64, types.int64), codegen


@kernel
def _advise(madvise: int, begin: NDArray[np.int64], end: NDArray[np.int64], advice: int) -> None:
    for i in range(len(begin)):
        _call_madvise(madvise, begin[i], end[i] - begin[i], advice)
