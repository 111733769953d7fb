"""Work on many small files, a step of several at a time.

What a step runs and reads stays in the caches of the processor while it is done for several files.
Opening and reading a small table takes a third less time so than one file after the other.

A function that works in steps is a generator, which yields between them and returns its result.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")

#: What a function in steps returns.
Steps = Generator[None, None, _R]

_END = object()


def result(steps: Steps[_R]) -> _R:
    """Do all steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: _R = end.value
            return value


def together(function: Callable[[_T], Steps[None] | object], items: Iterable[_T]) -> None:
    """Call a function with every item, each step for all of them; raises the first error.

    A function without steps is called with one item after the other.
    """
    found = [function(item) for item in items]
    running = [one for one in found if isinstance(one, Generator)]
    try:
        while running:
            running = [one for one in running if next(one, _END) is not _END]
    finally:
        # After an error the others would keep archives open as long as its traceback exists.
        for one in running:
            one.close()
