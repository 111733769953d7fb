"""Thread-safe suppression of warnings."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _Filters:
    """Warning filters that were added to this process, and the number of threads using them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.n_threads = 0
        self.original = warnings.catch_warnings()
        self.messages: set[str] = set()


_filters = _Filters()


@contextmanager
def ignore_warnings(*messages: str) -> Iterator[None]:
    """Ignore warnings whose messages match one of the regular expressions at their beginning.

    Warning filters belong to the process, not to a thread. The first thread saves the original
    filters, and the last one restores them; otherwise a thread would remove the filters of others.
    """
    filters = _filters
    with filters.lock:
        if filters.n_threads == 0:
            filters.original = warnings.catch_warnings()
            filters.original.__enter__()
            filters.messages.clear()
        filters.n_threads += 1
        # Adding an existing filter again would remove it for a moment, in which threads may warn.
        for message in set(messages) - filters.messages:
            warnings.filterwarnings("ignore", message=message)
        filters.messages.update(messages)
    try:
        yield
    finally:
        with filters.lock:
            filters.n_threads -= 1
            if filters.n_threads == 0:
                filters.original.__exit__(None, None, None)


def _reset_after_fork() -> None:
    """Replace the lock, which a thread of the parent process may have held."""
    global _filters
    _filters = _Filters()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
