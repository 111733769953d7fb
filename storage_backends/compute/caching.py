"""What is computed once."""

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
        """The one of Python 3.12, without a lock that is held for all instances at once.

        A fork could inherit it locked, and one property of an object waits for that of another. At
        worst two threads compute the same; both get one of the two.
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


class Lazily(Mapping[str, _T]):
    """A mapping whose keys are known, and whose values are made when they are asked for.

    Parameters
    ----------
    owner
        What they are made of; it may keep the mapping, which refers to it weakly.
    names
        The keys.
    make
        Makes the value of a key of the owner, once.
    """

    def __init__(self, owner: _K, names: Iterable[str], make: Callable[[_K, str], _T]) -> None:
        self._owner, self._make = weakref.ref(owner), make
        self._names = dict.fromkeys(names)
        self._made: dict[str, _T] = {}

    def __getitem__(self, name: str) -> _T:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            owner = self._owner()
            if owner is None:
                raise ArchiveClosedError(f"{name}: the archive was closed; open it again")
            self._made.setdefault(name, self._make(owner, name))
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Recent(Generic[_K, _V]):
    """Values by key, of which those used last stay.

    Threads share it without a lock: a fork could inherit a lock locked, and garbage collected under
    a lock may end threads that wait for it. Each method of OrderedDict is atomic under the GIL as
    long as no value is destroyed in it. Two threads may both compute a missing value; the first
    stored wins.

    Parameters
    ----------
    most
        Values that stay; or, with `size`, their size.
    size
        Size of a value, such as its bytes.
    """

    def __init__(self, most: int, size: Callable[[_V], int] | None = None) -> None:
        self._most, self._size = most, size
        self._kept: OrderedDict[_K, _V] = OrderedDict()
        #: About the size of all values; threads may overwrite each other's sums.
        self._total = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: _K) -> _V | None:
        """The value of a key, or None."""
        kept = self._kept
        found = kept.get(key)
        if found is not None:
            # Another thread may have let go of it.
            with suppress(KeyError):
                kept.move_to_end(key)
        return found

    def keep(self, key: _K, made: _V) -> _V:
        """Store a value unless another thread was faster; returns the stored one."""
        kept = self._kept
        found = kept.setdefault(key, made)
        if self._size is not None:
            self._total += self._size(made) if found is made else 0
            if self._total > self._most:
                self._shrink(kept, self._size)
            return found
        while len(kept) > self._most:
            with suppress(KeyError):
                kept.popitem(last=False)
        return found

    def _shrink(self, kept: OrderedDict[_K, _V], size: Callable[[_V], int]) -> None:
        """Let go of an eighth more than must be, so that this happens rarely."""
        total = sum(map(size, list(kept.values())))
        while total > self._most - self._most // 8:
            try:
                total -= size(kept.popitem(last=False)[1])
            except KeyError:
                break
        self._total = total

    def clear(self) -> None:
        """Let go of everything."""
        self._kept, self._total = OrderedDict(), 0
