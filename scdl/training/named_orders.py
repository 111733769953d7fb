"""Orders by name, made from a dataset and its obs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.dataset.reader import CellReader
from scdl.errors import LoaderError, OptionError, OrderError
from scdl.training import grouped_orders
from scdl.training import orders as order_kinds
from scdl.training.grouping import Groups, groups

#: Blocks in a buffer, by default: so many that a batch is nearly as random as one of single cells.
_BLOCKS = 512
#: Cells of a block, at most: consecutive ones that take some 400 kB, as disks like to read.
_MOST_BLOCK = 64

#: Options that each order has a use for.
ORDER_OPTIONS: dict[str, tuple[str, ...]] = {
    "block": ("block", "buffer"),
    "random": (),
    "sequential": (),
    "weighted": ("weights",),
    "balanced": ("by",),
    "grouped": ("by", "control", "match", "remainder"),
}


def order_name(order: str | None, options: Mapping[str, Any]) -> str:
    """The order that is meant: the one that is named, or the one that options imply.

    Raises
    ------
    LoaderError
        There is none of that name, or it has no use for an option that is given.
    """
    if order is None:
        order = "weighted" if options["weights"] is not None else "block"
        meant = "an order that is not named"
    else:
        meant = f"order={order!r}"
    if order not in ORDER_OPTIONS:
        raise LoaderError(f"order must be one of {', '.join(ORDER_OPTIONS)}, not {order!r}")
    check_unused(meant, options, ORDER_OPTIONS[order])
    if options["match"] is not None and options["control"] is None:
        raise LoaderError("match= says which control a cell gets, and needs control=")
    return order


def check_unused(meant: str, options: Mapping[str, Any], used: Sequence[str]) -> None:
    """LoaderError where an option of orders is given that an order does not use."""
    for name in dict.fromkeys(name for names in ORDER_OPTIONS.values() for name in names):
        if options[name] is not None and name not in used:
            orders = [f"order={order!r}" for order, names in ORDER_OPTIONS.items() if name in names]
            raise LoaderError(f"{meant} has no use for {name}=, which is for {' or '.join(orders)}")


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
    drop_last
        Whether only whole batches are wanted.
    options
        ``block``, ``buffer``, ``weights``, ``by``, ``control``, ``match`` and ``remainder`` as for
        :class:`scdl.SingleCellLoader`.
    """

    cells: CellReader
    rows: NDArray[np.int64] | None
    batch_size: int
    budget: int
    drop_last: bool
    options: Mapping[str, Any]

    def make(self, name: str) -> order_kinds.Order:
        """The order of that name.

        Raises
        ------
        LoaderError
            It lacks what it needs.
        OrderError
            It cannot be made of what it was given.
        """
        known: dict[str, Callable[[], order_kinds.Order]] = {
            "sequential": order_kinds.Sequential,
            "random": order_kinds.Random,
            "block": self._block,
            "weighted": self._weighted,
            "balanced": lambda: grouped_orders.Balanced(self._groups("balanced", "by").values),
            "grouped": self._grouped,
        }
        return known[name]()

    @property
    def _n(self) -> int:
        return self.cells.n_obs if self.rows is None else len(self.rows)

    def _block(self) -> order_kinds.Order:
        block, buffer = self.options["block"], self.options["buffer"]
        buffer = self.budget if buffer is None else buffer
        buffer = max(1, min(max(buffer, self.batch_size), self._n))
        return order_kinds.Block(block or max(1, min(buffer // _BLOCKS, _MOST_BLOCK)), buffer)

    def _weighted(self) -> order_kinds.Order:
        if self.options["weights"] is None:
            raise LoaderError("order='weighted' needs weights, one a cell")
        weights = np.asarray(self.options["weights"])
        if weights.shape == (self.cells.n_obs,) and self.rows is not None:
            weights = weights[self.rows]
        if weights.shape != (self._n,):
            raise OrderError(f"weights has shape {weights.shape}, expected one for {self._n} cells")
        return order_kinds.Weighted(weights)

    def _groups(self, order: str, option: str) -> Groups:
        """The groups of the cells that are used, by columns of obs."""
        by = self.options[option]
        if by is None:
            raise LoaderError(f"order={order!r} needs {option}=, a column of obs or several")
        try:
            return groups(self.cells, by, option, self.rows)
        except OptionError as error:
            raise LoaderError(str(error)) from error

    def _grouped(self) -> order_kinds.Order:
        found, remainder = self._groups("grouped", "by"), self.options["remainder"]
        if remainder == "smaller" and self.drop_last:
            raise LoaderError("remainder='smaller' asks for batches that drop_last=True leaves out")
        control = self.options["control"]
        try:
            code = None if control is None else found.code_of(control, "control")
        except OptionError as error:
            raise LoaderError(f"{error}, in {self.options['by']!r}") from error
        return grouped_orders.Grouped(
            found.values,
            self.batch_size,
            control=code,
            match=None
            if self.options["match"] is None
            else self._groups("grouped", "match").values,
            remainder=remainder,
            names=found.names,
        )
