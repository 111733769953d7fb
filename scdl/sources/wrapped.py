"""Sources that differ from others in some respect."""

from __future__ import annotations

from scdl.sources.base import Source
from storage_backends.compute.delegation import delegated


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
    var = delegated("_source.var")
    graph = delegated("_source.graph")
    vectors = delegated("_source.vectors")
    kept_graphs = delegated("_source.kept_graphs")
    kept_vectors = delegated("_source.kept_vectors")
    kept_dtypes = delegated("_source.kept_dtypes")
    unread = delegated("_source.unread")
    unmatched = delegated("_source.unmatched")
    dropped = delegated("_source.dropped")
    names_of_rest = delegated("_source.names_of_rest")
    element_of_rest = delegated("_source.element_of_rest")
