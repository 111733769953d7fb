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
_SHOWN = 5
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


class _Lazy:
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
        return _Lazy(n, lambda at: at)


class Random:
    """Every order equally likely: each cell is read on its own."""

    def fingerprint(self) -> str:
        """There is only one."""
        return "random"

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """All of them, shuffled."""
        key = hashing.mixed(seed, epoch)
        return _Lazy(n, lambda at: hashing.permuted(at, n, key))


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

        return _Lazy(n, compute)

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
        return f"{self._kind} {_digest(self._length, self._ends)}"

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

    _kind = "balanced"

    def __init__(self, codes: NDArray[Any], length: int | None = None) -> None:
        codes = _integers(codes, "codes")
        if not (codes >= 0).any():
            raise OrderError("no cell has a label, and none could be drawn")
        counts = np.bincount(codes[codes >= 0])
        shares = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
        weights = np.where(codes >= 0, np.append(shares, 0.0)[codes], 0.0)
        super().__init__(weights, len(codes) if length is None else length)


class Grouped:
    """Batches of one group each, such as a perturbation, on request with matched controls.

    Batches come in random order, so that groups do in proportion to their cells, and each cell at
    most once an epoch. With controls the second half of a batch holds a control for each cell of
    the first half, in the same order, drawn with replacement.

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
    remainder
        What becomes of the cells of a group that fill no batch: ``"smaller"``: a smaller batch;
        ``"fill"``: a batch with other cells of the group, drawn with replacement; ``"drop"``: they
        are left out of the epoch, others in each. Default: the same, but that a group without any
        batch is an error.
    names
        Of the groups, for messages.
    """

    def __init__(
        self,
        codes: NDArray[Any],
        batch_size: int,
        *,
        control: int | None = None,
        match: NDArray[Any] | None = None,
        remainder: Remainder | None = None,
        names: Sequence[Any] | None = None,
    ) -> None:
        codes = _integers(codes, "codes")
        if remainder not in (None, "smaller", "fill", "drop"):
            raise OrderError(f"remainder must be 'smaller', 'fill' or 'drop', not {remainder!r}")
        if batch_size < 1 + (control is not None):
            raise OrderError(f"batch_size {batch_size} is too small for batches of one group")
        if control is not None and batch_size % 2:
            raise OrderError(f"batches with controls have an even size, not {batch_size}")
        self._n, self.batch_size, self._remainder = len(codes), batch_size, remainder
        self._treated = batch_size if control is None else batch_size // 2
        kept = np.flatnonzero((codes >= 0) & (codes != (-1 if control is None else control)))
        self._cells = kept[np.argsort(codes[kept], kind="stable")]
        self._counts = np.bincount(codes[kept]) if len(kept) else np.zeros(0, np.int64)
        self._group_starts = np.cumsum(self._counts) - self._counts
        whole = self._counts // self._treated
        self._batches_of = whole
        if remainder in ("smaller", "fill"):
            self._batches_of = -(-self._counts // self._treated)
        self._ends = np.cumsum(self._batches_of)
        if not len(self._ends) or self._ends[-1] == 0:
            raise OrderError(
                f"no group has the {self._treated} cells that a batch needs; take smaller batches, "
                "or remainder='smaller' or 'fill'"
            )
        if remainder is None:
            self._check_none_is_small(names)
        self._match: NDArray[Any] | None = None
        if control is not None:
            match = None if match is None else _integers(match, "match")
            self._find_controls(codes == control, match)

    def _check_none_is_small(self, names: Sequence[Any] | None) -> None:
        small = np.flatnonzero((self._counts > 0) & (self._batches_of == 0)).tolist()
        if small:
            shown = ", ".join(repr(i if names is None else names[i]) for i in small[:_SHOWN])
            more = f" and {len(small) - _SHOWN} more" if len(small) > _SHOWN else ""
            raise OrderError(
                f"the groups {shown}{more} have fewer cells than the {self._treated} that a batch "
                "takes, and would never come; say with remainder= what becomes of them: "
                "'smaller', 'fill' or 'drop'"
            )

    def fingerprint(self) -> str:
        """Tells what all groups, controls and matches are."""
        parts = [self._cells, self._counts]
        if self._match is not None:
            parts += [self._match, self._controls]
        return f"grouped {_digest(self.batch_size, self._remainder, *parts)}"

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
        """Batches one after the other; OrderError where there are not `n` codes."""
        if n != self._n:
            raise OrderError(f"there are {self._n} group codes for {n} cells")
        key = hashing.mixed(seed, epoch)
        n_batches = int(self._ends[-1])
        starts, copies = self._starts(n_batches, key), 1 if self._match is None else 2

        def compute(at: Numbers) -> Numbers:
            if isinstance(starts, range):
                batch, within = np.divmod(at, starts.step)
                size: Any = self._treated
            else:
                batch = np.searchsorted(starts, at, side="right") - 1
                within = at - starts[batch]
                size = (starts[batch + 1] - starts[batch]) // copies
            is_control = within >= size
            # A control's cell is the one so many places before it.
            treated = np.where(is_control, at - size, at)
            cells = self._treated_cells(treated, batch, within % size, n_batches, key)
            if self._match is None or not is_control.any():
                return cells
            bins = self._match[cells]
            drawn = _drawn_below(self._control_counts[bins], at, hashing.mixed(key, 2))
            return np.where(is_control, self._controls[self._control_starts[bins] + drawn], cells)

        return _Lazy(int(starts[-1]), compute, starts)

    def _starts(self, n_batches: int, key: int) -> range | Numbers:
        """Where the batches of an epoch begin, and where the last one ends."""
        copies = 1 if self._match is None else 2
        if self._remainder != "smaller":
            width = self._treated * copies
            return range(0, (n_batches + 1) * width, width)
        number = hashing.permuted(np.arange(n_batches), n_batches, hashing.mixed(key, 0))
        group = np.searchsorted(self._ends, number, side="right")
        rest = (self._counts % self._treated)[group]
        is_short = (number + 1 == self._ends[group]) & (rest > 0)
        sizes = np.where(is_short, rest, self._treated) * copies
        return np.concatenate([[0], np.cumsum(sizes)])

    def _treated_cells(
        self, at: Numbers, batch: Numbers, within: Numbers, n_batches: int, key: int
    ) -> Numbers:
        number = hashing.permuted(batch, n_batches, hashing.mixed(key, 0))
        group = np.searchsorted(self._ends, number, side="right")
        place = (number - (self._ends - self._batches_of)[group]) * self._treated + within
        counts = self._counts[group]
        if self._remainder == "fill":
            again = _drawn_below(counts, at, hashing.mixed(key, 3))
            place = np.where(place < counts, place, again)
        out = np.empty_like(place)
        for code in np.unique(group).tolist():
            chosen = group == code
            n = int(self._counts[code])
            shuffled = hashing.permuted(place[chosen], n, hashing.mixed(key, 1, code))
            out[chosen] = self._cells[self._group_starts[code] + shuffled]
        return out


def _drawn_below(counts: Numbers, at: Numbers, key: int) -> Numbers:
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


def _integers(codes: Any, what: str) -> NDArray[Any]:
    found = np.asarray(codes)
    if found.ndim != 1 or (found.dtype.kind not in "iu" and found.size):
        raise OrderError(
            f"{what} must be one integer a cell, found {found.dtype} of {found.ndim} dimensions"
        )
    return found if found.size else found.astype(np.int64)


def _digest(*parts: Any) -> str:
    """Tells numbers and arrays from others."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode() + part.tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()[:16]
