"""What is computed once."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, overload

_T = TypeVar("_T")

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
    names
        The keys.
    make
        Makes the value of a key, once.
    """

    def __init__(self, names: Iterable[str], make: Callable[[str], _T]) -> None:
        self._names, self._make = dict.fromkeys(names), make
        self._made: dict[str, _T] = {}

    def __getitem__(self, name: str) -> _T:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made.setdefault(name, self._make(name))
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
