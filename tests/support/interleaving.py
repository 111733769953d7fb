"""Something that happens in another thread between two lines of a call, and not by chance."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from budget import WHOLE

_T = TypeVar("_T")
PACKAGES = ("/scdl/", "/storage_backends/")


def n_lines(call: Callable[[], object], within: tuple[str, ...] = PACKAGES) -> int:
    """How many lines of these files or directories a call goes through."""
    count = iter(range(1 << 30))
    _traced(call, within, lambda: next(count))
    return next(count)


def between(
    line: int,
    call: Callable[[], _T],
    happens: Callable[[], object],
    within: tuple[str, ...] = PACKAGES,
) -> _T:
    """What a call gives while something else happens before its `line`-th line."""
    count = iter(range(1 << 30))
    other = threading.Thread(target=happens)

    def meet() -> None:
        if next(count) == line:
            other.start()
            # What waits for a lock of the call goes on after it.
            other.join(1)

    try:
        return _traced(call, within, meet)
    finally:
        assert next(count) > line, "the call ended before"
        other.join()


def some_lines(
    call: Callable[[], object], most: int, within: tuple[str, ...] = PACKAGES
) -> Iterator[int]:
    """At most `most` lines that a call runs, evenly spread; a quarter of that in `make test`."""
    total, most = n_lines(call, within), most if WHOLE else max(5, most // 4)
    yield from range(0, total, max(1, -(-total // most)))


def _traced(call: Callable[[], _T], within: tuple[str, ...], meet: Callable[[], object]) -> _T:
    def trace(frame: Any, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if "/tests/" in file or not any(part in file for part in within):
            return None
        if event == "line":
            meet()
        return trace

    traced = sys.gettrace()
    sys.settrace(trace)
    try:
        return call()
    finally:
        sys.settrace(traced)
