"""Reading without warnings, in several threads at once."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _Quiet:
    """The filters of warnings of this process, how many threads have added to them, and what."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.n_threads = 0
        self.kept = warnings.catch_warnings()
        self.messages: set[str] = set()


_quiet = _Quiet()


@contextmanager
def quiet(*messages: str) -> Iterator[None]:
    """Without warnings that begin with one of some messages, which are regular expressions.

    Filters are those of the process: what the first thread found comes back when the last one is
    done, since a thread that put back its own would take away those of the others.
    """
    filters = _quiet
    with filters.lock:
        if filters.n_threads == 0:
            filters.kept = warnings.catch_warnings()
            filters.kept.__enter__()
            filters.messages.clear()
        filters.n_threads += 1
        # A filter that is added again is taken out first, and missed by who warns in between.
        for message in set(messages) - filters.messages:
            warnings.filterwarnings("ignore", message=message)
        filters.messages.update(messages)
    try:
        yield
    finally:
        with filters.lock:
            filters.n_threads -= 1
            if filters.n_threads == 0:
                filters.kept.__exit__(None, None, None)


def _begin_fork() -> None:
    """A fork has none of the threads that may hold its parent's lock."""
    global _quiet
    _quiet = _Quiet()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_fork)
