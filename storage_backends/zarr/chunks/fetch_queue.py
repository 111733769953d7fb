"""The queue of requests to remote files, which many threads serve."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from storage_backends.compute import threads
from storage_backends.errors import RemoteError

if TYPE_CHECKING:
    from storage_backends.zarr.chunks.spans import Span

#: Maximum number of requests at once.
CONCURRENCY = 128

#: The requests of each announcement that have not begun; announcements take turns.
_waiting: deque[Iterator[weakref.ref[Span]]] = deque()


def start(spans: Sequence[Span]) -> None:
    """Begin to fetch spans, without waiting."""
    _waiting.append(iter([span.reference for span in spans]))
    pool = threads.pool("scdl-fetch", CONCURRENCY)
    try:
        for _ in spans[:CONCURRENCY]:
            pool.submit(_work)
    except RuntimeError:
        if threading.main_thread().is_alive():
            raise
        # The process ends; but other threads may still read.
        for span in spans:
            span.fetch()


def _work() -> None:
    """Fetch spans that are still kept until no request waits."""
    while (reference := _next()) is not None:
        if (span := reference()) is None:
            continue
        if threading.main_thread().is_alive():
            span.fetch()
        else:
            # The process waits for this thread to end.
            span.end(RemoteError(f"{span.key}: not read, since the process ends"))


def _next() -> weakref.ref[Span] | None:
    """The next request to begin."""
    while True:
        try:
            _waiting.rotate(-1)
            turn = _waiting[0]
        except IndexError:
            return None
        if (reference := next(turn, None)) is not None:
            return reference
        # Another thread may have removed it.
        with contextlib.suppress(ValueError):
            _waiting.remove(turn)
