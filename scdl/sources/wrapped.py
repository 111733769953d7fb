"""Sources that differ from others in some respect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from scdl.sources.base import Source, SparseParts
from scdl.sources.matrices import Matrix, Reader


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

    def var(self) -> pa.Table:
        return self._source.var()

    def graph(self, key: str) -> Matrix | None:
        return self._source.graph(key)

    def vectors(self, key: str) -> Reader:
        return self._source.vectors(key)

    @property
    def kept_graphs(self) -> Sequence[str]:
        return self._source.kept_graphs

    @property
    def kept_vectors(self) -> Sequence[str]:
        return self._source.kept_vectors

    @property
    def kept_dtypes(self) -> Mapping[str, np.dtype[Any]]:
        return self._source.kept_dtypes

    @property
    def unread(self) -> Sequence[str]:
        return self._source.unread

    @property
    def unmatched(self) -> Sequence[str]:
        return self._source.unmatched

    @property
    def dropped(self) -> Sequence[str]:
        return self._source.dropped

    def names_of_rest(self) -> Sequence[str]:
        return self._source.names_of_rest()

    def element_of_rest(self, name: str) -> SparseParts | Matrix | Reader | Any:
        return self._source.element_of_rest(name)
