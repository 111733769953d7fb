"""Positions that are computed for any range of an epoch, and what orders compute them from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.errors import OrderError
from scdl.kernels import hashing
from scdl.kernels.hashing import Numbers

#: Positions that are computed together: few enough for the cache of a core.
_AT_ONCE = 1 << 12


class Lazy:
    """Positions that a function computes for any range of consecutive indices."""

    def __init__(
        self,
        length: int,
        compute: Callable[[Numbers], Numbers],
        starts: Sequence[int] | Numbers | None = None,
    ) -> None:
        self._length, self._compute, self.starts = length, compute, starts

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice, /) -> Numbers:
        start, stop, _ = part.indices(self._length)
        found = np.empty(max(stop - start, 0), np.int64)
        for a in range(start, stop, _AT_ONCE):
            b = min(a + _AT_ONCE, stop)
            found[a - start : b - start] = self._compute(np.arange(a, b))
        return found


def draw_below(counts: Numbers, at: Numbers, key: int) -> Numbers:
    """Draw a number below each count, for each position."""
    drawn: Numbers = (hashing.uniform(hashing.hashed(at, key)) * counts).astype(np.int64)
    return drawn


def as_integers(codes: Any, name: str) -> NDArray[Any]:
    """Codes as a one-dimensional array of integers; OrderError if they are not integers."""
    array = np.asarray(codes)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise OrderError(
            f"{name} must be one integer per cell, found {array.dtype} of {array.ndim} dimensions"
        )
    return array if array.size else array.astype(np.int64)


def digest(*parts: Any) -> str:
    """Hash of numbers and arrays."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            sha.update(np.ascontiguousarray(part).data)
        else:
            sha.update(repr(part).encode())
    return sha.hexdigest()[:16]
