"""The batches of every epoch: an order of cells, divided into batches and among ranks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from scdl.errors import LoaderError, OrderError
from scdl.training.epochs import Epoch, Share, cells_at, share_of
from scdl.training.orders import Order, Positions

#: The fingerprint of an order without a method `fingerprint` hashes up to this many samples of up
#: to this many consecutive positions.
_FINGERPRINT_SAMPLES, _SAMPLE_LENGTH = 1 << 10, 1 << 10


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The batches of every epoch, and those of one rank.

    Parameters
    ----------
    order, name
        Order of the cells, and what it is called.
    n
        Number of cells.
    batch_size
        Cells per batch.
    seed
        Seed of the order.
    rank, world_size, drop_last
        As for :class:`~scdl.SingleCellLoader`.
    """

    order: Order
    name: str
    n: int
    batch_size: int
    seed: int
    rank: int
    world_size: int
    drop_last: bool

    def check(self) -> None:
        """Check that the order can be divided into batches.

        Raises
        ------
        OrderError
            The order does not return positions of cells.
        LoaderError
            The order is for batches of another size, or there are too few cells for a batch on
            each rank.
        """
        width = getattr(self.order, "batch_size", self.batch_size)
        if width != self.batch_size:
            raise LoaderError(
                f"the order was made for batches of {width} cells, not of {self.batch_size}"
            )
        positions = self._positions(0)
        n_cells = len(positions)
        if n_cells:
            cells_at(positions, 0, 1, self.n)
        if self.batch_size > n_cells:
            raise LoaderError(
                f"batch_size {self.batch_size} is more than the {n_cells} cells of an epoch; use "
                f"at most {n_cells}"
            )
        if not len(self._share(positions)):
            raise LoaderError(
                f"{n_cells} cells are too few for a batch of {self.batch_size} on each of "
                f"{self.world_size} ranks; use smaller batches, or drop_last=False"
            )

    def _positions(self, epoch: int) -> Positions:
        positions = self.order.positions(self.n, self.seed, epoch)
        if not hasattr(positions, "__len__") or not hasattr(positions, "__getitem__"):
            raise OrderError(
                "the positions of an order must have a length and return arrays for slices, found "
                f"{type(positions).__name__}"
            )
        return positions

    def _share(self, positions: Positions) -> Share:
        return share_of(
            positions, self.batch_size, self.rank, self.world_size, drop_last=self.drop_last
        )

    def n_batches(self, epoch: int) -> int:
        """Batches of an epoch, the same for every rank."""
        return len(self._share(self._positions(epoch)))

    def batches(self, epoch: int, first: int, worker: int = 0, n_workers: int = 1) -> Epoch:
        """The batches of this rank from `first` on that one of its workers yields."""
        positions = self._positions(epoch)
        return Epoch(positions, self._share(positions), first, worker, n_workers)

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a batch of an epoch to hold the same cells."""
        return {
            "batch_size": self.batch_size,
            "order": self._order_fingerprint(),
            "seed": self.seed,
            "drop_last": self.drop_last,
            "world_size": self.world_size,
        }

    def _order_fingerprint(self) -> str:
        """The order's own fingerprint, or a hash of samples of its positions."""
        own = getattr(self.order, "fingerprint", None)
        if own is not None:
            return str(own() if callable(own) else own)
        digest = hashlib.sha256()
        for epoch in (0, 1):
            positions = self.order.positions(self.n, self.seed, epoch)
            step = max(1, len(positions) // _FINGERPRINT_SAMPLES)
            for start in range(0, len(positions), step):
                stop = min(start + min(step, _SAMPLE_LENGTH), len(positions))
                digest.update(cells_at(positions, start, stop, self.n).tobytes())
        return f"{self.name} {digest.hexdigest()[:16]}"
