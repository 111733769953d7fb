"""Doing work in threads before its results are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


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
