"""The rows of sources, in the form in which an archive has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Self

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


class CleanRows:
    """Rows of matrices, sorted by gene, with repeated genes summed, and cast.

    Parameters
    ----------
    index_dtype, caster
        Dtype of the column ids, and of the values.
    before
        Statistics of the values before.
    """

    def __init__(self, index_dtype: np.dtype[Any], caster: Caster, before: Tally) -> None:
        self._index_dtype, self._caster = index_dtype, caster
        self._rows_sorted, self._duplicates_summed = before[:2]
        caster.max_rounding, caster.is_counts = before[2:]

    @property
    def dtypes(self) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """Dtypes of the values and of the column ids."""
        return self._caster.dtype, self._index_dtype

    @property
    def tally(self) -> Tally:
        """Statistics of the values processed so far."""
        rounding, is_counts = self._caster.max_rounding, self._caster.is_counts
        return Tally(self._rows_sorted, self._duplicates_summed, rounding, is_counts)

    def of(
        self, matrix: Matrix, order: NDArray[np.int64] | None, bounds: Bounds, meter: Meter
    ) -> Iterator[SparseRows]:
        """The rows of a matrix, with its genes in an order, or in its own."""
        for n_values, rows in self.blocks(matrix, order, prefetch(matrix.blocks(bounds))):
            yield rows
            meter.update(n_values)

    def blocks(
        self, matrix: Matrix, order: NDArray[np.int64] | None, blocks: Iterable[SparseRows]
    ) -> Iterator[tuple[int, SparseRows]]:
        """Blocks of a matrix in their final form, with the number of their values as stored."""
        where = matrix.where
        places = None if order is None else np.argsort(order)
        for block in blocks:
            rows = self._clean(block, matrix.shape[1], where, places)
            indices = rows.indices.astype(self._index_dtype, copy=False)
            yield len(block.data), SparseRows(self._caster(rows.data, where), indices, rows.indptr)

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


class MatrixWriter:
    """Writes rows of the matrix or a field; the offsets, whose dtype depends on all, at the end.

    A context manager.

    Parameters
    ----------
    writer, dtypes
        Writer of the archive, and dtypes of the values and column ids.
    prefix
        Prefix of the names of the arrays.
    n_values
        Number of values that the archive has before; None: it is new.
    """

    def __init__(
        self,
        writer: ArrayWriter,
        dtypes: tuple[np.dtype[Any], np.dtype[Any]],
        bounds: Bounds,
        prefix: str = "",
        n_values: int | None = None,
    ) -> None:
        self._names, self._prefix = [prefix + part for part in MATRIX], prefix
        self._writer, self._dtypes, self._is_new = writer, dtypes, n_values is None
        self._bounds, self._total = bounds, n_values or 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._offsets = self._stack.enter_context(scratch_file(self._bounds))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @property
    def n_values(self) -> int:
        """Number of values of the archive so far."""
        return self._total

    def write(self, rows: SparseRows) -> None:
        """Append rows."""
        data, indices, _ = self._names
        self._writer.append(data, rows.data)
        self._writer.append(indices, rows.indices)
        ends = rows.indptr[1:] + self._total
        self._writer.end_rows(self._prefix, ends)
        self._offsets.write(ends.tobytes())
        self._total += int(rows.indptr[-1])

    def finish(self, offset_dtype: np.dtype[Any] | None = None) -> None:
        """Write the offsets, of the smallest dtype or of `offset_dtype` if all of them fit."""
        # The arrays exist even if there are no rows.
        *values, indptr = self._names
        for name, dtype in zip(values, self._dtypes, strict=True):
            self._writer.append(name, np.empty(0, dtype))
        if offset_dtype is None or self._total > np.iinfo(offset_dtype).max:
            offset_dtype = smallest_unsigned(self._total)
        if self._is_new:
            self._writer.append(indptr, np.zeros(1, offset_dtype))
        self._offsets.seek(0)
        while piece := self._offsets.read(_OFFSET_BYTES):
            self._writer.append(indptr, np.frombuffer(piece, np.int64).astype(offset_dtype))


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
        #: The matrix of each source.
        self.matrices = [file.fields[field] if field else file.matrix for file in files]
        self._files, self._gene_orders, self._order = files, gene_orders, order
        self.caster, self._bounds = caster, bounds
        #: Number of stored values, or an upper bound.
        self.n_values = sum(matrix.size for matrix in self.matrices)
        # Keep the dtypes of archives if they are the same for all sources.
        first, *others = ({} if field else file.kept_dtypes for file in files)
        kept = first if all(other == first for other in others) else {}
        largest = max(file.n_vars for file in files) - 1
        index_dtype = _unsigned(kept.get(INDICES)) or smallest_unsigned(largest)
        self._indptr_dtype = _unsigned(kept.get(INDPTR))
        before = sum_tallies([Tally() if field else file.tally for file in files])
        self._clean = CleanRows(index_dtype, caster, before)

    @property
    def dtypes(self) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """Dtypes of the values and of the column ids."""
        return self._clean.dtypes

    @property
    def tally(self) -> Tally:
        """Statistics of the values processed so far."""
        return self._clean.tally

    def write_matrix(self, writer: ArrayWriter, meter: Meter) -> None:
        """Write the matrix or field."""
        pairs = zip(self.matrices, self._gene_orders, strict=True)
        blocks = (rows for pair in pairs for rows in self._clean.of(*pair, self._bounds, meter))
        dtypes = self._clean.dtypes
        with MatrixWriter(writer, dtypes, self._bounds, self._prefix) as matrix:
            for rows in self._order.rows(blocks, dtypes, self.n_values):
                matrix.write(rows)
                meter.update(len(rows.data) * self._order.moves)
            matrix.finish(self._indptr_dtype)

    def final(self, i: int, blocks: Iterable[SparseRows]) -> Iterator[tuple[int, SparseRows]]:
        """Blocks of the matrix of a source in their final form, with the values that they had."""
        return self._clean.blocks(self.matrices[i], self._gene_orders[i], blocks)

    def graph(self, key: str) -> Iterator[SparseRows]:
        """A graph, with neighbours renumbered for the archive."""
        graphs = [file.graph(key) for file in self._files]
        n_values = sum(graph.size for graph in graphs if graph)
        dtypes = GRAPH_DTYPES[DATA], GRAPH_DTYPES[INDICES]
        caster = Caster(dtypes[0], np.inf)
        rows = (
            row._replace(indices=self._order.places(row.indices).astype(dtypes[1]))
            for row in graph_rows(self._files, graphs, caster, self._bounds)
        )
        return self._order.rows(rows, dtypes, n_values)


def graph_rows(
    files: Sequence[Source],
    graphs: Sequence[Matrix | None],
    caster: Caster,
    bounds: Bounds,
    first_row: int = 0,
) -> Iterator[SparseRows]:
    """The rows of the graphs of sources, with neighbours counted from the first cell of all.

    Parameters
    ----------
    files, graphs
        The sources, and the graph of each; rows of a source without one are empty.
    caster
        Casts the weights.
    first_row
        Number of the first cell.
    """
    for file, graph in zip(files, graphs, strict=True):
        for block in _graph_blocks(graph, file.n_obs, bounds):
            weights = caster(block.data, graph.where if graph else file.path)
            neighbors = block.indices.astype(np.int64) + (first_row - file.first_row)
            yield SparseRows(weights, neighbors, block.indptr)
        first_row += file.n_obs


def _unsigned(dtype: np.dtype[Any] | None) -> np.dtype[Any] | None:
    return dtype if dtype is not None and dtype.kind == "u" else None


def _graph_blocks(graph: Matrix | None, n_obs: int, bounds: Bounds) -> Iterable[SparseRows]:
    if graph is None:
        empty = np.empty(0, GRAPH_DTYPES[DATA])
        return [SparseRows(empty, empty.astype(np.int64), np.zeros(n_obs + 1, np.int64))]
    return prefetch(graph.blocks(bounds))
