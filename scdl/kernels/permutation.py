"""A pseudorandom permutation; see :mod:`scdl.kernels.hashing`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import kernel

_HALF = np.uint64(32)


@kernel
def _moved(digit: Any, by: Any, key: Any, factors: Any, n: Any) -> Any:
    """Shift a digit below `n` by a function of the other one."""
    x = (by ^ key) * factors[0]
    x = ((x ^ (x >> _HALF)) * factors[1]) >> _HALF
    moved = digit + ((x * n) >> _HALF)
    return moved - n if moved >= n else moved


@kernel
def permute(
    at: NDArray[np.int64],
    n: int,
    high: Any,
    low: Any,
    keys: NDArray[np.uint64],
    factors: tuple[Any, Any],
    out: NDArray[np.int64],
) -> None:
    """Permute positions below `n`.

    Parameters
    ----------
    high, low
        Numbers of values of the two digits of a position.
    keys
        One key for each round; an even number of rounds, which alternately shift one digit by a
        function of the other.
    factors
        The two factors of this function, a hash.
    out
        Output, of the length of `at`.
    """
    end = np.uint64(n)
    for i in range(len(at)):
        x = np.uint64(at[i])
        while True:
            left = x // low
            right = x - left * low
            for k in range(0, len(keys), 2):
                left = _moved(left, right, keys[k], factors, high)
                right = _moved(right, left, keys[k + 1], factors, low)
            x = left * low + right
            if x < end:
                break
        out[i] = x
