"""The rows of sources, in the form in which an archive has them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.casting import Caster
from scdl.archive.csr import SparseRows
from scdl.archive.schema import (
    DATA,
    GRAPH_DTYPES,
    INDICES,
    INDPTR,
    MATRIX,
    field_prefix,
    smallest_unsigned,
)
from scdl.conversion.options import Meter
from scdl.conversion.row_order import RowOrder
from scdl.kernels.memory import recyclable
from scdl.sources.base import Source, Tally, sum_tallies
from scdl.sources.matrices import Bounds, Matrix, scratch_file
from storage_backends.base import ArrayWriter
from storage_backends.compute.threads import prefetch

#: Bytes of offsets that are read at once from a temporary file.
_OFFSET_BYTES = 8 << 20
#: Ranges of rows of a file in a sample.
_RANGES = 8


class SourceRows:
    """The rows of the matrices, or of a field, and of the graphs of sources, sorted and cast.

    Parameters
    ----------
    files, gene_orders
        The sources, and for each the order of its genes in the archive, or None: its own.
    order, caster, bounds
        Order of the cells, dtype of the values, and sizes of the pieces that are read.
    field
        Name of a field of all sources; empty: their matrices.
    """

    def __init__(
        self,
        files: Sequence[Source],
        gene_orders: Sequence[NDArray[np.int64] | None],
        order: RowOrder,
        caster: Caster,
        bounds: Bounds,
        field: str = "",
    ) -> None:
        self._prefix = field_prefix(field)
        self._matrices = [file.fields[field] if field else file.matrix for file in files]
        self._files, self._gene_orders, self._order = files, gene_orders, order
        self.caster, self._bounds = caster, bounds
        #: Number of stored values, or an upper bound.
        self.n_values = sum(matrix.size for matrix in self._matrices)
        # Keep the dtypes of archives if they are the same for all sources.
        first, *others = ({} if field else file.kept_dtypes for file in files)
        kept = first if all(other == first for other in others) else {}
        largest = max(file.n_vars for file in files) - 1
        self._index_dtype = _unsigned(kept.get(INDICES)) or smallest_unsigned(largest)
        self._indptr_dtype = _unsigned(kept.get(INDPTR))
        before = sum_tallies([Tally() if field else file.tally for file in files])
        self._rows_sorted, self._duplicates_summed = before[:2]
        caster.max_rounding, caster.is_counts = before[2:]

    @property
    def tally(self) -> Tally:
        """Statistics of the values processed so far."""
        rounding, is_counts = self.caster.max_rounding, self.caster.is_counts
        return Tally(self._rows_sorted, self._duplicates_summed, rounding, is_counts)

    def _rows(self, meter: Meter) -> Iterator[SparseRows]:
        """Read the rows of all files in their final form."""
        for matrix, order in zip(self._matrices, self._gene_orders, strict=True):
            for n_values, rows in self._final(matrix, order, prefetch(matrix.blocks(self._bounds))):
                yield rows
                meter.update(n_values)

    def sample(
        self, file: Source, order: NDArray[np.int64] | None, n_values: int
    ) -> Iterator[tuple[int, SparseRows]]:
        """Some rows of a file in their final form, of about `n_values` values.

        They come from ranges that are spread over the file, or from its begin if it has to be read
        from there. A matrix that is stored by columns has no sample.

        Yields
        ------
        n_values, rows
            Number of values as stored, and the rows.
        """
        matrix = file.matrix
        if not (matrix.by_rows and matrix.size):
            return
        n_obs, bounds = file.n_obs, self._bounds._replace(values=max(1, n_values // _RANGES))
        length = -(-n_obs * bounds.values // matrix.size)
        for start in range(0, n_obs, max(length, -(-n_obs // _RANGES))):
            part = matrix.part(start, min(start + length, n_obs))
            blocks = itertools.islice((part or matrix).blocks(bounds), None if part else 1)
            yield from self._final(matrix, order, blocks)
            if part is None:
                return

    def _final(
        self, matrix: Matrix, order: NDArray[np.int64] | None, blocks: Iterable[SparseRows]
    ) -> Iterator[tuple[int, SparseRows]]:
        """Rows as stored in their final form, with the number of their values as stored."""
        where = matrix.where
        places = None if order is None else np.argsort(order)
        for block in blocks:
            rows = self._clean(block, matrix.shape[1], where, places)
            indices = rows.indices.astype(self._index_dtype, copy=False)
            yield len(block.data), SparseRows(self.caster(rows.data, where), indices, rows.indptr)

    def write_matrix(self, writer: ArrayWriter, meter: Meter) -> None:
        """Write the matrix or field."""
        dtypes, total = (self.caster.dtype, self._index_dtype), 0
        data, indices, indptr = (self._prefix + part for part in MATRIX)
        # The dtype of the offsets depends on the number of values, which is known at the end.
        with scratch_file(self._bounds) as file:
            for rows in self._order.rows(self._rows(meter), dtypes, self.n_values):
                writer.append(data, rows.data)
                writer.append(indices, rows.indices)
                file.write((rows.indptr[1:] + total).tobytes())
                total += int(rows.indptr[-1])
                meter.update(len(rows.data) * self._order.moves)
            for name, dtype in zip((data, indices), dtypes, strict=True):
                writer.append(name, np.empty(0, dtype))
            kept = self._indptr_dtype
            fits = kept is not None and total <= np.iinfo(kept).max
            offset_dtype = kept if kept and fits else smallest_unsigned(total)
            writer.append(indptr, np.zeros(1, offset_dtype))
            file.seek(0)
            while piece := file.read(_OFFSET_BYTES):
                writer.append(indptr, np.frombuffer(piece, np.int64).astype(offset_dtype))

    def _clean(
        self, block: SparseRows, n_vars: int, where: str, places: NDArray[np.int64] | None
    ) -> SparseRows:
        """Sort and sum the genes of each cell; `places` are their new positions, if they move."""
        if places is not None:
            block = csr.ordered(block, n_vars, where)[0]
            block = block._replace(indices=places[block.indices])
        indices = recyclable(block.indices.shape, self._index_dtype)
        np.copyto(indices, block.indices, casting="unsafe")
        falls = recyclable((max(len(indices) - 1, 0),), np.dtype(bool))
        np.less_equal(indices[1:], indices[:-1], out=falls)
        inner = block.indptr[(block.indptr > 0) & (block.indptr < len(indices))]
        falls[inner - 1] = False
        block = SparseRows(block.data, indices, block.indptr)
        if not falls.any():
            return block
        ordered, n_unsorted = csr.ordered(block, n_vars, where)
        summed = csr.without_duplicates(ordered)
        self._rows_sorted += n_unsorted if places is None else 0
        self._duplicates_summed += len(block.data) - len(summed.data)
        return summed

    def graph(self, key: str) -> Iterator[SparseRows]:
        """A graph, with neighbours renumbered for the archive."""
        graphs = [file.graph(key) for file in self._files]
        n_values = sum(graph.size for graph in graphs if graph)
        dtypes = GRAPH_DTYPES[DATA], GRAPH_DTYPES[INDICES]
        return self._order.rows(self._graph_rows(graphs), dtypes, n_values)

    def _graph_rows(self, graphs: Sequence[Matrix | None]) -> Iterator[SparseRows]:
        caster = Caster(GRAPH_DTYPES[DATA], np.inf)
        first_row = 0
        for file, graph in zip(self._files, graphs, strict=True):
            for block in _graph_blocks(graph, file.n_obs, self._bounds):
                weights = caster(block.data, graph.where if graph else file.path)
                neighbors = block.indices.astype(np.int64) + (first_row - file.first_row)
                ids = self._order.places(neighbors).astype(GRAPH_DTYPES[INDICES])
                yield SparseRows(weights, ids, block.indptr)
            first_row += file.n_obs


def _unsigned(dtype: np.dtype[Any] | None) -> np.dtype[Any] | None:
    return dtype if dtype is not None and dtype.kind == "u" else None


def _graph_blocks(graph: Matrix | None, n_obs: int, bounds: Bounds) -> Iterable[SparseRows]:
    if graph is None:
        empty = np.empty(0, GRAPH_DTYPES[DATA])
        return [SparseRows(empty, empty.astype(np.int64), np.zeros(n_obs + 1, np.int64))]
    return prefetch(graph.blocks(bounds))
