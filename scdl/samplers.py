"""Orders in which cells are visited: pure functions of (n, seed, epoch).

An order is any object with a method ``positions(n, seed, epoch)`` that gives the positions to visit
as an array, or as anything else that has a length and gives arrays for slices. Those here are lazy:
they need no memory that grows with the number of cells (weights and labels excepted), and begin
anywhere at once, so that ranks, workers and resumed runs take slices.

Source of the permutations: a Feistel network over two digits of a position, walked until it falls
into range (J. Black and P. Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scdl.errors import OrderError

Numbers = NDArray[np.int64]

#: Rounds of a network over a few positions, and over many.
_ROUNDS = 16, 6
_FEW = 100
#: Positions that are computed at once.
_AT_ONCE = 1 << 12
_MASK64 = (1 << 64) - 1
#: Constants of splitmix64.
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Positions(Protocol):
    """Positions of cells, in order; an int64 array is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Numbers: ...


class Order(Protocol):
    """In which order cells are visited."""

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """Positions below `n`, the same whenever the three are the same."""


class _Lazy:
    """Positions that a function computes for any stretch of consecutive places."""

    def __init__(self, length: int, compute: Callable[[Numbers], Numbers]) -> None:
        self._length, self._compute = length, compute

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice, /) -> Numbers:
        start, stop, _ = part.indices(self._length)
        # In pieces that stay in the cache of a core.
        edges = [*range(start, stop, _AT_ONCE), max(start, stop)]
        pieces = [self._compute(np.arange(a, b)) for a, b in pairwise(edges)]
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


class Sequential:
    """As they are stored."""

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """All of them, rising."""
        return _Lazy(n, lambda at: at)


class Random:
    """Every order equally likely: each cell is read on its own."""

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """All of them, shuffled."""
        key = _key(seed, epoch)
        return _Lazy(n, lambda at: _permuted(at, n, key))


@dataclass(frozen=True)
class Block:
    """Blocks of consecutive cells in random order, shuffled within a buffer of many blocks.

    Where blocks begin changes from epoch to epoch. A batch is nearly as random as one of single
    cells if the buffer has many times more blocks than there are labels, and costs little more
    than consecutive cells.

    Parameters
    ----------
    block
        Cells that are read as one.
    buffer
        Cells among which a batch is drawn.
    """

    block: int
    buffer: int

    def __post_init__(self) -> None:
        if self.block < 1 or self.buffer < 1:
            raise OrderError(
                f"blocks and buffers have at least one cell, not {self.block} and {self.buffer}"
            )

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """All of them, each once."""
        key = _key(seed, epoch)
        n_whole, rest = divmod(n, self.block)
        # The cells that make no whole block stand somewhere between the others.
        short_at = _below(_key(key, 1), n_whole + 1) * self.block
        offset = _below(_key(key, 2), max(n, 1))

        def compute(at: Numbers) -> Numbers:
            at = self._shuffled(at, n, key)
            in_short = (at >= short_at) & (at < short_at + rest)
            whole = np.where(at < short_at + rest, at, at - rest)
            number = whole // self.block
            # Each block comes up many times.
            first = min(int(number.min(initial=n_whole)), n_whole)
            last = min(int(number.max(initial=0)) + 1, n_whole)
            blocks = _permuted(np.arange(first, last), n_whole, _key(key, 3))
            starts = np.append(blocks, n_whole) * self.block
            rows: Numbers = starts[np.minimum(number, last) - first] + whole
            rows -= number * self.block
            if rest:
                rows = np.where(in_short, n_whole * self.block + at - short_at, rows)
            rows += offset
            rows[rows >= n] -= n
            return rows

        return _Lazy(n, compute)

    def _shuffled(self, at: Numbers, n: int, key: int) -> Numbers:
        """Positions in the sequence of blocks: those of each buffer, shuffled; `at` rises by 1."""
        out = np.empty_like(at)
        edges = range(int(at[0]) // self.buffer, int(at[-1]) // self.buffer + 1) if len(at) else ()
        for number in edges:
            first = number * self.buffer
            size = min(self.buffer, n - first)
            part = slice(max(first - int(at[0]), 0), first + size - int(at[0]))
            out[part] = first + _permuted(at[part] - first, size, _key(key, 4, number))
        return out


class Weighted:
    """Drawn with replacement, in proportion to a weight of each cell.

    Parameters
    ----------
    weights
        One a cell, finite and not negative, not all zero.
    length
        Cells of an epoch; default as many as there are weights.
    """

    def __init__(self, weights: NDArray[Any], length: int | None = None) -> None:
        weights = np.asarray(weights, np.float64)
        if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any():
            bad = weights[~(weights >= 0) | ~np.isfinite(weights)]
            found = f"{bad[0]}" if len(bad) else f"an array of {weights.ndim} dimensions"
            raise OrderError(f"weights must be one finite number >= 0 a cell, found {found}")
        self._ends = np.cumsum(weights)
        if not len(weights) or self._ends[-1] == 0:
            raise OrderError("weights must not all be zero, as no cell could be drawn")
        self._length = len(weights) if length is None else length

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """Draws; OrderError where there are not `n` weights."""
        if n != len(self._ends):
            raise OrderError(f"there are {len(self._ends)} weights for {n} cells")
        key = _key(seed, epoch)

        def compute(at: Numbers) -> Numbers:
            drawn = _uniform(_hashed(at, key)) * self._ends[-1]
            # Rounding may reach the total itself, behind which only weights of zero can stand.
            last = np.searchsorted(self._ends, self._ends[-1], side="left")
            found: Numbers = np.minimum(np.searchsorted(self._ends, drawn, side="right"), last)
            return found

        return _Lazy(self._length, compute)


class Balanced(Weighted):
    """Drawn with replacement so that every label is equally likely.

    Parameters
    ----------
    codes
        Label of each cell, from 0; cells with a negative one are never drawn.
    length
        Cells of an epoch; default as many as there are.
    """

    def __init__(self, codes: NDArray[Any], length: int | None = None) -> None:
        counts = np.bincount(codes[codes >= 0])
        shares = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
        weights = np.where(codes >= 0, np.append(shares, 0.0)[codes], 0.0)
        super().__init__(weights, len(codes) if length is None else length)


class Grouped:
    """Batches of one group each, such as a perturbation, on request with matched controls.

    Groups come in random order in proportion to their cells, each cell at most once an epoch;
    cells of a group that do not fill a batch are left out of that epoch. With controls the second
    half of a batch holds a control for each cell of the first half, in the same order, drawn with
    replacement.

    Parameters
    ----------
    codes
        Group of each cell, from 0; cells with a negative one are left out.
    batch_size
        Cells of a batch, controls included.
    control
        Group that the controls are.
    match
        A control has the same code here as its cell, such as the cell line or the donor.
    """

    def __init__(
        self,
        codes: NDArray[Any],
        batch_size: int,
        *,
        control: int | None = None,
        match: NDArray[Any] | None = None,
    ) -> None:
        self._codes = codes
        self.batch_size = batch_size
        self._treated = batch_size if control is None else batch_size // 2
        if control is not None and batch_size % 2:
            raise OrderError(f"batches with controls have an even size, not {batch_size}")
        kept = np.flatnonzero((codes >= 0) & (codes != (-1 if control is None else control)))
        self._cells = kept[np.argsort(codes[kept], kind="stable")]
        counts = np.bincount(codes[kept]) if len(kept) else np.zeros(0, np.int64)
        self._group_starts = np.cumsum(counts) - counts
        self._batches_of = counts // self._treated
        self._ends = np.cumsum(self._batches_of)
        if not len(self._ends) or self._ends[-1] == 0:
            raise OrderError(
                f"no group has the {self._treated} cells that a batch needs; take smaller batches"
            )
        self._match: NDArray[Any] | None = None
        if control is not None:
            self._find_controls(codes == control, match)

    def _find_controls(self, is_control: NDArray[np.bool_], match: NDArray[Any] | None) -> None:
        match = np.zeros(len(is_control), np.int64) if match is None else match
        top = int(match.max(initial=-1)) + 2
        # Cells without a match code share the last bin.
        self._match = np.where(match < 0, top - 1, match)
        controls = np.flatnonzero(is_control)
        counts = np.bincount(self._match[controls], minlength=top)
        self._controls = controls[np.argsort(self._match[controls], kind="stable")]
        self._control_starts, self._control_counts = np.cumsum(counts) - counts, counts
        lonely = counts[self._match[self._cells]] == 0
        if lonely.any():
            cell = int(self._cells[lonely.argmax()])
            raise OrderError(
                f"cell {cell} and {int(lonely.sum()) - 1} others have no control to match; leave "
                "them out with rows=…, or match by another column"
            )

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """Whole batches one after the other; OrderError where there are not `n` codes."""
        if n != len(self._codes):
            raise OrderError(f"there are {len(self._codes)} group codes for {n} cells")
        key = _key(seed, epoch)
        n_batches = int(self._ends[-1])
        width = self._treated * (1 if self._match is None else 2)

        def compute(at: Numbers) -> Numbers:
            batch, within = np.divmod(at, width)
            is_control = within >= self._treated
            cells = self._treated_cells(batch, within % self._treated, n_batches, key)
            if self._match is None or not is_control.any():
                return cells
            bins = self._match[cells]
            drawn = _uniform(_hashed(at, _key(key, 2))) * self._control_counts[bins]
            return np.where(
                is_control, self._controls[self._control_starts[bins] + drawn.astype(int)], cells
            )

        return _Lazy(n_batches * width, compute)

    def _treated_cells(self, batch: Numbers, within: Numbers, n_batches: int, key: int) -> Numbers:
        number = _permuted(batch, n_batches, _key(key, 0))
        group = np.searchsorted(self._ends, number, side="right")
        at = (number - (self._ends - self._batches_of)[group]) * self._treated + within
        counts = np.diff(np.append(self._group_starts, len(self._cells)))
        out = np.empty_like(at)
        for code in np.unique(group).tolist():
            chosen = group == code
            shuffled = _permuted(at[chosen], int(counts[code]), _key(key, 1, code))
            out[chosen] = self._cells[self._group_starts[code] + shuffled]
        return out


# -- numbers that look random, from positions ----------------------------------------------------


def _key(*parts: int) -> int:
    """One number of 64 bits for several, each of which changes all of it."""
    # As `_hashed`, of Python's numbers: arrays of one number take ten times as long.
    key = 0
    for part in parts:
        x = ((key ^ int(part)) + _GOLDEN) & _MASK64
        x = ((x ^ (x >> 30)) * _FIRST) & _MASK64
        x = ((x ^ (x >> 27)) * _SECOND) & _MASK64
        key = x ^ (x >> 31)
    return key


def _hashed(at: Numbers, key: int) -> NDArray[np.uint64]:
    """Each number spread over 64 bits; the source is splitmix64 (Steele et al., 2014)."""
    x = (at.view(np.uint64) ^ np.uint64(key)) + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return x ^ (x >> np.uint64(31))


def _uniform(x: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1)."""
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _below(key: int, n: int) -> int:
    return key * n >> 64


def _permuted(at: Numbers, n: int, key: int) -> Numbers:
    """Where a permutation of ``range(n)`` takes positions below `n`."""
    # Two digits, of which one after the other is shifted by what the other one says.
    high, low = (np.uint64(digits) for digits in _factors(n))
    keys = [np.uint64(_key(key, i)) for i in range(_ROUNDS[n > _FEW])]

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
    x *= np.uint64(_FIRST)
    x ^= x >> np.uint64(32)
    x *= np.uint64(_SECOND)
    x >>= np.uint64(32)
    x *= n
    x >>= np.uint64(32)
    return x


def draws(at: Numbers, k: int, seed: int, epoch: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) for positions, n x k, whichever of them are asked for together."""
    numbers = at[:, None] * k + np.arange(k)
    return _uniform(_hashed(numbers, _key(seed, epoch, 5)))
