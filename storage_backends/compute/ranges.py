"""Validation of ranges of items in one pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import kernel


@kernel
def total_length(starts: NDArray[np.int64], stops: NDArray[np.int64], limit: int) -> int:
    """Total length of half-open ranges, or ``-1 - i`` if range `i` is not within ``[0, limit]``."""
    total = 0
    for i in range(len(starts)):
        if starts[i] < 0 or stops[i] < starts[i] or stops[i] > limit:
            return -1 - i
        total += stops[i] - starts[i]
    return total
