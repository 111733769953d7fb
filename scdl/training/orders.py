"""Orders in which cells are visited: pure functions of (n, seed, epoch).

An order is any object with a method ``positions(n, seed, epoch)`` that returns the positions to
visit: an array, or any object with a length that returns arrays for slices. The orders in this
module are lazy: their memory does not grow with the number of cells (except weights and labels),
and they can begin anywhere, so ranks, workers and resumed runs take slices. Positions may have an
attribute ``starts``: the start of each batch, and the end of the last one.

An optional method ``fingerprint()`` returns a string that identifies the order and its parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from scdl.errors import OrderError
from scdl.kernels import hashing
from scdl.kernels.hashing import Numbers
from scdl.training.lazy_positions import Lazy, digest

#: How to treat the cells of a group that do not fill a batch.
Remainder = Literal["smaller", "fill", "drop"]

#: Groups that an error message lists.
MAX_GROUPS_SHOWN = 5
#: Weights that are checked together.
_WEIGHTS_AT_ONCE = 1 << 18


class Positions(Protocol):
    """Positions of cells, in order; for example an int64 array.

    Examples
    --------
    >>> from scdl.training.orders import Random
    >>> positions = Random().positions(6, seed=0, epoch=0)
    >>> len(positions), positions[:3].dtype
    (6, dtype('int64'))
    """

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Numbers: ...


class Order(Protocol):
    """The order in which cells are visited.

    Examples
    --------
    >>> class Backwards:
    ...     def positions(self, n, seed, epoch):
    ...         return np.arange(n)[::-1]
    >>> next(iter(scdl.SingleCellLoader(data, 3, order=Backwards()))).rows
    tensor([5, 4, 3])
    """

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """Positions below `n`; a pure function of the arguments."""


class Sequential:
    """Visit all cells in stored order.

    Examples
    --------
    >>> from scdl.training.orders import Sequential
    >>> Sequential().positions(6, seed=0, epoch=0)[2:5]
    array([2, 3, 4])
    """

    def fingerprint(self) -> str:
        """Name of the order, which has no parameters."""
        return "sequential"

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """All positions, in ascending order."""
        return Lazy(n, lambda at: at)


class Random:
    """Visit all cells in a uniformly random order; each cell is read on its own.

    Examples
    --------
    >>> from scdl.training.orders import Random
    >>> sorted(Random().positions(6, seed=0, epoch=0)[:]) == list(range(6))
    True
    """

    def fingerprint(self) -> str:
        """Name of the order, which has no parameters."""
        return "random"

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """All positions, shuffled."""
        key = hashing.mixed(seed, epoch)
        return Lazy(n, lambda at: hashing.permuted(at, n, key))


@dataclass(frozen=True)
class Block:
    """Visit blocks of consecutive cells in random order, shuffled within buffers of many blocks.

    Blocks begin at different cells in each epoch. If a buffer has many times more blocks than
    there are labels, batches are nearly as random as those of single cells, and cost little more
    than consecutive cells.

    Parameters
    ----------
    block
        Cells per block.
    buffer
        Cells that are shuffled together.
    piece, window
        Shuffle a buffer in two steps, so that only `window` of its cells must be in memory
        uncompressed: first pieces of `piece` consecutive cells of all blocks, then the cells of
        each `window`. By default, all cells of the buffer are shuffled in one step.

    Examples
    --------
    >>> from scdl.training.orders import Block
    >>> loader = scdl.SingleCellLoader(data, 2, order=Block(block=2, buffer=4))
    >>> sum(len(batch) for batch in loader)
    6
    """

    block: int
    buffer: int
    piece: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.block < 1 or self.buffer < 1:
            raise OrderError(
                f"block and buffer must be at least 1 cell, not {self.block} and {self.buffer}"
            )
        if (self.piece is None) != (self.window is None):
            raise OrderError("piece and window must be given together")
        piece, window = 1 if self.piece is None else self.piece, self.window
        if piece < 1 or (window is not None and (window < 1 or self.buffer % window)):
            raise OrderError(
                f"piece must be at least 1 cell, not {piece}, and a buffer of {self.buffer} cells "
                f"must have whole windows, not of {window}"
            )

    def fingerprint(self) -> str:
        """Name and sizes of blocks and buffers."""
        steps = f", by pieces of {self.piece} in {self.window}" if self.piece else ""
        return f"block of {self.block} in {self.buffer}{steps}"

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """All positions, each once."""
        key = hashing.mixed(seed, epoch)
        n_whole, rest = divmod(n, self.block)
        # The last, shorter block is placed at random between the others.
        short_at = hashing.below(hashing.mixed(key, 1), n_whole + 1) * self.block
        offset = hashing.below(hashing.mixed(key, 2), max(n, 1))

        def compute(at: Numbers) -> Numbers:
            at = _shuffled(at, n, self.window or self.buffer, (key, 4))
            if self.piece is not None:
                at = _shuffled(at, n, self.buffer, (key, 5), self.piece)
            in_short = (at >= short_at) & (at < short_at + rest)
            whole = np.where(at < short_at + rest, at, at - rest)
            number = whole // self.block
            # Permute each block number only once.
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


def _shuffled(at: Numbers, n: int, within: int, keys: tuple[int, int], piece: int = 1) -> Numbers:
    """Positions below `n` after a shuffle of whole pieces within each part of `within` positions.

    Positions after the last whole piece of a part stay where they are.
    """
    out = at.copy()
    part_of = at // within
    for number in range(int(part_of.min()), int(part_of.max()) + 1) if len(at) else ():
        first = number * within
        n_pieces = min(within, n - first) // piece
        chosen = (at >= first) & (at < first + n_pieces * piece)
        inside = at[chosen] - first
        if piece == 1:
            moved = hashing.permuted(inside, n_pieces, hashing.mixed(*keys, number))
        else:
            place = inside // piece
            moved = hashing.permuted(place, n_pieces, hashing.mixed(*keys, number)) * piece
            moved += inside - place * piece
        out[chosen] = first + moved
    return out


class Weighted:
    """Draw cells with replacement, in proportion to their weights.

    Parameters
    ----------
    weights
        One weight per cell, finite and not negative; not all zero.
    length
        Cells per epoch; default the number of weights.

    Examples
    --------
    >>> from scdl.training.orders import Weighted
    >>> weights = np.array([0, 1, 0, 1, 0, 1])
    >>> loader = scdl.SingleCellLoader(data, 3, order=Weighted(weights, length=30))
    >>> {int(row) % 2 for batch in loader for row in batch.rows}
    {1}
    """

    _kind = "weighted"

    def __init__(self, weights: NDArray[Any], length: int | None = None) -> None:
        weights = np.asarray(weights)
        if weights.ndim != 1:
            raise _bad_weights(f"an array of {weights.ndim} dimensions")
        self._draw_by(len(weights), lambda part: _floats(weights[part]), length)

    def _draw_by(
        self, n: int, weights_of: Callable[[slice], NDArray[np.float64]], length: int | None
    ) -> None:
        """Set the weights, given a function of parts of the cells; 8 bytes a cell."""
        self._ends, largest = np.empty(n), 0.0
        parts = [slice(start, start + _WEIGHTS_AT_ONCE) for start in range(0, n, _WEIGHTS_AT_ONCE)]
        for part in parts:
            weights = weights_of(part)
            is_bad = ~(weights >= 0) | ~np.isfinite(weights)
            if is_bad.any():
                raise _bad_weights(f"{weights[is_bad][0]}")
            self._ends[part] = weights
            largest = max(largest, float(weights.max()))
        if largest == 0:
            raise OrderError("weights must not all be zero, as no cell could be drawn")
        if length is not None and length < 1:
            raise OrderError(f"length must be at least 1 cell, not {length}")
        # Scale by a power of two, which is exact, as the sum of large weights could overflow.
        np.ldexp(self._ends, -int(np.frexp(largest)[1]), out=self._ends)
        np.cumsum(self._ends, out=self._ends)
        self._length = n if length is None else length

    def fingerprint(self) -> str:
        """Name, and hash of the weights and the length."""
        return f"{self._kind} {digest(self._length, self._ends)}"

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """Draw positions; OrderError unless there are `n` weights."""
        if n != len(self._ends):
            raise OrderError(f"there are {len(self._ends)} weights for {n} cells")
        key = hashing.mixed(seed, epoch)

        def compute(at: Numbers) -> Numbers:
            drawn = hashing.uniform(hashing.hashed(at, key)) * self._ends[-1]
            # A number rounded up to the total would select trailing cells of weight zero.
            last = np.searchsorted(self._ends, self._ends[-1], side="left")
            cells: Numbers = np.minimum(np.searchsorted(self._ends, drawn, side="right"), last)
            return cells

        return Lazy(self._length, compute)


def _floats(weights: NDArray[Any]) -> NDArray[np.float64]:
    try:
        if weights.dtype.kind in "biufO":
            return weights.astype(np.float64)
    except (TypeError, ValueError):
        pass
    raise _bad_weights(str(weights.dtype))


def _bad_weights(found: str) -> OrderError:
    return OrderError(f"weights must be one finite number >= 0 per cell, found {found}")
