"""Orders by name, made from a dataset and its obs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl import samplers
from scdl.errors import LoaderError, OrderError
from scdl.rows import CellReader
from scdl.vocabulary import ObsColumn, codes

#: Blocks in a buffer, by default: so many that a batch is nearly as random as one of single cells.
_BLOCKS = 512
#: Cells of a block, at most: consecutive ones that take some 400 kB, as disks like to read.
_MOST_BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class OrderMaker:
    """What the named orders are made of.

    Parameters
    ----------
    cells
        The dataset.
    rows
        The cells of it that are used; None: all.
    batch_size
        Cells of a batch.
    budget
        Cells that a buffer may hold, unless `buffer` says how many.
    block, buffer, weights, by, control, match
        As for :class:`scdl.SingleCellLoader`.
    """

    cells: CellReader
    rows: NDArray[np.int64] | None
    batch_size: int
    budget: int
    block: int | None
    buffer: int | None
    weights: NDArray[Any] | None
    by: str | None
    control: Any
    match: str | None

    def make(self, name: str) -> samplers.Order:
        """The order of that name.

        Raises
        ------
        LoaderError
            There is none of that name, or it lacks what it needs.
        OrderError
            It cannot be made of what it was given.
        """
        known: dict[str, Callable[[], samplers.Order]] = {
            "sequential": samplers.Sequential,
            "random": samplers.Random,
            "block": self._block,
            "weighted": self._weighted,
            "balanced": lambda: samplers.Balanced(self._labels("balanced", self.by).values),
            "grouped": self._grouped,
        }
        if name not in known:
            raise LoaderError(f"order must be one of {', '.join(known)}, not {name!r}")
        return known[name]()

    @property
    def _n(self) -> int:
        return self.cells.n_obs if self.rows is None else len(self.rows)

    def _block(self) -> samplers.Order:
        buffer = self.budget if self.buffer is None else self.buffer
        buffer = max(1, min(max(buffer, self.batch_size), self._n))
        block = self.block or max(1, min(buffer // _BLOCKS, _MOST_BLOCK))
        return samplers.Block(block, buffer)

    def _weighted(self) -> samplers.Order:
        if self.weights is None:
            raise LoaderError("order='weighted' needs weights, one a cell")
        weights = np.asarray(self.weights)
        if weights.shape == (self.cells.n_obs,) and self.rows is not None:
            weights = weights[self.rows]
        if weights.shape != (self._n,):
            raise OrderError(f"weights has shape {weights.shape}, expected one for {self._n} cells")
        return samplers.Weighted(weights)

    def _labels(self, order: str, column: str | None) -> ObsColumn:
        """An obs column as labels of the cells that are used."""
        if column is None:
            raise LoaderError(f"order={order!r} needs by=, a column of obs")
        found = codes(self.cells, column)
        return found if self.rows is None else found._replace(values=found.values[self.rows])

    def _grouped(self) -> samplers.Order:
        groups = self._labels("grouped", self.by)
        if self.control is None:
            return samplers.Grouped(groups.values, self.batch_size)
        if groups.names is None or self.control not in groups.names:
            raise LoaderError(f"control {self.control!r} is no value of the obs column {self.by!r}")
        return samplers.Grouped(
            groups.values,
            self.batch_size,
            control=groups.names.index(self.control),
            match=self._labels("grouped", self.match).values if self.match else None,
        )
