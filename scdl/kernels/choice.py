"""Random choice of entries, weighted or uniform."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.kernels import hashing
from storage_backends.compute.jit import kernel


@kernel
def sample_rows(
    indptr: NDArray[np.int64],
    most: int,
    key: np.uint64,
    chosen: NDArray[np.int64],
    chosen_indptr: NDArray[np.int64],
) -> None:
    """Sample at most `most` entries of each row uniformly without replacement, in order.

    Selection sampling: D. Knuth, The Art of Computer Programming 2, algorithm 3.4.2 S. Random
    numbers are computed as in :func:`scdl.kernels.hashing.hashed`.

    Parameters
    ----------
    indptr
        n + 1 offsets, starting at 0.
    most
        Largest number of entries to sample from a row.
    key
        Random seed; draws depend on it and on the numbers of the row and the entry.
    chosen
        Output: positions of the sampled entries.
    chosen_indptr
        Output: n + 1 offsets into `chosen`.
    """
    at = 0
    chosen_indptr[0] = 0
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        row_key = _spread(np.uint64(row) ^ key)
        wanted = min(stop - start, most)
        for k in range(start, stop):
            if not wanted:
                break
            drawn = _spread(np.uint64(k - start) ^ row_key) >> np.uint64(11)
            if np.float64(drawn) * 2.0**-53 * (stop - k) < wanted:
                chosen[at] = k
                at += 1
                wanted -= 1
        chosen_indptr[row + 1] = at


@kernel
def _spread(x: np.uint64) -> np.uint64:
    x += np.uint64(hashing.GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(hashing.FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(hashing.SECOND)
    return x ^ (x >> np.uint64(31))


@kernel
def choose_by_weight(
    weights: NDArray[Any],
    indptr: NDArray[np.int64],
    draws: NDArray[np.float64],
    chosen: NDArray[np.int64],
) -> int:
    """Choose entries of rows with probabilities proportional to their weights.

    Parameters
    ----------
    weights
        Concatenated weights of the entries of all rows.
    indptr
        n + 1 offsets, starting at 0.
    draws
        n x k random numbers in [0, 1), one per chosen entry.
    chosen
        Output, n x k: position of the entry within its row; -1 if no weight is positive.

    Returns
    -------
    int
        The first entry whose weight is negative or not finite, or -1.
    """
    longest = 0
    for row in range(len(indptr) - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    ends = np.empty(longest, np.float64)
    for row in range(len(indptr) - 1):
        start, n = indptr[row], indptr[row + 1] - indptr[row]
        total = 0.0
        last = -1
        for j in range(n):
            weight = np.float64(weights[start + j])
            if not 0.0 <= weight < np.inf:
                return int(start + j)
            if weight > 0.0:
                last = j
            total += weight
            ends[j] = total
        for i in range(draws.shape[1]):
            # Rounding may make `drawn` equal to the total; `last` is then the correct entry.
            drawn = draws[row, i] * total
            chosen[row, i] = min(np.searchsorted(ends[:n], drawn, side="right"), last)
    return -1
