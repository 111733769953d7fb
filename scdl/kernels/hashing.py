"""Numbers that look random, computed from positions: the same for the same, in any order.

Source of the permutations: a Feistel network over two digits of a position, walked until it falls
into range (J. Black and P. Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

#: Rounds of a network over a few positions, and over many.
_ROUNDS = 16, 6
_FEW = 100
_MASK64 = (1 << 64) - 1
#: Constants of splitmix64.
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mixed(*parts: int) -> int:
    """One number of 64 bits for several, each of which changes all of it."""
    # As `hashed`, of Python's numbers: arrays of one number take ten times as long.
    key = 0
    for part in parts:
        x = ((key ^ int(part)) + GOLDEN) & _MASK64
        x = ((x ^ (x >> 30)) * FIRST) & _MASK64
        x = ((x ^ (x >> 27)) * SECOND) & _MASK64
        key = x ^ (x >> 31)
    return key


def hashed(at: Numbers, key: int) -> NDArray[np.uint64]:
    """Each number spread over 64 bits; the source is splitmix64 (Steele et al., 2014)."""
    x = (at.view(np.uint64) ^ np.uint64(key)) + np.uint64(GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    return x ^ (x >> np.uint64(31))


def uniform(x: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1)."""
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(key: int, n: int) -> int:
    """A number below `n` for one of 64 bits."""
    return key * n >> 64


def permuted(at: Numbers, n: int, key: int) -> Numbers:
    """Where a permutation of ``range(n)`` takes positions below `n`."""
    # Two digits, of which one after the other is shifted by what the other one says.
    high, low = (np.uint64(digits) for digits in _factors(n))
    keys = [np.uint64(mixed(key, i)) for i in range(_ROUNDS[n > _FEW])]

    def walk(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left = x // low
        right = x - left * low
        for i in range(0, len(keys), 2):
            left = _shifted(left, _stir(right, keys[i], high), high)
            right = _shifted(right, _stir(left, keys[i + 1], low), low)
        return left * low + right

    out = walk(at.view(np.uint64))
    outside = np.flatnonzero(out >= np.uint64(n))
    while len(outside):
        out[outside] = walk(out[outside])
        outside = outside[out[outside] >= np.uint64(n)]
    return out.view(np.int64)


def _factors(n: int) -> tuple[int, int]:
    """Two numbers of about one size, whose product is hardly larger than `n`."""
    low = max(math.isqrt(max(n - 1, 0)) + 1, 2)
    return max(-(-n // low), 1), low


def _shifted(x: NDArray[np.uint64], by: NDArray[np.uint64], n: np.uint64) -> NDArray[np.uint64]:
    """``(x + by) % n`` of numbers below `n`; what is below zero becomes large."""
    by += x
    np.minimum(by, by - n, out=by)
    return by


def _stir(x: NDArray[np.uint64], key: np.uint64, n: np.uint64) -> NDArray[np.uint64]:
    """Numbers below `n`, under 2**32, that depend on all bits of others and of a key."""
    x = x ^ key
    x *= np.uint64(FIRST)
    x ^= x >> np.uint64(32)
    x *= np.uint64(SECOND)
    x >>= np.uint64(32)
    x *= n
    x >>= np.uint64(32)
    return x


def draws(at: Numbers, k: int, seed: int, epoch: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) for positions, n x k, whichever of them are asked for together."""
    numbers = at[:, None] * k + np.arange(k)
    return uniform(hashed(numbers, mixed(seed, epoch, 5)))
