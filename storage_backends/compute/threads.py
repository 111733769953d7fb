"""The threads of one process that encode and decode chunks."""

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


def both(function: Callable[..., _T], one: Sequence[Any], other: Sequence[Any]) -> tuple[_T, _T]:
    """Call a function twice at the same time; neither call goes on when this returns or raises."""
    first = submit(function, *one)
    try:
        second = function(*other)
        return first.result(), second
    finally:
        if not (first.done() or first.cancel()):
            wait([first])


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


def ahead(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], _T]], n_ahead: int
) -> Iterator[_T]:
    """Results of tasks in their order, while at most `n_ahead` of the next ones are at work.

    An exception in a task is raised where its result would have been given.
    """
    futures: deque[Future[_T]] = deque()
    for task in tasks:
        futures.append(pool.submit(task))
        if len(futures) > n_ahead:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def prefetch(items: Iterable[_T], depth: int = 1) -> Iterator[_T]:
    """Draw items in a thread, at most `depth` ahead of the consumer.

    What the thread raises is raised here; leaving the loop early ends the thread.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    left = threading.Event()

    def put(item: tuple[bool, Any]) -> bool:
        while not left.is_set():
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
        left.set()
        # The garbage collector may close this on the thread itself, which cannot join itself.
        if thread is not threading.current_thread():
            thread.join()


def in_parallel(
    function: Callable[[_T], Any], items: Iterable[_T], n: int
) -> Iterator[tuple[_T, Any]]:
    """Call a function with every item, at most `n` at once; each item with its result, as they end.

    Items are taken when there is a thread for them.
    """
    ended: SimpleQueue[Future[Any]] = SimpleQueue()
    with ThreadPoolExecutor(n, "scdl-verify", initializer=work_alone) as pool:
        running: dict[Future[Any], _T] = {}
        try:
            for item in items:
                begun = pool.submit(function, item)
                running[begun] = item
                begun.add_done_callback(ended.put)
                if len(running) == 2 * n:
                    future = ended.get()
                    yield running.pop(future), future.result()
            while running:
                future = ended.get()
                yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()
