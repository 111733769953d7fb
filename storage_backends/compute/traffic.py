"""What this process asks of storages and what it gets: counters that every backend may add to."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

#: What the kernel counts for this process (Linux).
_IO = "/proc/self/io"


class Counts(NamedTuple):
    """What was counted until some moment; the difference of two says what happened between them.

    Attributes
    ----------
    rows
        Rows of matrices that were read.
    asked
        Bytes of the storage that hold what was read, compressed if they are.
    requests
        Requests to remote storages, also those that failed.
    received
        Bytes that these returned.
    request_seconds
        Sum of their durations.
    busy_seconds
        Time in which at least one of them was under way.

    Examples
    --------
    >>> from storage_backends.compute.traffic import Counts
    >>> Counts(rows=5, asked=80).since(Counts(rows=2, asked=32))
    Counts(rows=3, asked=48, requests=0, received=0, request_seconds=0.0, busy_seconds=0.0)
    """

    rows: int = 0
    asked: int = 0
    requests: int = 0
    received: int = 0
    request_seconds: float = 0.0
    busy_seconds: float = 0.0

    def since(self, before: Counts) -> Counts:
        """What was counted since `before`."""
        return Counts(
            self.rows - before.rows,
            self.asked - before.asked,
            self.requests - before.requests,
            self.received - before.received,
            self.request_seconds - before.request_seconds,
            self.busy_seconds - before.busy_seconds,
        )


class Traffic:
    """Counts what the threads of a process ask of storages, and what these return.

    A backend adds to ``TRAFFIC``: once for each read of many rows, and once for each request.

    Examples
    --------
    >>> from storage_backends.compute.traffic import Traffic
    >>> traffic = Traffic()
    >>> traffic.ask(4096)
    >>> with traffic.request(4096):
    ...     traffic.receive(4096)
    >>> counts = traffic.counts()
    >>> counts.asked, counts.requests, counts.received
    (4096, 1, 4096)
    """

    def __init__(self) -> None:
        self.renew_lock()
        self._rows = self._asked = self._requests = self._received = 0
        self._request_seconds = self._busy_seconds = 0.0
        self._n_under_way = self._in_flight = self._most_in_flight = 0
        self._busy_since = 0.0

    def renew_lock(self) -> None:
        """Use a new lock: a forked process may inherit a locked one."""
        self._lock = threading.Lock()

    def read(self, rows: int) -> None:
        """Count rows that are read, whose bytes are counted by `ask`."""
        with self._lock:
            self._rows += rows

    def ask(self, n_bytes: int) -> None:
        """Count bytes of a storage that hold what is read, without the bytes between them."""
        with self._lock:
            self._asked += n_bytes

    def receive(self, n_bytes: int) -> None:
        """Count bytes that a request returned."""
        with self._lock:
            self._received += n_bytes

    @contextmanager
    def request(self, n_bytes: int = 0) -> Iterator[None]:
        """Count a request to a remote storage, which is under way in the ``with`` block.

        Parameters
        ----------
        n_bytes
            Bytes that it asks for, as far as they are known.
        """
        began = time.perf_counter()
        with self._lock:
            if not self._n_under_way:
                self._busy_since = began
            self._n_under_way += 1
            self._in_flight += n_bytes
            self._most_in_flight = max(self._most_in_flight, self._in_flight)
        try:
            yield
        finally:
            ended = time.perf_counter()
            with self._lock:
                self._n_under_way -= 1
                self._in_flight -= n_bytes
                self._requests += 1
                self._request_seconds += ended - began
                if not self._n_under_way:
                    self._busy_seconds += ended - self._busy_since

    def counts(self) -> Counts:
        """What was counted until now."""
        with self._lock:
            busy = time.perf_counter() - self._busy_since if self._n_under_way else 0.0
            return Counts(
                self._rows,
                self._asked,
                self._requests,
                self._received,
                self._request_seconds,
                self._busy_seconds + busy,
            )

    def most_in_flight(self, *, restart: bool = False) -> int:
        """Most bytes that were asked of remote storages at once, since the last restart."""
        with self._lock:
            most = self._most_in_flight
            if restart:
                self._most_in_flight = self._in_flight
            return most


#: The traffic of this process.
TRAFFIC = Traffic()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=TRAFFIC.renew_lock)


def disk_bytes_read() -> int | None:
    """Bytes that this process had read from disks, not from the page cache; None if unknown.

    Linux counts them, in ``/proc/self/io``.
    """
    try:
        with open(_IO, encoding="ascii") as file:
            return int(file.read().partition("read_bytes:")[2].split()[0])
    except (OSError, LookupError):
        return None
