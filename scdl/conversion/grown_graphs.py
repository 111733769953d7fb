"""Graphs of an archive that get further cells, in the form in which they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from scdl.archive import csr
from scdl.archive.casting import Caster
from scdl.archive.csr import SparseRows, spans
from scdl.archive.elements import Kind, elements_of
from scdl.archive.schema import DATA, INDICES, INDPTR
from scdl.conversion.grown_matrices import check_truth, dense_pieces, with_rows
from scdl.conversion.source_rows import MatrixWriter, graph_rows
from scdl.errors import NeighborError
from scdl.sources.base import Source
from scdl.sources.matrices import Bounds
from scdl.sources.transposed import ByEntry, Entries
from storage_backends.base import ArrayStore, ArrayWriter


class GrownGraphs(NamedTuple):
    """Adds the graphs of sources to those of an archive.

    New cells have no edges to the old ones. Those of a source without a graph have none.

    Attributes
    ----------
    store, writer
        The archive, and the writer that adds cells to it.
    sources
        The sources of the new cells.
    bounds
        Sizes of the pieces that are read.
    n_before
        Number of cells that the archive has.
    """

    store: ArrayStore
    writer: ArrayWriter
    sources: Sequence[Source]
    bounds: Bounds
    n_before: int

    @property
    def _n_obs(self) -> int:
        return self.n_before + sum(source.n_obs for source in self.sources)

    def add(self, name: str) -> None:
        """Add the graphs of an element, such as ``obsp/distances``."""
        element = elements_of(self.store)[name]
        if element.kind is Kind.DENSE:
            self._write_dense(name)
        elif element.kind is Kind.OTHER:
            self._write_truth(name)
        else:
            self._add_sparse(name, element.array, by_rows=element.kind is Kind.GRAPH)

    def _rows(self, name: str, dtype: np.dtype[Any]) -> Iterator[SparseRows]:
        """The new rows, with neighbours counted from the first cell of the archive."""
        graphs = [source.graph(name.removeprefix("obsp/")) for source in self.sources]
        caster = Caster.keeping(dtype, np.inf)
        return graph_rows(self.sources, graphs, caster, self.bounds, self.n_before)

    def _add_sparse(self, name: str, prefix: str, *, by_rows: bool) -> None:
        data, ids, offsets = (self.store.spec(prefix + part) for part in (DATA, INDICES, INDPTR))
        if self._n_obs - 1 > np.iinfo(ids.dtype).max:
            raise NeighborError(
                f"{self.writer.path}: {name} stores neighbours as {ids.dtype}, which cannot count "
                f"{self._n_obs:,} cells"
            )
        rows = self._rows(name, data.dtype)
        if not by_rows:
            rows = _Columns(self, name, data.dtype).blocks(self.bounds)
        dtypes = data.dtype, ids.dtype
        with MatrixWriter(self.writer, dtypes, self.bounds, prefix, data.length) as out:
            for block in rows:
                out.write(block._replace(indices=block.indices.astype(ids.dtype)))
            out.finish(offsets.dtype)

    def _write_dense(self, name: str) -> None:
        """Write a dense graph anew: each row gets columns."""
        dtype, n_obs = self.store.spec(name).dtype, self._n_obs
        self.writer.restart(name, dtype, (n_obs,))
        for start, stop in spans(self.n_before, max(1, self.bounds.values // max(n_obs, 1))):
            old = self.store.read(name, start, stop)
            self.writer.append(name, np.pad(old, ((0, 0), (0, n_obs - self.n_before))))
        for block in self._rows(name, dtype):
            rows = csr.clean(block, n_obs, self.store.path)
            for dense in dense_pieces(rows, n_obs, self.bounds):
                self.writer.append(name, dense)

    def _write_truth(self, name: str) -> None:
        """Write a graph of truth values anew."""
        old = self.store.read_element(name)
        check_truth(f"{self.store.path}: {name}", old)
        rows = self._rows(name, old.dtype)
        self.writer.write_element(name, with_rows(old, rows, self._n_obs))


class _Columns(ByEntry):
    """The columns of new cells as rows, of a graph that is stored by columns."""

    def __init__(self, graphs: GrownGraphs, name: str, dtype: np.dtype[Any]) -> None:
        n_obs = graphs._n_obs
        self.where, self.dtype = f"{graphs.writer.path}: {name}", dtype
        self.shape = n_obs - graphs.n_before, n_obs
        self._graphs, self._name = graphs, name

    def _entries(self, bounds: Bounds, *, with_values: bool) -> Iterator[Entries]:
        first = self._graphs.n_before
        for rows in self._graphs._rows(self._name, self.dtype):
            n = len(rows.indptr) - 1
            cells = np.repeat(np.arange(first, first + n), np.diff(rows.indptr))
            yield Entries(rows.indices - self._graphs.n_before, cells, rows.data)
            first += n
