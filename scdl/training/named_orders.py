"""Orders by name, created from a dataset and its obs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np

from scdl.dataset.cells import Storage
from scdl.errors import LoaderError, OptionError, OrderError
from scdl.training import grouped_orders
from scdl.training import orders as order_kinds
from scdl.training.content import BatchContent
from scdl.training.grouping import Groups, group_cells
from scdl.training.options import LoaderOptions

#: Default number of blocks in a buffer; batches are then nearly as random as single random cells.
_BLOCKS = 512
#: Maximum default cells per block: some 400 kB, which disks read efficiently.
_MAX_BLOCK = 64
#: Default numbers of blocks in a buffer that is kept compressed, and of their pieces in a window.
_COMPRESSED_BLOCKS, _PIECES = 640, 400

#: Options of each order.
ORDER_OPTIONS: dict[str, tuple[str, ...]] = {
    "block": ("block", "buffer"),
    "random": (),
    "sequential": (),
    "weighted": ("weights",),
    "balanced": ("by",),
    "grouped": ("by", "control", "match", "remainder"),
}


def order_name(order: str | order_kinds.Order | None, options: Mapping[str, Any]) -> str:
    """The name of the order, or of the one that the options imply.

    Raises
    ------
    LoaderError
        There is no order of that name, it is not an order, or it does not use an option that is
        given.
    """
    if order is not None and not isinstance(order, str):
        if isinstance(order, type) or not hasattr(order, "positions"):
            raise LoaderError(
                f"order must be a name or an object with positions(n, seed, epoch), not {order!r}"
            )
        _check_unused("a custom order", options, ())
        return type(order).__name__
    if order is None:
        order = "weighted" if options["weights"] is not None else "block"
        described = "the default order"
    else:
        described = f"order={order!r}"
    if order not in ORDER_OPTIONS:
        raise LoaderError(f"order must be one of {', '.join(ORDER_OPTIONS)}, not {order!r}")
    _check_unused(described, options, ORDER_OPTIONS[order])
    if options["match"] is not None and options["control"] is None:
        raise LoaderError("match= selects the control of each cell, and requires control=")
    return order


def _check_unused(described: str, options: Mapping[str, Any], used: Sequence[str]) -> None:
    """Raise LoaderError if an option is given that the order does not use."""
    for name in dict.fromkeys(name for names in ORDER_OPTIONS.values() for name in names):
        if options[name] is not None and name not in used:
            orders = [f"order={order!r}" for order, names in ORDER_OPTIONS.items() if name in names]
            raise LoaderError(
                f"{described} does not use {name}=, an option of {' or '.join(orders)}"
            )


@dataclass(frozen=True)
class OrderMaker:
    """Creates the named orders.

    Parameters
    ----------
    content
        The cells, and the options ``block``, ``buffer``, ``memory_mb``, ``weights``, ``by``,
        ``control``, ``match`` and ``remainder`` as for :class:`scdl.SingleCellLoader`.
    batch_size
        Cells per batch.
    drop_last
        Whether only full batches are wanted.
    """

    content: BatchContent
    batch_size: int
    _: KW_ONLY
    drop_last: bool

    @property
    def _options(self) -> LoaderOptions:
        return self.content.options

    @property
    def _memory(self) -> float:
        return self._options["memory_mb"] * 1e6

    def make(self, name: str) -> order_kinds.Order:
        """Create the order of that name.

        Raises
        ------
        LoaderError
            A required option is missing.
        OrderError
            The options do not fit the cells.
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
    def budget(self) -> int:
        """Half the cells that fit into memory: a second buffer of them is read ahead."""
        return max(1, int(self._memory / 2 / max(self.content.bytes_per_cell, 1)))

    def _block(self) -> order_kinds.Order:
        block, buffer = self._options["block"], self._options["buffer"]
        storage = self.content.cells.storage
        if block is None and buffer is None and storage.request_bytes:
            return self._blocks_of_requests(storage)
        buffer = self.budget if buffer is None else buffer
        buffer = max(1, min(max(buffer, self.batch_size), len(self.content)))
        return order_kinds.Block(block or max(1, min(buffer // _BLOCKS, _MAX_BLOCK)), buffer)

    def _blocks_of_requests(self, storage: Storage) -> order_kinds.Order:
        """Blocks for a storage that is slow to answer, whose buffers are kept compressed.

        Half of the memory holds two buffers, compressed, the other half two windows of one of them.
        """
        window = max(self.budget // 2 // self.batch_size, 1) * self.batch_size
        # Fields take in the storage what they take of a cell in memory.
        share = self.content.bytes_per_cell / max(self.content.cells.bytes_per_cell, 1)
        per_cell = max(storage.bytes_per_cell * max(share, 1), 1)
        n_windows = max(1, int(self._memory / 4 / per_cell) // window)
        block = min(int(storage.request_bytes / per_cell), n_windows * window // _COMPRESSED_BLOCKS)
        piece = max(1, min(window // _PIECES, _MAX_BLOCK))
        return order_kinds.Block(max(block, piece), n_windows * window, piece, window)

    def _weighted(self) -> order_kinds.Order:
        if self._options["weights"] is None:
            raise LoaderError("order='weighted' needs weights, one per cell")
        weights = np.asarray(self._options["weights"])
        if weights.shape == (self.content.cells.n_obs,) and self.content.rows is not None:
            weights = weights[self.content.rows]
        if weights.shape != (len(self.content),):
            raise OrderError(f"weights has shape {weights.shape}, expected ({len(self.content)},)")
        return order_kinds.Weighted(weights)

    def _groups(self, order: str, option: Literal["by", "match"]) -> Groups:
        """Groups of the used cells by columns of obs."""
        by = self._options[option]
        if by is None:
            raise LoaderError(f"order={order!r} needs {option}=, a column of obs or several")
        try:
            return group_cells(self.content.cells, by, option, self.content.rows)
        except OptionError as error:
            raise LoaderError(str(error)) from error

    def _grouped(self) -> order_kinds.Order:
        groups, remainder = self._groups("grouped", "by"), self._options["remainder"]
        if remainder == "smaller" and self.drop_last:
            raise LoaderError("remainder='smaller' and drop_last=True contradict each other")
        control = self._options["control"]
        try:
            code = None if control is None else groups.code_of(control, "control")
        except OptionError as error:
            raise LoaderError(f"{error}, in {self._options['by']!r}") from error
        return grouped_orders.Grouped(
            groups.values,
            self.batch_size,
            control=code,
            match=None
            if self._options["match"] is None
            else self._groups("grouped", "match").values,
            remainder=remainder,
            names=groups.names,
        )
