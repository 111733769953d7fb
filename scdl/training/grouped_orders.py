"""Orders in which the cells of a batch belong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.errors import OrderError
from scdl.kernels import hashing
from scdl.kernels.hashing import Numbers
from scdl.training.orders import (
    SHOWN,
    Lazy,
    Positions,
    Remainder,
    Weighted,
    digest,
    drawn_below,
    integers,
)


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
        codes = integers(codes, "codes")
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
        codes = integers(codes, "codes")
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
            match = None if match is None else integers(match, "match")
            self._find_controls(codes == control, match)

    def _check_none_is_small(self, names: Sequence[Any] | None) -> None:
        small = np.flatnonzero((self._counts > 0) & (self._batches_of == 0)).tolist()
        if small:
            shown = ", ".join(repr(i if names is None else names[i]) for i in small[:SHOWN])
            more = f" and {len(small) - SHOWN} more" if len(small) > SHOWN else ""
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
        return f"grouped {digest(self.batch_size, self._remainder, *parts)}"

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
            drawn = drawn_below(self._control_counts[bins], at, hashing.mixed(key, 2))
            return np.where(is_control, self._controls[self._control_starts[bins] + drawn], cells)

        return Lazy(int(starts[-1]), compute, starts)

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
            again = drawn_below(counts, at, hashing.mixed(key, 3))
            place = np.where(place < counts, place, again)
        out = np.empty_like(place)
        for code in np.unique(group).tolist():
            chosen = group == code
            n = int(self._counts[code])
            shuffled = hashing.permuted(place[chosen], n, hashing.mixed(key, 1, code))
            out[chosen] = self._cells[self._group_starts[code] + shuffled]
        return out
