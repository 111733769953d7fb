"""Thread pools and parallel iteration."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

from storage_backends.compute import steps

_T = TypeVar("_T")

#: Items of `for_each_file` of which the first few show whether reading waits.
_FILES_AT_ONCE, _FIRST_FILES = 256, 4
#: Items of `for_each_file` that one thread works on together.
FILES_TOGETHER = 16

#: Maximum number of threads of this process, or None; see :func:`limit`.
_max_threads: int | None = None


#: Thread-local; has the attribute `serial` in threads that must not use further threads.
_thread_local = threading.local()


def limit(n: int | None) -> None:
    """Limit the threads of this process to `n`, for processes that share the cores.

    None removes the limit.
    """
    global _max_threads
    _max_threads = n


def work_alone() -> None:
    """Do not use the pool from this thread, as there is one such thread per core."""
    _thread_local.serial = True


def n_threads() -> int:
    """Number of threads that this thread may use."""
    if hasattr(_thread_local, "serial"):
        return 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return cores if _max_threads is None else max(1, min(cores, _max_threads))


@cache
def _pool(process: int, name: str, n: int) -> ThreadPoolExecutor:
    """A thread pool of a process, by process id, as a fork does not inherit threads."""
    return ThreadPoolExecutor(n, thread_name_prefix=name)


def pool(name: str, n: int) -> ThreadPoolExecutor:
    """The thread pool of this process for a purpose other than computing; it has `n` threads."""
    return _pool(os.getpid(), name, n)


def submit(function: Callable[..., _T], *arguments: Any) -> Future[_T]:
    """Call a function in a thread of the pool."""
    try:
        return _pool(os.getpid(), "scdl", n_threads()).submit(function, *arguments)
    except RuntimeError:
        if threading.main_thread().is_alive():
            raise
    # The interpreter is shutting down: new threads cannot start, but running ones may still read.
    future: Future[_T] = Future()
    try:
        future.set_result(function(*arguments))
    except BaseException as error:  # noqa: BLE001 - raised by Future.result
        future.set_exception(error)
    return future


def for_each(function: Callable[[_T], object], items: Sequence[_T]) -> None:
    """Call a function with every item, in several threads; raises the first error.

    Each thread takes the next item when it is ready, so that all threads end at about the same
    time.
    """
    shared = iter(items)

    def work() -> None:
        # The iterator of a sequence can be shared by threads.
        for item in shared:
            function(item)

    # The calling thread works, too, since waking a thread takes as long as decoding a chunk.
    futures: list[Future[None]] = []
    try:
        for _ in range(min(n_threads(), len(items)) - 1):
            futures.append(submit(work))  # noqa: PERF401 - the `finally` waits for those submitted
        work()
    finally:
        # Cancel threads that have not started, and wait for the others.
        started = [future for future in futures if not future.cancel()]
        failures = [failure for future in started if (failure := future.exception()) is not None]
    for failure in failures:
        raise failure


def for_each_file(
    function: Callable[[_T], object], items: Sequence[_T], at_once: int = FILES_TOGETHER
) -> None:
    """Call a function that reads small files with every item; raises the first error.

    Several threads do so while they wait for a disk or a server. One is faster if the files are in
    memory: the calls of two then hinder each other, as each hands over Python's lock many times.
    The steps of a function that has them are done for up to `at_once` items together.
    """
    work = partial(steps.together, function)
    for start in range(0, len(items), _FILES_AT_ONCE):
        part = items[start : start + _FILES_AT_ONCE]
        began = time.perf_counter(), time.thread_time()
        for few in _split(part[:_FIRST_FILES], at_once):
            work(few)
        seconds, computed = time.perf_counter() - began[0], time.thread_time() - began[1]
        rest = part[_FIRST_FILES:]
        if seconds > 2 * computed:
            # Threads work on fewer items together, so that they end at about the same time.
            for_each(work, _split(rest, max(1, min(at_once, len(rest) // (4 * n_threads())))))
            continue
        for few in _split(rest, at_once):
            work(few)


def _split(items: Sequence[_T], n: int) -> list[Sequence[_T]]:
    """Items in groups of `n`; the last may have fewer."""
    return [items[first : first + n] for first in range(0, len(items), n)]


@contextmanager
def pool_of(n: int, name: str, **options: Any) -> Iterator[ThreadPoolExecutor]:
    """Context manager: a pool of `n` threads; at the end it cancels pending tasks and waits."""
    pool = ThreadPoolExecutor(n, name, **options)
    try:
        yield pool
    finally:
        # The garbage collector may close this on a thread of the pool, which cannot join itself.
        is_own = threading.current_thread().name.startswith(name)
        pool.shutdown(wait=not is_own, cancel_futures=True)


def ahead(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], _T]], n_ahead: int
) -> Iterator[_T]:
    """Yield the results of tasks in order, with at most `n_ahead` further tasks submitted.

    Tasks are drawn as others complete. The exception of a task is raised in place of its result.
    """
    futures: deque[Future[_T]] = deque()
    for task in tasks:
        futures.append(pool.submit(task))
        if len(futures) > n_ahead:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def prefetch(items: Iterable[_T]) -> Iterator[_T]:
    """Draw items in a thread, one ahead of the consumer.

    An exception of the iterator is raised in the consumer; leaving the loop ends the thread.
    """
    iterator, end = iter(items), object()
    with pool_of(1, "scdl-prefetch") as pool:
        for item in ahead(pool, itertools.repeat(partial(next, iterator, end)), 1):
            if item is end:
                return
            yield item


def in_parallel(
    function: Callable[[_T], Any], items: Iterable[_T], n: int
) -> Iterator[tuple[_T, Any]]:
    """Call a function with every item in `n` threads; yield each item with its result, in order.

    These threads do not use the pool. Items are drawn as others complete.
    """

    def call(item: _T) -> tuple[_T, Any]:
        return item, function(item)

    with pool_of(n, "scdl-verify", initializer=work_alone) as pool:
        yield from ahead(pool, (partial(call, item) for item in items), 2 * n)
