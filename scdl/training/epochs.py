"""An epoch, divided: what each rank and worker gives, and which batches are read together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from scdl.errors import OrderError
from scdl.training.orders import Positions
from storage_backends.compute.caching import cached_property


class Share(Protocol):
    """The batches of one rank, as stretches of the positions of an epoch.

    Every rank has the same number of batches.
    """

    def __len__(self) -> int: ...

    def bounds(self, batch: int, /) -> tuple[int, int]:
        """Half-open stretch of positions of a batch."""


def share_of(
    positions: Positions, batch_size: int, rank: int, world_size: int, *, drop_last: bool
) -> Share:
    """What one rank gives of an epoch: batches of one size, or those that the order begins."""
    starts = getattr(positions, "starts", None)
    if starts is None:
        return CellShare(len(positions), batch_size, rank, world_size, drop_last)
    return BatchShare(starts, rank, world_size, drop_last)


@dataclass(frozen=True)
class BatchShare:
    """The batches of one rank where the order says which cells are a batch.

    Batches are dealt out evenly, so that each rank has consecutive ones. Of those that are left
    each rank gets one, so that some are given twice; with `drop_last` none of them is given.

    Parameters
    ----------
    starts
        Where each batch begins, and where the last one ends.
    """

    starts: Sequence[int] | NDArray[np.int64]
    rank: int
    world_size: int
    drop_last: bool

    def __len__(self) -> int:
        n_each, left = divmod(len(self.starts) - 1, self.world_size)
        return n_each + (left > 0 and not self.drop_last)

    def bounds(self, batch: int, /) -> tuple[int, int]:
        """Half-open stretch of positions of a batch."""
        n_each, left = divmod(len(self.starts) - 1, self.world_size)
        if batch < n_each:
            number = self.rank * n_each + batch
        else:
            number = n_each * self.world_size + self.rank % left
        return int(self.starts[number]), int(self.starts[number + 1])


@dataclass(frozen=True)
class CellShare:
    """The batches of one rank, as stretches of the positions of an epoch.

    Whole batches are dealt out evenly, so that each rank has consecutive ones; of what is left
    every rank gets an equal part as its last, shorter batch. Where fewer cells than ranks are left
    some are given twice, since every rank must have the same number of batches.
    """

    length: int
    batch_size: int
    rank: int
    world_size: int
    drop_last: bool

    @cached_property
    def _n_whole(self) -> int:
        return self.length // (self.batch_size * self.world_size)

    @cached_property
    def _left(self) -> int:
        return self.length - self._n_whole * self.batch_size * self.world_size

    def __len__(self) -> int:
        return self._n_whole + (self._left > 0 and not self.drop_last)

    def bounds(self, batch: int, /) -> tuple[int, int]:
        """Half-open stretch of positions of a batch."""
        if batch < self._n_whole:
            start = (self.rank * self._n_whole + batch) * self.batch_size
            return start, start + self.batch_size
        first = self.length - self._left
        if self._left < self.world_size:
            start = first + self.rank % self._left
            return start, start + 1
        ranks = self.rank, self.rank + 1
        start, stop = (first + self._left * rank // self.world_size for rank in ranks)
        return start, stop


class Stretch(NamedTuple):
    """Batches that are read together.

    Attributes
    ----------
    positions
        Places of their cells in the epoch.
    cells
        The cells, as the order gives them.
    sizes
        Cells of each batch.
    batches
        Number of each batch in the epoch of its rank.
    """

    positions: NDArray[np.int64]
    cells: NDArray[np.int64]
    sizes: list[int]
    batches: list[int]


@dataclass(frozen=True)
class Epoch:
    """The batches that one process gives of an epoch.

    Parameters
    ----------
    positions, share
        The order, and the part of it that is this rank's.
    first
        Batch to begin with.
    worker, n_workers
        Of the batches from there on, worker 0 gives the first, worker 1 the second, and so on.
    """

    positions: Positions
    share: Share
    first: int
    worker: int = 0
    n_workers: int = 1

    def windows(self, cells: int) -> Iterator[range]:
        """Consecutive batches that begin within the same `cells` positions."""
        start = self.first
        while start < len(self.share):
            begin, end = self.share.bounds(start)
            window, stop = begin // cells, start + 1
            while stop < len(self.share):
                next_begin, next_end = self.share.bounds(stop)
                if next_begin != end or next_begin // cells != window:
                    break
                end, stop = next_end, stop + 1
            yield range(start, stop)
            start = stop

    def stretches(self, window: range, at_once: int, n: int) -> list[Stretch]:
        """Batches of this worker in a window, of which `at_once` are read together.

        Raises
        ------
        OrderError
            A position is no integer, or not below `n`.
        """
        start, stop = self.share.bounds(window[0])[0], self.share.bounds(window[-1])[1]
        cells = cells_at(self.positions, start, stop, n)
        mine = [b for b in window if (b - self.first) % self.n_workers == self.worker]
        found = []
        for i in range(0, len(mine), at_once):
            bounds = [self.share.bounds(batch) for batch in mine[i : i + at_once]]
            where = np.concatenate([np.arange(*stretch) for stretch in bounds])
            sizes = [end - begin for begin, end in bounds]
            found.append(Stretch(where, cells[where - start], sizes, mine[i : i + at_once]))
        return found


def cells_at(positions: Positions, start: int, stop: int, n: int) -> NDArray[np.int64]:
    """The cells at some places of an order.

    Raises
    ------
    OrderError
        A position is no integer, or not below `n`; or there are fewer than were promised.
    """
    cells = np.asarray(positions[start:stop])
    if cells.shape != (stop - start,) or (cells.dtype.kind not in "iu" and cells.size):
        raise OrderError(
            f"the order gives {cells.dtype} of shape {cells.shape} for places {start} to {stop}, "
            f"expected {stop - start} integers below {n}"
        )
    if len(cells) and not 0 <= int(cells.min()) <= int(cells.max()) < n:
        raise OrderError(f"the order gives positions {cells.min()} to {cells.max()} of {n}")
    return cells.astype(np.int64, copy=False)
