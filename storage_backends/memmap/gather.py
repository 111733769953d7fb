"""Copying many ranges of a mapped array, and reading them ahead."""

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


def gather_ranges(
    source: NDArray[Any], starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]
) -> None:
    """Concatenate the ranges ``source[starts[i]:stops[i]]`` into `out`.

    Parameters
    ----------
    source, out
        C-contiguous arrays with the same item shape, and the same dtype, or integer dtypes of
        which that of `out` is wider.
    starts, stops
        Half-open ranges in items, int64. They are not checked.
    """
    width = math.prod(source.shape[1:])
    if out.size == 0:
        return
    if width != 1:
        starts, stops = starts * width, stops * width
    source, out = source.reshape(-1), out.reshape(-1)
    if source.dtype == out.dtype:
        # Compile one kernel per item size, instead of one per dtype.
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
        # With slices LLVM recognises the loop as a contiguous copy: twice as fast as indexing.
        piece = source[starts[i] : stops[i]]
        target = out[position : position + length]
        for k in range(length):
            target[k] = piece[k]
        position += length


def gather_ranges_numpy(
    source: NDArray[Any], starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]
) -> None:
    """The same as :func:`gather_ranges` in NumPy; the reference for tests of the kernel."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    out[:] = source[np.arange(len(out)) + np.repeat(starts - (ends - lengths), lengths)]


#: Ranges with a gap of at most this many bytes are read as one.
_MAX_GAP = 1 << 16


#: Number of ranges to sample for whether the array is in the page cache.
_SAMPLE = 12


#: Maximum time to read an item from the page cache; slower ones come from the disk.
_WARM_NANOSECONDS = 20_000


def read_ahead(array: NDArray[Any], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
    """Start reading ranges of a mapped array from the disk, without waiting.

    Parameters
    ----------
    array
        C-contiguous array, mapped from a file.
    starts, stops
        Half-open, sorted ranges of its items.
    """
    advise = _madvise()
    if not advise or len(starts) == 0 or array.nbytes == 0 or not _is_cold(array, starts):
        return
    item = array.nbytes // len(array)
    first, last = starts * item, stops * item
    splits = np.flatnonzero(first[1:] - last[:-1] > _MAX_GAP) + 1
    begin = first[np.append(0, splits)] + array.ctypes.data
    end = last[np.append(splits, len(last)) - 1] + array.ctypes.data
    begin -= begin % mmap.PAGESIZE
    _advise(advise, begin, end, mmap.MADV_WILLNEED)


def _is_cold(array: NDArray[Any], starts: NDArray[np.int64]) -> bool:
    """Whether sampled ranges are not in the page cache; advising cached ranges wastes time."""
    sample = starts[:: max(1, len(starts) // _SAMPLE)]
    n_slow = 0
    for start in sample[sample < len(array)].tolist():
        before = time.perf_counter_ns()
        array[start].tobytes()
        n_slow += time.perf_counter_ns() - before > _WARM_NANOSECONDS
        if n_slow > 1:
            return True
    return False


@cache
def _madvise() -> int:
    """Address of ``int madvise(void *addr, size_t length, int advice)``; 0 if there is none."""
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):
        return 0
    has_advice = hasattr(mmap, "MADV_WILLNEED")
    return (ctypes.cast(function, ctypes.c_void_p).value or 0) if has_advice else 0


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
