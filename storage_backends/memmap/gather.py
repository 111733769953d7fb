"""Gathering many ranges of one array into another, in memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import kernel


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
