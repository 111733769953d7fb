"""What a loader yielded, how long that took, and what was read from the storage for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from scdl.training.batch import TrainingBatch
from storage_backends.compute.traffic import TRAFFIC, disk_bytes_read


@dataclass(frozen=True)
class LoaderStats:
    """Statistics of the last epoch of a loader, finished or not.

    Parameters
    ----------
    cells, batches
        Number of cells and batches so far.
    nbytes
        Bytes of the stored values and column ids of these cells.
    seconds
        Seconds since the epoch began.
    waited
        Seconds in which the consumer waited for a batch.
    cells_read, asked_bytes
        Number of cells that were read from the storage, which is ahead of `cells` until the end of
        an epoch; bytes of the storage that hold them: ranges of mapped files, or whole chunks,
        compressed if they are. None if the backend does not count them, or if all of them were in
        memory, decoded.
    read_bytes
        Bytes that were read for them. From remote storage: the bytes received. Otherwise, on Linux:
        the bytes read from disks, and not from the page cache, which file systems in user space
        do not tell. None if unknown.
    requests
        Number of requests to remote storage; None without any.
    in_flight_bytes
        Most bytes that these asked for at once; None without any.

    Notes
    -----
    The last four count all that the process did since the epoch began, so that loaders in use at
    once count each other's. With ``workers=…`` they are None: the workers read.

    Examples
    --------
    >>> loader = scdl.SingleCellLoader(data, 2)
    >>> _ = list(loader)
    >>> stats = loader.stats()
    >>> stats.cells, 0 <= stats.wait_share <= 1
    (6, True)
    """

    cells: int = 0
    batches: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    cells_read: int | None = None
    asked_bytes: int | None = None
    read_bytes: int | None = None
    requests: int | None = None
    in_flight_bytes: int | None = None

    @property
    def cells_per_second(self) -> float:
        """Cells per second."""
        return self.cells / self.seconds if self.seconds else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time in which the consumer waited."""
        return self.waited / self.seconds if self.seconds else 0.0

    @property
    def read_amplification(self) -> float | None:
        """Bytes read over bytes asked of the storage; None if either is unknown.

        Less than 1 if the page cache held some of them; more than 1 if the system or a request
        also read what lies between.
        """
        if self.read_bytes is None or not self.asked_bytes:
            return None
        return self.read_bytes / self.asked_bytes


class EpochStatistics:
    """Measures what is read and yielded from now on, until the end of an epoch.

    Parameters
    ----------
    batch_size, bytes_per_cell
        Cells per batch, and average bytes of a cell.
    reads
        Whether this process reads the cells.
    n_datasets
        Number of datasets in which each cell is read.
    """

    def __init__(
        self,
        batch_size: int = 1,
        bytes_per_cell: float = 0.0,
        *,
        reads: bool = True,
        n_datasets: int = 1,
    ) -> None:
        self._n_datasets = n_datasets
        self._batch_size, self._bytes_per_cell, self._reads = batch_size, bytes_per_cell, reads
        self._yielded = LoaderStats()
        self._final: LoaderStats | None = None
        TRAFFIC.most_in_flight(restart=True)
        self._counts, self._from_disk = TRAFFIC.counts(), disk_bytes_read()

    def measured(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches of the epoch, and measure them."""
        began = requested = time.perf_counter()
        waited, cells = 0.0, 0
        try:
            for number, batch in enumerate(batches, 1):
                now = time.perf_counter()
                waited += now - requested
                # A transform may have replaced the batch by any object.
                cells += len(batch) if isinstance(batch, TrainingBatch) else self._batch_size
                nbytes = int(cells * self._bytes_per_cell)
                self._yielded = LoaderStats(cells, number, nbytes, now - began, waited)
                yield batch
                requested = time.perf_counter()
        finally:
            # Nothing that is read from now on counts.
            self._final = self.stats()

    def stats(self) -> LoaderStats:
        """The statistics so far."""
        if self._final is not None or not self._reads:
            return self._final or self._yielded
        counts, read = TRAFFIC.counts().since(self._counts), None
        if counts.requests:
            read = counts.received
        elif self._from_disk is not None and (now := disk_bytes_read()) is not None:
            read = now - self._from_disk
        return replace(
            self._yielded,
            cells_read=counts.rows // self._n_datasets if counts.asked else None,
            asked_bytes=counts.asked or None,
            read_bytes=read,
            requests=counts.requests or None,
            in_flight_bytes=TRAFFIC.most_in_flight() if counts.requests else None,
        )
