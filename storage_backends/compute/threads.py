"""Thread pools and parallel iteration."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from queue import SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")


#: Maximum number of threads of this process, or None; see :func:`limit`.
_max_threads: int | None = None


#: Has the attribute `serial` in threads that must not use further threads.
_thread_local = threading.local()


def limit(n: int | None) -> None:
    """Limit the threads of this process to `n`, for processes that share the cores.

    None removes the limit.
    """
    global _max_threads
    _max_threads = n


def work_alone() -> None:
    """Use no further threads in this thread, since there is one such thread for every core."""
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
def _pool(process: int, n: int) -> ThreadPoolExecutor:
    """The thread pool of a process, by process id, as a fork does not inherit threads."""
    return ThreadPoolExecutor(n, thread_name_prefix="scdl")


def submit(function: Callable[..., _T], *arguments: Any) -> Future[_T]:
    """Call a function in a thread of the pool."""
    try:
        return _pool(os.getpid(), n_threads()).submit(function, *arguments)
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


def both(function: Callable[..., _T], one: Sequence[Any], other: Sequence[Any]) -> tuple[_T, _T]:
    """Call a function twice concurrently; both calls have ended when this returns or raises."""
    first = submit(function, *one)
    try:
        second = function(*other)
        return first.result(), second
    finally:
        if not (first.done() or first.cancel()):
            wait([first])


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


def ahead(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], _T]], n_ahead: int
) -> Iterator[_T]:
    """Yield the results of tasks in order, with at most `n_ahead` further tasks submitted.

    An exception in a task is raised in place of its result.
    """
    futures: deque[Future[_T]] = deque()
    for task in tasks:
        futures.append(pool.submit(task))
        if len(futures) > n_ahead:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def prefetch(items: Iterable[_T], depth: int = 1) -> Iterator[_T]:
    """Iterate over items in a thread, at most `depth` items ahead of the consumer.

    Exceptions in the thread are raised here; closing the generator ends the thread.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: tuple[bool, Any]) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def draw() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # noqa: BLE001 - raised again by the consumer
            put((False, error))

    thread = threading.Thread(target=draw, name="scdl-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item
            elif item is not None:
                raise item
            else:
                return
    finally:
        closed.set()
        # The garbage collector may close this generator on the thread, which must not join itself.
        if thread is not threading.current_thread():
            thread.join()


def in_parallel(
    function: Callable[[_T], Any], items: Iterable[_T], n: int
) -> Iterator[tuple[_T, Any]]:
    """Call a function with every item in `n` threads; yields items with results when they end.

    Items are drawn when a thread is available for them.
    """
    done: SimpleQueue[Future[Any]] = SimpleQueue()
    with ThreadPoolExecutor(n, "scdl-verify", initializer=work_alone) as pool:
        running: dict[Future[Any], _T] = {}
        try:
            for item in items:
                submitted = pool.submit(function, item)
                running[submitted] = item
                submitted.add_done_callback(done.put)
                if len(running) == 2 * n:
                    future = done.get()
                    yield running.pop(future), future.result()
            while running:
                future = done.get()
                yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()
