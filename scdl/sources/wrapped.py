"""Sources that differ from others in some respect."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from scdl.sources.base import Source


def _from_source(name: str) -> Any:
    """A method or property that is that of the other source."""
    return property(attrgetter(f"_source.{name}"))


class Wrapped(Source):
    """A source that differs from another in what a subclass changes.

    Parameters
    ----------
    source
        The other source.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.path, self.label = source.path, source.label
        self.matrix_name, self.element = source.matrix_name, source.element
        self.matrix, self.obs, self.labelled = source.matrix, source.obs, source.labelled
        self.first_row, self.tally = source.first_row, source.tally
        self.cut, self.left_out = source.cut, source.left_out
        self.obs_is_last = source.obs_is_last
        self.fields = source.fields
        self.outside = source.outside

    # What the other source may know only later.
    var = _from_source("var")
    graph = _from_source("graph")
    vectors = _from_source("vectors")
    kept_graphs = _from_source("kept_graphs")
    kept_vectors = _from_source("kept_vectors")
    kept_dtypes = _from_source("kept_dtypes")
    unread = _from_source("unread")
    unmatched = _from_source("unmatched")
    dropped = _from_source("dropped")
    names_of_rest = _from_source("names_of_rest")
    element_of_rest = _from_source("element_of_rest")
