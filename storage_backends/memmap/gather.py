"""Gathering many ranges of one array into another, in memory."""

from __future__ import annotations

import ctypes
import math
import mmap
import time
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from storage_backends.compute.jit import intrinsic, kernel


def gather(
    source: NDArray[Any], starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]
) -> None:
    """Copy ``source[starts[i]:stops[i]]``, for every i in turn, one after the other into `out`.

    Parameters
    ----------
    source, out
        C-contiguous, of one item shape, and of one dtype or of integers that the output holds.
        The caller has checked the ranges.
    starts, stops
        Half-open ranges in items, int64.
    """
    width = math.prod(source.shape[1:])
    if out.size == 0:
        return
    if width != 1:
        starts, stops = starts * width, stops * width
    source, out = source.reshape(-1), out.reshape(-1)
    if source.dtype == out.dtype:
        # One compiled kernel an item size, whatever the numbers mean.
        unit = np.dtype(f"u{source.dtype.itemsize}")
        source, out = source.view(unit), out.view(unit)
    _copy_ranges(source, starts, stops, out)


@kernel
def _copy_ranges(
    source: NDArray[Any], starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]
) -> None:
    position = 0
    for i in range(len(starts)):
        length = stops[i] - starts[i]
        # Slices tell LLVM that the inner loop is one contiguous copy: twice as fast as indexing.
        piece = source[starts[i] : stops[i]]
        target = out[position : position + length]
        for k in range(length):
            target[k] = piece[k]
        position += length


def gather_numpy(
    source: NDArray[Any], starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]
) -> None:
    """The same as :func:`gather` in NumPy, which the kernel is tested against."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    out[:] = source[np.arange(len(out)) + np.repeat(starts - (ends - lengths), lengths)]


#: Bytes between two ranges up to which they are read as one.
_GAP = 1 << 16


#: Ranges that are touched to find out whether the others are in memory.
_SAMPLE = 12


#: A page in memory is there in less; also on a busy machine most of them are.
_WARM_NANOSECONDS = 20_000


def read_ahead(array: NDArray[Any], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
    """Begin to read ranges of the items of a mapped array, without waiting.

    Parameters
    ----------
    array
        C-contiguous, mapped from a file.
    starts, stops
        Half-open ranges within it, rising.
    """
    advise = _madvise()
    if not advise or len(starts) == 0 or array.nbytes == 0 or not _is_cold(array, starts):
        return
    item = array.nbytes // len(array)
    first, last = starts * item, stops * item
    new = np.flatnonzero(first[1:] - last[:-1] > _GAP) + 1
    begin = first[np.append(0, new)] + array.ctypes.data
    end = last[np.append(new, len(last)) - 1] + array.ctypes.data
    begin -= begin % mmap.PAGESIZE
    _advise(advise, begin, end, mmap.MADV_WILLNEED)


def _is_cold(array: NDArray[Any], starts: NDArray[np.int64]) -> bool:
    """Whether some ranges have to come from the disk: advice on all of them costs time."""
    chosen = starts[:: max(1, len(starts) // _SAMPLE)]
    n_slow = 0
    for start in chosen[chosen < len(array)].tolist():
        before = time.perf_counter_ns()
        array[start].tobytes()
        n_slow += time.perf_counter_ns() - before > _WARM_NANOSECONDS
        if n_slow > 1:
            return True
    return False


@cache
def _madvise() -> int:
    """Address of ``int madvise(void *addr, size_t length, int advice)``; 0 where there is none."""
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):
        return 0
    known = hasattr(mmap, "MADV_WILLNEED")
    return (ctypes.cast(function, ctypes.c_void_p).value or 0) if known else 0


@intrinsic
def _call(typingctx: Any, function: Any, address: Any, length: Any, advice: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(number, [pointer, ir.IntType(64), number])
        called = builder.inttoptr(arguments[0], kind.as_pointer())
        where = builder.inttoptr(arguments[1], pointer)
        return builder.call(called, [where, arguments[2], builder.trunc(arguments[3], number)])

    return types.int32(types.int64, types.int64, types.int64, types.int64), codegen


@kernel
def _advise(madvise: int, begin: NDArray[np.int64], end: NDArray[np.int64], advice: int) -> None:
    for i in range(len(begin)):
        _call(madvise, begin[i], end[i] - begin[i], advice)
