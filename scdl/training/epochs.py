"""How an epoch is divided among ranks and workers, and which batches are read together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from scdl.errors import OrderError
from scdl.training.orders import Positions


class Share(Protocol):
    """The batches of one rank, as ranges of the positions of an epoch.

    Every rank has the same number of batches.
    """

    def __len__(self) -> int: ...

    def bounds(self, batch: int, /) -> tuple[int, int]:
        """Half-open range of positions of a batch."""


def share_of(
    positions: Positions, batch_size: int, rank: int, world_size: int, *, drop_last: bool
) -> Share:
    """Share of one rank: batches of equal size, or those that the order defines by `starts`."""
    starts = getattr(positions, "starts", None)
    if starts is None:
        return CellShare(len(positions), batch_size, rank, world_size, drop_last)
    return BatchShare(starts, rank, world_size, drop_last)


@dataclass(frozen=True)
class BatchShare:
    """The batches of one rank if the order defines the batches.

    Each rank gets the same number of consecutive batches. Each rank also gets one of the remaining
    batches, some of which are repeated; `drop_last` drops them all instead.

    Parameters
    ----------
    starts
        Start of each batch, and the end of the last one.
    """

    starts: Sequence[int] | NDArray[np.int64]
    rank: int
    world_size: int
    drop_last: bool

    def __len__(self) -> int:
        n_each, left = divmod(len(self.starts) - 1, self.world_size)
        return n_each + (left > 0 and not self.drop_last)

    def bounds(self, batch: int, /) -> tuple[int, int]:
        """Half-open range of positions of a batch."""
        n_each, left = divmod(len(self.starts) - 1, self.world_size)
        if batch < n_each:
            number = self.rank * n_each + batch
        else:
            number = n_each * self.world_size + self.rank % left
        return int(self.starts[number]), int(self.starts[number + 1])


@dataclass(frozen=True)
class CellShare:
    """The batches of one rank if all batches have the same size.

    Each rank gets the same number of consecutive full batches, and an equal part of the remaining
    cells as its last, shorter batch. If fewer cells than ranks remain, some are repeated, since
    every rank must have the same number of batches.
    """

    length: int
    batch_size: int
    rank: int
    world_size: int
    drop_last: bool

    def __len__(self) -> int:
        n_whole, left = divmod(self.length, self.batch_size * self.world_size)
        return n_whole + (left > 0 and not self.drop_last)

    def bounds(self, batch: int, /) -> tuple[int, int]:
        """Half-open range of positions of a batch."""
        n_whole, left = divmod(self.length, self.batch_size * self.world_size)
        if batch < n_whole:
            start = (self.rank * n_whole + batch) * self.batch_size
            return start, start + self.batch_size
        first = self.length - left
        if left < self.world_size:
            start = first + self.rank % left
            return start, start + 1
        ranks = self.rank, self.rank + 1
        start, stop = (first + left * rank // self.world_size for rank in ranks)
        return start, stop


class ReadPlan(NamedTuple):
    """Batches to read together.

    Attributes
    ----------
    positions
        Positions of their cells in the epoch.
    cells
        The cells at these positions.
    sizes
        Number of cells of each batch.
    batches
        Index of each batch in the rank's epoch.
    fetched
        Object that may hold what the storage has fetched of these cells.
    """

    positions: NDArray[np.int64]
    cells: NDArray[np.int64]
    sizes: list[int]
    batches: list[int]
    fetched: Any = None


@dataclass(frozen=True)
class Epoch:
    """The batches of an epoch that one process yields.

    Parameters
    ----------
    positions, share
        The positions of the order, and this rank's share of them.
    first
        First batch.
    worker, n_workers
        From `first` on, worker 0 yields the first batch, worker 1 the second, and so on.
    """

    positions: Positions
    share: Share
    first: int
    worker: int = 0
    n_workers: int = 1

    def windows(self, cells: int, among: range | None = None) -> Iterator[range]:
        """Yield ranges of consecutive batches that begin within the same `cells` positions.

        Parameters
        ----------
        among
            The batches; default: all from the first one of this process.
        """
        among = range(self.first, len(self.share)) if among is None else among
        start = among.start
        while start < among.stop:
            begin, end = self.share.bounds(start)
            window, stop = begin // cells, start + 1
            while stop < among.stop:
                next_begin, next_end = self.share.bounds(stop)
                if next_begin != end or next_begin // cells != window:
                    break
                end, stop = next_end, stop + 1
            yield range(start, stop)
            start = stop

    def read_plans(self, window: range, at_once: int, n: int) -> list[ReadPlan]:
        """Plan to read the batches of this worker in a window, `at_once` batches per read.

        Raises
        ------
        OrderError
            A position is not an integer below `n`.
        """
        start, stop = self.share.bounds(window[0])[0], self.share.bounds(window[-1])[1]
        cells = cells_at(self.positions, start, stop, n)
        mine = [b for b in window if (b - self.first) % self.n_workers == self.worker]
        plans = []
        for i in range(0, len(mine), at_once):
            bounds = [self.share.bounds(batch) for batch in mine[i : i + at_once]]
            at = np.concatenate([np.arange(begin, end) for begin, end in bounds])
            sizes = [end - begin for begin, end in bounds]
            plans.append(ReadPlan(at, cells[at - start], sizes, mine[i : i + at_once]))
        return plans


def cells_at(positions: Positions, start: int, stop: int, n: int) -> NDArray[np.int64]:
    """The cells at positions `start` to `stop` of an order.

    Raises
    ------
    OrderError
        A cell is not an integer below `n`, or there are fewer positions than the order's length.
    """
    cells = np.asarray(positions[start:stop])
    if cells.shape != (stop - start,) or (cells.dtype.kind not in "iu" and cells.size):
        raise OrderError(
            f"the order returned {cells.dtype} of shape {cells.shape} for positions {start} to "
            f"{stop}, expected {stop - start} integers below {n}"
        )
    if len(cells) and not 0 <= int(cells.min()) <= int(cells.max()) < n:
        raise OrderError(
            f"the order returned cells {cells.min()} to {cells.max()}, expected 0 to {n - 1}"
        )
    return cells.astype(np.int64, copy=False)
