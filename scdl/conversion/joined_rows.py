"""The rows of several archives, in the order in which a new archive has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.casting import Caster
from scdl.archive.csr import SparseRows
from scdl.archive.graph import NeighborGraph
from scdl.archive.requests import RowForm
from scdl.archive.schema import (
    DATA,
    GRAPH_DTYPES,
    INDICES,
    Info,
    field_prefix,
    graph_array,
    smallest_unsigned,
)
from scdl.archive.stored_rows import StoredRows
from scdl.conversion.row_order import RowOrder
from scdl.sources.archive import stored_array
from scdl.sources.matrices import pieces
from storage_backends.base import ArrayStore

if TYPE_CHECKING:
    from scdl.dataset.reader import CellReader


@dataclass(frozen=True)
class JoinedRows:
    """The rows of the matrices and vectors of archives, read in bounded memory.

    Parameters
    ----------
    stores, infos
        The archives.
    order
        Order of the rows.
    caster
        Casts values of the expression matrix.
    at_once
        Number of values to read at a time.
    view
        The same cells in one gene space; None: each archive has its own genes.
    field
        Name of a field to read in place of the expression matrix, which all archives with cells
        have; empty: the matrix.
    """

    stores: Sequence[ArrayStore]
    infos: Sequence[Info]
    order: RowOrder
    caster: Caster
    at_once: int
    view: CellReader | None = None
    field: str = ""

    def of_field(self, name: str, dtype: np.dtype[Any]) -> JoinedRows:
        """The rows of a field of these cells, whose values have a dtype that holds all of them."""
        return replace(self, caster=Caster.keeping(dtype), field=name)

    @property
    def n_values(self) -> int:
        """Number of stored values of the matrix, or an upper bound."""
        name = field_prefix(self.field) + DATA
        return sum(s.spec(name).length for s in self.stores if name in s.arrays)

    def dtypes(self, n_vars: int) -> tuple[np.dtype[Any], np.dtype[Any], np.dtype[Any]]:
        """Dtypes of the values, column ids and offsets of the matrix."""
        return self.caster.dtype, smallest_unsigned(n_vars - 1), smallest_unsigned(self.n_values)

    def vectors(self, name: str) -> Iterator[NDArray[Any]]:
        """Dense vectors; archives without cells may lack them."""
        arrays = [stored_array(store, name) for store in self.stores if name in store.arrays]
        values = (piece for array in arrays for piece in pieces(array, self.at_once))
        return self.order.items(values, arrays[0].read(0, 0))

    def matrix(self, index_dtype: np.dtype[Any]) -> Iterator[SparseRows]:
        """The rows of the matrix, sorted by gene and cast."""
        rows = (
            SparseRows(
                self.caster(r.data, path), r.indices.astype(index_dtype, copy=False), r.indptr
            )
            for path, r in self._read()
        )
        return self.order.rows(rows, (self.caster.dtype, index_dtype), self.n_values)

    def _read(self) -> Iterator[tuple[str, SparseRows]]:
        """Rows with the path of their archive."""
        first, field = 0, self.field
        for store, info in zip(self.stores, self.infos, strict=True):
            if self.view is None:
                for rows in clean_rows(store, info, self.at_once, field=field):
                    yield store.path, rows
            else:
                spans = csr.row_spans(store, field_prefix(field), info.n_obs, self.at_once)
                for start, stop in spans:
                    at = np.arange(first + start, first + stop)
                    batch = self.view._read(at, RowForm(ordered=True), field)
                    yield store.path, SparseRows(batch.data, batch.indices, batch.indptr)
            first += info.n_obs

    def graph(self, key: str, weights: np.dtype[Any]) -> Iterator[SparseRows]:
        """A graph with neighbours by their new rows; archives may lack it."""
        name = graph_array(key, DATA)
        n_values = sum(s.spec(name).length for s in self.stores if name in s.arrays)
        dtypes = weights, GRAPH_DTYPES[INDICES]
        return self.order.rows(self._renumbered(key, weights), dtypes, n_values)

    def _renumbered(self, key: str, weights: np.dtype[Any]) -> Iterator[SparseRows]:
        first_row = 0
        for store, info in zip(self.stores, self.infos, strict=True):
            for rows in graph_rows(store, info, key, self.at_once):
                ids = self.order.places(rows.indices.astype(np.int64) + first_row)
                data = rows.data.astype(weights, copy=False)
                yield SparseRows(data, ids.astype(GRAPH_DTYPES[INDICES]), rows.indptr)
            first_row += info.n_obs


def graph_rows(store: ArrayStore, info: Info, key: str, at_once: int) -> Iterator[SparseRows]:
    """The rows of a graph; all are empty if the archive does not have it."""
    prefix = graph_array(key, "")
    if prefix + DATA not in store.arrays:
        for start, stop in csr.spans(info.n_obs, at_once):
            empty = np.empty(0, GRAPH_DTYPES[INDICES])
            yield SparseRows(empty, empty, np.zeros(stop - start + 1, np.int64))
        return
    # A graph that is not square, or has ids out of range, would refer to cells of other archives.
    # NeighborGraph checks the shape, check_inside the ids.
    graph = NeighborGraph(store, key)
    for start, stop in csr.row_spans(store, prefix, info.n_obs, at_once):
        rows = StoredRows.of(store, prefix, np.arange(start, stop)).read()
        graph.check_inside(rows.indices)
        yield rows


def clean_rows(
    store: ArrayStore,
    info: Info,
    at_once: int,
    start: int = 0,
    stop: int | None = None,
    *,
    field: str = "",
) -> Iterator[SparseRows]:
    """Read rows ``[start, stop)`` of the matrix or a field, `at_once` values, sorted by gene."""
    stop, prefix = info.n_obs if stop is None else stop, field_prefix(field)
    is_sorted = info.sorts(field) if field else info.is_sorted
    for first, last in csr.row_spans(store, prefix, stop, at_once, start):
        rows = StoredRows.of(store, prefix, np.arange(first, last)).read()
        yield rows if is_sorted else csr.clean(rows, info.max_n_vars, store.path)
