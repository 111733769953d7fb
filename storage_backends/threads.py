"""The threads of one process that encode and decode chunks."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

_T = TypeVar("_T")


#: Most threads of this process, where it shares its cores with others; see :func:`limit`.
_most: int | None = None


def limit(n: int | None) -> None:
    """Use no more than `n` threads from now on, as a process does that has a share of the cores.

    None takes the limit away.
    """
    global _most
    _most = n


def n_threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return cores if _most is None else max(1, min(cores, _most))


@cache
def _pool(process: int, n: int) -> ThreadPoolExecutor:
    """The threads of a process: a fork inherits none."""
    return ThreadPoolExecutor(n, thread_name_prefix="scdl")


def submit(function: Callable[..., _T], *arguments: Any) -> Future[_T]:
    """Call a function in a thread."""
    return _pool(os.getpid(), n_threads()).submit(function, *arguments)


def for_each(function: Callable[[_T], object], items: Sequence[_T]) -> None:
    """Call a function with every item, in several threads; the first error is raised.

    Each thread takes the next item when it is ready, so that all end at about the same time.
    """
    shared = iter(items)

    def work() -> None:
        # Several threads may draw from the iterator of a sequence.
        for item in shared:
            function(item)

    # This thread is one of them: to be woken takes as long as to decode a chunk.
    futures = [submit(work) for _ in range(min(n_threads(), len(items)) - 1)]
    try:
        work()
    finally:
        # What has not begun finds nothing to do any more; nobody works on when this returns.
        begun = [future for future in futures if not future.cancel()]
        failures = [failure for future in begun if (failure := future.exception()) is not None]
    for failure in failures:
        raise failure


class _Quiet:
    """The filters of warnings of this process, and how many threads have added to them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.n_threads = 0
        self.kept = warnings.catch_warnings()


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
        filters.n_threads += 1
        for message in messages:
            warnings.filterwarnings("ignore", message=message)
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
