"""Orders by group: balanced sampling, and batches of one group each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.errors import OrderError
from scdl.kernels import hashing
from scdl.kernels.hashing import Numbers
from scdl.training.grouping import cells_by_code, count_codes
from scdl.training.lazy_positions import Lazy, as_integers, digest, draw_below
from scdl.training.orders import MAX_GROUPS_SHOWN, Positions, Remainder, Weighted
from scdl.training.vocabulary import narrow_type


class Balanced(Weighted):
    """Draw cells with replacement so that every label is equally likely.

    Parameters
    ----------
    codes
        Label code of each cell, from 0; cells with a negative code are never drawn.
    length
        Cells per epoch; default the number of cells.

    Examples
    --------
    >>> from scdl.training.grouped_orders import Balanced
    >>> codes = data.obs["cell_type"].cat.codes.to_numpy()
    >>> loader = scdl.SingleCellLoader(data, 3, order=Balanced(codes, length=30))
    >>> len(loader)
    10
    """

    _kind = "balanced"

    def __init__(self, codes: NDArray[Any], length: int | None = None) -> None:
        codes = as_integers(codes, "codes")
        counts = count_codes(codes)
        if not counts.any():
            raise OrderError("no cell has a label, so no cell can be drawn")
        shares = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
        # All negative codes take the last share.
        shares = np.append(shares, 0.0)
        self._draw_by(
            len(codes), lambda part: shares[np.maximum(codes[part].astype(np.int64), -1)], length
        )


class Grouped:
    """Batches of one group each, such as a perturbation, optionally with matched controls.

    Batches are shuffled, so groups appear in proportion to their cells, and each cell at most once
    per epoch. With controls, the second half of a batch holds a control for each cell of the first
    half, in the same order, drawn with replacement.

    Parameters
    ----------
    codes
        Group code of each cell, from 0; cells with a negative code are left out.
    batch_size
        Cells per batch, including controls.
    control
        Code of the group of controls.
    match
        Code of each cell that it must share with its control, such as the cell line or the donor.
    remainder
        How to treat the cells of a group that do not fill a batch: ``"smaller"``: give a smaller
        batch; ``"fill"``: add other cells of the group, drawn with replacement; ``"drop"``: leave
        them out of the epoch, different cells in each. Default: the same as ``"drop"``, but a
        group without any batch is an error.
    names
        Names of the groups, for messages.

    Examples
    --------
    >>> from scdl.training.grouped_orders import Grouped
    >>> codes = data.obs["donor"].astype("category").cat.codes.to_numpy()
    >>> loader = scdl.SingleCellLoader(data, 2, order=Grouped(codes, batch_size=2))
    >>> all(len(set(codes[batch.rows])) == 1 for batch in loader)
    True
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
        codes = as_integers(codes, "codes")
        if remainder not in (None, "smaller", "fill", "drop"):
            raise OrderError(f"remainder must be 'smaller', 'fill' or 'drop', not {remainder!r}")
        if batch_size < 1 + (control is not None):
            raise OrderError(f"batch_size {batch_size} is too small for batches of one group")
        if control is not None and batch_size % 2:
            raise OrderError(f"batch_size must be even for batches with controls, not {batch_size}")
        self._n, self.batch_size, self._remainder = len(codes), batch_size, remainder
        self._treated_size = batch_size if control is None else batch_size // 2
        self._cells, self._counts = cells_by_code(codes, control)
        self._group_starts = np.cumsum(self._counts) - self._counts
        whole = self._counts // self._treated_size
        self._batches_of = whole
        if remainder in ("smaller", "fill"):
            self._batches_of = -(-self._counts // self._treated_size)
        self._ends = np.cumsum(self._batches_of)
        if not len(self._ends) or self._ends[-1] == 0:
            raise OrderError(
                f"no group has the {self._treated_size} cells that a batch needs; use smaller "
                "batches, or remainder='smaller' or 'fill'"
            )
        if remainder is None:
            self._check_group_sizes(names)
        self._match: NDArray[Any] | None = None
        if control is not None:
            match = None if match is None else as_integers(match, "match")
            self._set_controls(codes == control, match)

    def _check_group_sizes(self, names: Sequence[Any] | None) -> None:
        small = np.flatnonzero((self._counts > 0) & (self._batches_of == 0)).tolist()
        if small:
            shown = ", ".join(
                repr(i if names is None else names[i]) for i in small[:MAX_GROUPS_SHOWN]
            )
            n_more = len(small) - MAX_GROUPS_SHOWN
            more = f" and {n_more} more" if n_more > 0 else ""
            raise OrderError(
                f"the groups {shown}{more} have fewer cells than the {self._treated_size} of a "
                "batch, and would never be used; choose remainder='smaller', 'fill' or 'drop'"
            )

    def fingerprint(self) -> str:
        """Hash of the groups, controls and matches."""
        parts = [self._cells, self._counts]
        if self._match is not None:
            parts += [self._match, self._controls]
        return f"grouped {digest(self.batch_size, self._remainder, *parts)}"

    def _set_controls(self, is_control: NDArray[np.bool_], match: NDArray[Any] | None) -> None:
        match = np.zeros(len(is_control), np.int8) if match is None else match
        top = int(match.max(initial=-1)) + 2
        # Cells without a match code share the last bin.
        self._match = match.astype(narrow_type(top))
        self._match[match < 0] = top - 1
        controls = np.flatnonzero(is_control)
        counts = np.bincount(self._match[controls], minlength=top)
        self._controls = controls[np.argsort(self._match[controls], kind="stable")]
        self._control_starts, self._control_counts = np.cumsum(counts) - counts, counts
        unmatched = (counts == 0)[self._match[self._cells]]
        if unmatched.any():
            cell = int(self._cells[unmatched.argmax()])
            raise OrderError(
                f"cell {cell} and {int(unmatched.sum()) - 1} others have no matching control; "
                "leave them out with rows=…, or match by another column"
            )

    def positions(self, n: int, seed: int, epoch: int) -> Positions:
        """Positions of all batches in turn; OrderError unless there are `n` codes."""
        if n != self._n:
            raise OrderError(f"there are {self._n} group codes for {n} cells")
        key = hashing.mixed(seed, epoch)
        n_batches = int(self._ends[-1])
        starts, copies = self._starts(n_batches, key), 1 if self._match is None else 2

        def compute(at: Numbers) -> Numbers:
            if isinstance(starts, range):
                batch, within = np.divmod(at, starts.step)
                size: Any = self._treated_size
            else:
                batch = np.searchsorted(starts, at, side="right") - 1
                within = at - starts[batch]
                size = (starts[batch + 1] - starts[batch]) // copies
            is_control = within >= size
            # A control belongs to the cell `size` positions before it.
            treated = np.where(is_control, at - size, at)
            cells = self._treated_cells(treated, batch, within % size, n_batches, key)
            if self._match is None or not is_control.any():
                return cells
            bins = self._match[cells]
            drawn = draw_below(self._control_counts[bins], at, hashing.mixed(key, 2))
            return np.where(is_control, self._controls[self._control_starts[bins] + drawn], cells)

        return Lazy(int(starts[-1]), compute, starts)

    def _starts(self, n_batches: int, key: int) -> range | Numbers:
        """Start of each batch of an epoch, and the end of the last one."""
        copies = 1 if self._match is None else 2
        if self._remainder != "smaller":
            width = self._treated_size * copies
            return range(0, (n_batches + 1) * width, width)
        number = hashing.permuted(np.arange(n_batches), n_batches, hashing.mixed(key, 0))
        group = np.searchsorted(self._ends, number, side="right")
        rest = (self._counts % self._treated_size)[group]
        is_short = (number + 1 == self._ends[group]) & (rest > 0)
        sizes = np.where(is_short, rest, self._treated_size) * copies
        return np.concatenate([[0], np.cumsum(sizes)])

    def _treated_cells(
        self, at: Numbers, batch: Numbers, within: Numbers, n_batches: int, key: int
    ) -> Numbers:
        number = hashing.permuted(batch, n_batches, hashing.mixed(key, 0))
        group = np.searchsorted(self._ends, number, side="right")
        index = (number - (self._ends - self._batches_of)[group]) * self._treated_size + within
        counts = self._counts[group]
        if self._remainder == "fill":
            repeated = draw_below(counts, at, hashing.mixed(key, 3))
            index = np.where(index < counts, index, repeated)
        out = np.empty_like(index)
        for code in np.unique(group).tolist():
            chosen = group == code
            n = int(self._counts[code])
            shuffled = hashing.permuted(index[chosen], n, hashing.mixed(key, 1, code))
            out[chosen] = self._cells[self._group_starts[code] + shuffled]
        return out
