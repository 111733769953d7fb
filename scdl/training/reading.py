"""What was read from the storage in an epoch."""

from __future__ import annotations

from typing import NamedTuple

from storage_backends.compute.traffic import TRAFFIC, disk_bytes_read


class Reading(NamedTuple):
    """What an epoch read, as :class:`~scdl.training.options.LoaderStats` tells it."""

    cells_read: int | None
    asked_bytes: int | None
    read_bytes: int | None
    requests: int | None
    in_flight_bytes: int | None


class EpochReading:
    """Measures what this process reads, from now until :meth:`finish`.

    Parameters
    ----------
    n_datasets
        Number of datasets in which each cell is read.
    """

    def __init__(self, n_datasets: int = 1) -> None:
        self._n_datasets = n_datasets
        TRAFFIC.most_in_flight(restart=True)
        self._counts, self._from_disk = TRAFFIC.counts(), disk_bytes_read()
        self._final: Reading | None = None

    def finish(self) -> None:
        """Count nothing that is read from now on."""
        self._final = self.measured()

    def measured(self) -> Reading:
        """What was read so far."""
        if self._final is not None:
            return self._final
        counts, read = TRAFFIC.counts().since(self._counts), None
        if counts.requests:
            read = counts.received
        elif self._from_disk is not None and (now := disk_bytes_read()) is not None:
            read = now - self._from_disk
        return Reading(
            cells_read=counts.rows // self._n_datasets if counts.asked else None,
            asked_bytes=counts.asked or None,
            read_bytes=read,
            requests=counts.requests or None,
            in_flight_bytes=TRAFFIC.most_in_flight() if counts.requests else None,
        )
