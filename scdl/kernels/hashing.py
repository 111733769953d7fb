"""Counter-based pseudorandom numbers: each depends only on a position and a key.

Permutations use a Feistel network over two digits of a position with cycle walking until the result
is in range (J. Black and P. Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

#: Rounds of the Feistel network for up to `_FEW` positions, and for more.
_ROUNDS = 16, 6
_FEW = 100
_MASK64 = (1 << 64) - 1
#: Constants of splitmix64.
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mixed(*parts: int) -> int:
    """Hash several integers to one of 64 bits."""
    # Like `hashed`, with Python integers: arrays of one element take ten times as long.
    key = 0
    for part in parts:
        x = ((key ^ int(part)) + GOLDEN) & _MASK64
        x = ((x ^ (x >> 30)) * FIRST) & _MASK64
        x = ((x ^ (x >> 27)) * SECOND) & _MASK64
        key = x ^ (x >> 31)
    return key


def hashed(at: Numbers, key: int) -> NDArray[np.uint64]:
    """Hash each number to 64 bits with splitmix64 (Steele et al., 2014)."""
    x = (at.view(np.uint64) ^ np.uint64(key)) + np.uint64(GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    return x ^ (x >> np.uint64(31))


def uniform(x: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Convert 64-bit numbers to floats in [0, 1)."""
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(key: int, n: int) -> int:
    """Scale a 64-bit number to ``[0, n)``."""
    return key * n >> 64


def permuted(at: Numbers, n: int, key: int) -> Numbers:
    """Apply a pseudorandom permutation of ``range(n)`` to positions."""
    from scdl.kernels.permutation import permute

    out = np.empty(at.shape, np.int64)
    permute(at.ravel(), n, *_network(n, key), (np.uint64(FIRST), np.uint64(SECOND)), out.ravel())
    return out


def _network(n: int, key: int) -> tuple[np.uint64, np.uint64, NDArray[np.uint64]]:
    """Bounds of the two digits of positions, and the keys of the rounds."""
    high, low = _factors(n)
    keys = hashed(np.arange(_ROUNDS[n > _FEW]), mixed(key))
    return np.uint64(high), np.uint64(low), keys


def _factors(n: int) -> tuple[int, int]:
    """Two factors of similar size whose product is at least `n`, and not much larger."""
    low = max(math.isqrt(max(n - 1, 0)) + 1, 2)
    return max(-(-n // low), 1), low


def draws(at: Numbers, k: int, seed: int, epoch: int) -> NDArray[np.float64]:
    """Random numbers in [0, 1), n x k; each row depends only on its position, seed and epoch."""
    numbers = at[:, None] * k + np.arange(k)
    return uniform(hashed(numbers, mixed(seed, epoch, 5)))
