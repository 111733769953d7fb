"""The threads of one process that encode and decode chunks."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

_T = TypeVar("_T")


#: Most threads of this process, where it shares its cores with others; see :func:`limit`.
_most: int | None = None


#: Threads that are one of as many as there are cores.
_is_one_of_many = threading.local()


def limit(n: int | None) -> None:
    """Use no more than `n` threads from now on, as a process does that has a share of the cores.

    None takes the limit away.
    """
    global _most
    _most = n


def work_alone() -> None:
    """Take no others to help this thread, since it is one of as many as there are cores."""
    _is_one_of_many.is_so = True


def n_threads() -> int:
    """Cores that this thread may use."""
    if hasattr(_is_one_of_many, "is_so"):
        return 1
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
    try:
        return _pool(os.getpid(), n_threads()).submit(function, *arguments)
    except RuntimeError:
        if threading.main_thread().is_alive():
            raise
    # No thread begins any more, but those that have begun may read on: so it is done here.
    done: Future[_T] = Future()
    try:
        done.set_result(function(*arguments))
    except BaseException as error:  # noqa: BLE001 - raised by who asks for the result
        done.set_exception(error)
    return done


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
    futures: list[Future[None]] = []
    try:
        for _ in range(min(n_threads(), len(items)) - 1):
            futures.append(submit(work))  # noqa: PERF401 - those that began are waited for
        work()
    finally:
        # What has not begun finds nothing to do any more; nobody works on when this returns.
        begun = [future for future in futures if not future.cancel()]
        failures = [failure for future in begun if (failure := future.exception()) is not None]
    for failure in failures:
        raise failure


@contextmanager
def pool_of(n: int, name: str, **options: Any) -> Iterator[ThreadPoolExecutor]:
    """Threads whose names begin with `name`; leaving cancels what has not begun, and waits."""
    pool = ThreadPoolExecutor(n, name, **options)
    try:
        yield pool
    finally:
        # The garbage collector may leave this on one of these threads, which cannot join itself.
        is_own = threading.current_thread().name.startswith(name)
        pool.shutdown(wait=not is_own, cancel_futures=True)


def ahead(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], _T]], n_ahead: int
) -> Iterator[_T]:
    """Results of tasks in their order, while at most `n_ahead` of the next ones are at work.

    Tasks are drawn when there is room for them. An exception in a task is raised where its result
    would have been returned.
    """
    futures: deque[Future[_T]] = deque()
    for task in tasks:
        futures.append(pool.submit(task))
        if len(futures) > n_ahead:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def prefetch(items: Iterable[_T], depth: int = 1) -> Iterator[_T]:
    """Draw items in a thread, `depth` ahead of the consumer.

    An exception of the iterator is raised here; leaving the loop early ends the thread.
    """
    iterator, end = iter(items), object()
    with pool_of(1, "scdl-prefetch") as pool:
        for item in ahead(pool, itertools.repeat(partial(next, iterator, end)), depth):
            if item is end:
                return
            yield item


def in_parallel(
    function: Callable[[_T], Any], items: Iterable[_T], n: int
) -> Iterator[tuple[_T, Any]]:
    """Call a function with every item, `n` at once; each item with its result, in their order.

    The threads take no others to help them. Items are drawn when there is room for them.
    """

    def call(item: _T) -> tuple[_T, Any]:
        return item, function(item)

    with pool_of(n, "scdl-verify", initializer=work_alone) as pool:
        yield from ahead(pool, (partial(call, item) for item in items), 2 * n)
