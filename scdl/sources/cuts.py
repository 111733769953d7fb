"""Matrices and arrays with only the chosen cells and genes of others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive.csr import SparseRows, spans
from scdl.sources.matrices import BLOCK_VALUES, Bounds, Matrix, Reader, check_ids
from scdl.sources.ranges import read_ranges


class Cut(NamedTuple):
    """The chosen rows and columns of a source.

    Attributes
    ----------
    rows, genes
        Positions of the cells, and of the genes of the matrix, int64, ascending; None: all.
    """

    rows: NDArray[np.int64] | None = None
    genes: NDArray[np.int64] | None = None

    def matrix(self, matrix: Matrix) -> Matrix:
        """The chosen rows and columns of a matrix of cells by genes."""
        return cut_matrix(matrix, self.rows, self.genes)


def cut_matrix(
    matrix: Matrix, rows: NDArray[np.int64] | None, columns: NDArray[np.int64] | None
) -> Matrix:
    """Some rows and columns of a matrix, given by positions in ascending order; None: all."""
    if rows is not None:
        matrix = ChosenRows(matrix, rows)
    if columns is not None:
        matrix = Mapped(matrix, places(columns, matrix.shape[1]), len(columns))
    return matrix


def places(positions: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The place of each of `n` items among the chosen ones; -1 if it is not chosen."""
    table = np.full(n, -1, np.int64)
    table[positions] = np.arange(len(positions))
    return table


class ChosenRows(Matrix):
    """Some rows of a matrix.

    Parameters
    ----------
    matrix
        The matrix.
    rows
        Positions of the rows, in ascending order.
    """

    def __init__(self, matrix: Matrix, rows: NDArray[np.int64]) -> None:
        self.where, self.dtype, self.size = matrix.where, matrix.dtype, matrix.size
        self.shape = len(rows), matrix.shape[1]
        self.by_rows, self.is_counted = matrix.by_rows, False
        self._matrix, self._rows = matrix, rows

    def blocks(self, bounds: Bounds) -> Iterator[SparseRows]:
        return self._matrix.chosen(self._rows, bounds)

    def part(self, start: int, stop: int) -> Matrix | None:
        if self._matrix.part(0, 0) is None:
            return super().part(start, stop)
        return ChosenRows(self._matrix, self._rows[start:stop])


class Mapped(Matrix):
    """A matrix with a new id from a table for each of its columns; -1 leaves a column out."""

    def __init__(self, matrix: Matrix, table: NDArray[np.integer[Any]], n: int) -> None:
        self.where, self.dtype, self.size = matrix.where, matrix.dtype, matrix.size
        self.shape = (matrix.shape[0], n)
        self.by_rows = matrix.by_rows
        self._matrix, self._table = matrix, table

    def blocks(self, bounds: Bounds) -> Iterator[SparseRows]:
        return map(self._mapped, self._matrix.blocks(bounds))

    def chosen(self, rows: NDArray[np.int64], bounds: Bounds) -> Iterator[SparseRows]:
        return map(self._mapped, self._matrix.chosen(rows, bounds))

    def part(self, start: int, stop: int) -> Matrix | None:
        part = self._matrix.part(start, stop)
        return None if part is None else Mapped(part, self._table, self.shape[1])

    def _mapped(self, block: SparseRows) -> SparseRows:
        check_ids(self.where, block.indices, len(self._table), "column ids")
        new = self._table[block.indices]
        included = new >= 0
        ends = np.concatenate([[0], np.cumsum(included)])
        return SparseRows(block.data[included], new[included], ends[block.indptr])


class ChosenItems:
    """Some rows, and columns, of a dense array, as a reader."""

    def __init__(
        self,
        reader: Reader,
        rows: NDArray[np.int64] | None,
        columns: NDArray[np.int64] | None = None,
    ) -> None:
        self._reader, self._columns = reader, columns
        self._rows = np.arange(len(reader)) if rows is None else rows
        self.dtype, self.item_shape = reader.dtype, reader.item_shape
        if columns is not None:
            self.item_shape = (len(columns), *self.item_shape[1:])
        self._most = max(1, BLOCK_VALUES // max(math.prod(reader.item_shape), 1))

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``[start, stop)``."""
        if self._columns is None:
            return self._read(start, stop)
        # Rows with all columns may not fit into memory.
        out = np.empty((stop - start, *self.item_shape), self.dtype)
        for first, last in spans(stop, self._most, start):
            out[first - start : last - start] = self._read(first, last)[:, self._columns]
        return out

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        rows = self._rows[start:stop]
        return read_ranges(self._reader, rows, rows + 1, self._most)
