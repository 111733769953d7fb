"""Properties of a collection that are computed once for its members."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, Self, TypeVar, overload

from scdl.collection.members import Members

_T = TypeVar("_T")


class HasMembers(Protocol):
    """A collection, whose members may change while cells are being read."""

    _members: Members


class member_property(Generic[_T]):
    """A cached property that is computed again when the members change."""

    def __init__(self, compute: Callable[[Any], _T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__
        self._attribute = f"_cached{compute.__name__}"

    @overload
    def __get__(self, cells: None, owner: type[Any] | None = None) -> Self: ...
    @overload
    def __get__(self, cells: HasMembers, owner: type[Any] | None = None) -> _T: ...
    def __get__(self, cells: HasMembers | None, owner: type[Any] | None = None) -> Self | _T:
        if cells is None:
            return self
        while True:
            members = cells._members
            known: tuple[Members | None, Any] = cells.__dict__.get(self._attribute, (None, None))
            if known[0] is members:
                value: _T = known[1]
                return value
            value = self._compute(cells)
            # If another thread changed the members meanwhile, compute the value again.
            if cells._members is members:
                cells.__dict__[self._attribute] = members, value
