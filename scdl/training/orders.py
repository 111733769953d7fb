"""Orders in which cells are visited: pure functions of (n, seed, epoch).

An order is any object with a method ``positions(n, seed, epoch)`` that gives the positions to visit
as an array, or as anything else that has a length and gives arrays for slices. Those here are lazy:
they need no memory that grows with the number of cells (weights and labels excepted), and begin
anywhere at once, so that ranks, workers and resumed runs take slices. Positions may have an
attribute ``starts``: where each batch begins, and where the last one ends.

What tells an order from others of its kind is what its method ``fingerprint()`` returns, which an
order of one's own may have too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from scdl.errors import OrderError
from scdl.kernels import hashing
from scdl.kernels.hashing import Numbers

#: What becomes of the cells of a group that fill no batch.
Remainder = Literal["smaller", "fill", "drop"]

#: Groups that a message names.
SHOWN = 5
#: Positions that are computed at once.
_AT_ONCE = 1 << 12


class Positions(Protocol):
    """Positions of cells, in order; an int64 array is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Numbers: ...


class Order(Protocol):
    """In which order cells are visited."""

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """Positions below `n`, the same whenever the three are the same."""


class Lazy:
    """Positions that a function computes for any stretch of consecutive places."""

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
        # In pieces that stay in the cache of a core.
        edges = [*range(start, stop, _AT_ONCE), max(start, stop)]
        pieces = [self._compute(np.arange(a, b)) for a, b in pairwise(edges)]
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


class Sequential:
    """As they are stored."""

    def fingerprint(self) -> str:
        """There is only one."""
        return "sequential"

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """All of them, rising."""
        return Lazy(n, lambda at: at)


class Random:
    """Every order equally likely: each cell is read on its own."""

    def fingerprint(self) -> str:
        """There is only one."""
        return "random"

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """All of them, shuffled."""
        key = hashing.mixed(seed, epoch)
        return Lazy(n, lambda at: hashing.permuted(at, n, key))


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

    def fingerprint(self) -> str:
        """The sizes of blocks and buffers."""
        return f"block of {self.block} in {self.buffer}"

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """All of them, each once."""
        key = hashing.mixed(seed, epoch)
        n_whole, rest = divmod(n, self.block)
        # The cells that make no whole block stand somewhere between the others.
        short_at = hashing.below(hashing.mixed(key, 1), n_whole + 1) * self.block
        offset = hashing.below(hashing.mixed(key, 2), max(n, 1))

        def compute(at: Numbers) -> Numbers:
            at = self._shuffled(at, n, key)
            in_short = (at >= short_at) & (at < short_at + rest)
            whole = np.where(at < short_at + rest, at, at - rest)
            number = whole // self.block
            # Each block comes up many times.
            first = min(int(number.min(initial=n_whole)), n_whole)
            last = min(int(number.max(initial=0)) + 1, n_whole)
            blocks = hashing.permuted(np.arange(first, last), n_whole, hashing.mixed(key, 3))
            starts = np.append(blocks, n_whole) * self.block
            rows: Numbers = starts[np.minimum(number, last) - first] + whole
            rows -= number * self.block
            if rest:
                rows = np.where(in_short, n_whole * self.block + at - short_at, rows)
            rows += offset
            rows[rows >= n] -= n
            return rows

        return Lazy(n, compute)

    def _shuffled(self, at: Numbers, n: int, key: int) -> Numbers:
        """Positions in the sequence of blocks: those of each buffer, shuffled; `at` rises by 1."""
        out = np.empty_like(at)
        edges = range(int(at[0]) // self.buffer, int(at[-1]) // self.buffer + 1) if len(at) else ()
        for number in edges:
            first = number * self.buffer
            size = min(self.buffer, n - first)
            part = slice(max(first - int(at[0]), 0), first + size - int(at[0]))
            out[part] = first + hashing.permuted(
                at[part] - first, size, hashing.mixed(key, 4, number)
            )
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

    _kind = "weighted"

    def __init__(self, weights: NDArray[Any], length: int | None = None) -> None:
        weights = _floats(weights)
        if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any():
            bad = weights[~(weights >= 0) | ~np.isfinite(weights)]
            found = f"{bad[0]}" if len(bad) else f"an array of {weights.ndim} dimensions"
            raise OrderError(f"weights must be one finite number >= 0 a cell, found {found}")
        largest = weights.max(initial=0.0)
        if largest == 0:
            raise OrderError("weights must not all be zero, as no cell could be drawn")
        if length is not None and length < 1:
            raise OrderError(f"an epoch has at least one cell, not length={length}")
        # Scaled by a power of two, which is exact: the sum of large ones would be infinite.
        self._ends = np.cumsum(np.ldexp(weights, -int(np.frexp(largest)[1])))
        self._length = len(weights) if length is None else length

    def fingerprint(self) -> str:
        """Tells what all weights are, and how many cells an epoch has."""
        return f"{self._kind} {digest(self._length, self._ends)}"

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """Draws; OrderError where there are not `n` weights."""
        if n != len(self._ends):
            raise OrderError(f"there are {len(self._ends)} weights for {n} cells")
        key = hashing.mixed(seed, epoch)

        def compute(at: Numbers) -> Numbers:
            drawn = hashing.uniform(hashing.hashed(at, key)) * self._ends[-1]
            # Rounding may reach the total itself, behind which only weights of zero can stand.
            last = np.searchsorted(self._ends, self._ends[-1], side="left")
            found: Numbers = np.minimum(np.searchsorted(self._ends, drawn, side="right"), last)
            return found

        return Lazy(self._length, compute)


def drawn_below(counts: Numbers, at: Numbers, key: int) -> Numbers:
    """A number below each count, drawn for each position."""
    drawn: Numbers = (hashing.uniform(hashing.hashed(at, key)) * counts).astype(np.int64)
    return drawn


def _floats(weights: Any) -> NDArray[np.float64]:
    found = np.asarray(weights)
    try:
        if found.dtype.kind in "biufO":
            return found.astype(np.float64)
    except (TypeError, ValueError):
        pass
    raise OrderError(f"weights must be one finite number >= 0 a cell, found {found.dtype}")


def integers(codes: Any, what: str) -> NDArray[Any]:
    """Codes as one array of integers; OrderError where they are none."""
    found = np.asarray(codes)
    if found.ndim != 1 or (found.dtype.kind not in "iu" and found.size):
        raise OrderError(
            f"{what} must be one integer a cell, found {found.dtype} of {found.ndim} dimensions"
        )
    return found if found.size else found.astype(np.int64)


def digest(*parts: Any) -> str:
    """Tells numbers and arrays from others."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode() + part.tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()[:16]
