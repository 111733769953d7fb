"""Caches: lazy properties, lazy mappings and a bounded cache."""

from __future__ import annotations

import functools
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar, overload

from storage_backends.errors import ArchiveClosedError

_T = TypeVar("_T")
_K = TypeVar("_K")
_V = TypeVar("_V")

if sys.version_info >= (3, 12):
    from functools import cached_property as cached_property
else:

    class cached_property(functools.cached_property[_T]):
        """``cached_property`` of Python 3.12, without the lock of Python 3.11.

        That lock is shared by all instances, so properties of different objects wait for each
        other, and a fork could inherit it locked. Without it two threads may both compute a missing
        value; the first stored wins.
        """

        @overload
        def __get__(self, instance: None, owner: type[Any] | None = None) -> Any: ...
        @overload
        def __get__(self, instance: object, owner: type[Any] | None = None) -> _T: ...
        def __get__(self, instance: object | None, owner: type[Any] | None = None) -> Any:
            if instance is None:
                return self
            assert self.attrname is not None
            return instance.__dict__.setdefault(self.attrname, self.func(instance))


class LazyMapping(Mapping[str, _T]):
    """A mapping with known keys, whose values are computed on first access.

    Parameters
    ----------
    owner
        Argument of `make`; referenced weakly, so that it may hold the mapping.
    names
        The keys.
    make
        Computes the value of a key from the owner.
    """

    def __init__(self, owner: _K, names: Iterable[str], make: Callable[[_K, str], _T]) -> None:
        self._owner, self._make = weakref.ref(owner), make
        self._names = dict.fromkeys(names)
        self._values: dict[str, _T] = {}

    def __getitem__(self, name: str) -> _T:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._values:
            owner = self._owner()
            if owner is None:
                raise ArchiveClosedError(f"{name}: the archive was closed; open it again")
            self._values.setdefault(name, self._make(owner, name))
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class LRUCache(Generic[_K, _V]):
    """A cache of the `max_size` most recently used values, by key.

    Threads share it without a lock: a fork could inherit it locked, and a finalizer that runs while
    it is held could wait for a thread that needs it. Each method of OrderedDict is atomic under the
    GIL as long as no value is destroyed in it. Two threads may both compute a missing value; the
    first stored wins.

    Parameters
    ----------
    max_size
        Maximum number of values, or their maximum total size if `size` is given.
    size
        Computes the size of a value, such as its bytes.
    """

    def __init__(self, max_size: int, size: Callable[[_V], int] | None = None) -> None:
        self._max_size, self._size = max_size, size
        self._items: OrderedDict[_K, _V] = OrderedDict()
        #: Approximate size of all values, as threads may overwrite each other's sums.
        self._total = 0

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: _K) -> bool:
        return key in self._items

    def get(self, key: _K) -> _V | None:
        """The cached value, or None."""
        items = self._items
        value = items.get(key)
        if value is not None:
            try:  # noqa: SIM105 - suppress() would take longer than the rest
                items.move_to_end(key)
            except KeyError:
                # Another thread removed it.
                pass
        return value

    def setdefault(self, key: _K, value: _V) -> _V:
        """Store a value unless another thread stored one first; returns the stored value."""
        items = self._items
        stored = items.setdefault(key, value)
        if self._size is not None:
            self._total += self._size(value) if stored is value else 0
            if self._total > self._max_size:
                self._shrink(items, self._size)
            return stored
        while len(items) > self._max_size:
            with suppress(KeyError):
                items.popitem(last=False)
        return stored

    def _shrink(self, items: OrderedDict[_K, _V], size: Callable[[_V], int]) -> None:
        """Remove an eighth more than necessary, so that this happens rarely."""
        total = sum(map(size, list(items.values())))
        while total > self._max_size - self._max_size // 8:
            try:
                total -= size(items.popitem(last=False)[1])
            except KeyError:
                break
        self._total = total

    def remove(self, is_removed: Callable[[_K], bool]) -> None:
        """Remove the values of some keys."""
        for key in filter(is_removed, list(self._items)):
            value = self._items.pop(key, None)
            if value is not None and self._size is not None:
                self._total -= self._size(value)

    def clear(self) -> None:
        """Remove all values."""
        self._items, self._total = OrderedDict(), 0
