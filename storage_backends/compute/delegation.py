"""Members of a class that are those of an object that it wraps."""

from operator import attrgetter
from typing import Any


def delegated(path: str) -> Any:
    """A method or property, such as that of ``self._source`` for ``"_source.graph"``."""
    return property(attrgetter(path))
