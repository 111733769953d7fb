"""What was used last, kept for the next time."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


class Recent(Generic[_K, _V]):
    """Things by their keys, of which the `most` that were used last stay.

    Threads share it without a lock, which a fork could inherit locked: no other thread comes in
    between where a method of OrderedDict neither replaces nor removes what only it refers to. At
    worst two threads make the same thing, and both get one of them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[_K, _V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: _K) -> _V | None:
        """What is kept, or None."""
        kept = self._kept
        found = kept.get(key)
        if found is not None:
            # Another thread may have let go of it.
            with suppress(KeyError):
                kept.move_to_end(key)
        return found

    def keep(self, key: _K, made: _V) -> _V:
        """Keep what was made, unless another thread was faster; gives what is kept."""
        kept = self._kept
        found = kept.setdefault(key, made)
        while len(kept) > self._most:
            with suppress(KeyError):
                kept.popitem(last=False)
        return found

    def clear(self) -> None:
        """Let go of everything."""
        self._kept = OrderedDict()
