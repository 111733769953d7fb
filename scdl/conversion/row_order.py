"""Orders of the cells of a new archive: that of its sources, or a random one.

The random order is an external sort by pseudorandom positions. Rows of any kind (of matrices,
dense vectors and tables) pass as Arrow batches.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.archive.csr import SparseRows
from scdl.archive.tables import Extended, TableSource
from scdl.conversion.external_sort import in_order
from scdl.conversion.tables import United
from scdl.conversion.var_tables import VarPart, shared_var
from scdl.errors import OptionError
from scdl.kernels import hashing
from scdl.sources.matrices import Bounds
from storage_backends.compute import arrow
from storage_backends.compute.caching import cached_property

#: Name of the column of obs with the original rows.
SOURCE_ROW = "source_row"
Dtype: TypeAlias = "np.dtype[Any]"


@dataclass(frozen=True)
class Shuffle:
    """How to shuffle the cells of an archive.

    Parameters
    ----------
    seed
        Any integer. The order depends only on the seed and the number of cells.
    row_column
        Name of the int64 column of obs to add, with the row of each cell in the sources.
    """

    seed: int
    row_column: str = SOURCE_ROW

    @classmethod
    def of(cls, seed: int | None, row_column: str) -> Shuffle | None:
        """Validate options of a conversion; None if `seed` is None.

        Raises
        ------
        OptionError
            The seed is not an integer, or `row_column` is given without a seed.
        """
        if seed is None:
            if row_column != SOURCE_ROW:
                raise OptionError("row_column= has no effect without shuffle=; pass a seed, too")
            return None
        try:
            return cls(operator.index(seed), row_column)
        except TypeError:
            raise OptionError(f"shuffle must be an integer, the seed, not {seed!r:.200}") from None

    @staticmethod
    def order(shuffle: Shuffle | None, n_obs: int, target: str) -> RowOrder:
        """The order of `n_obs` cells; temporary files are created next to the path `target`."""
        return RowOrder() if shuffle is None else _Shuffled(shuffle, n_obs, target)


class RowOrder:
    """The order of the sources: rows are written as they are read.

    Attributes
    ----------
    moves
        Whether the order differs from that of the sources.
    """

    moves = False

    def obs(
        self, tables: Sequence[TableSource], rows: Sequence[NDArray[np.int64]] | None = None
    ) -> Sequence[TableSource]:
        """The tables of cells of the sources, with the columns that the order adds.

        Parameters
        ----------
        rows
            Row of each cell in the sources, counted over all of them, for each table; None: the
            tables have all cells.
        """
        return tables

    def var(self, parts: Iterable[VarPart], where: str) -> tuple[Iterable[VarPart], Sequence[str]]:
        """The tables of genes to write, and the names of columns that are left out."""
        return parts, ()

    def table(self, united: United) -> pa.RecordBatchReader:
        """The rows of the table of cells in this order."""
        return united.reader()

    def rows(
        self, blocks: Iterable[SparseRows], dtypes: tuple[Dtype, Dtype], n_values: int
    ) -> Iterator[SparseRows]:
        """The rows of a matrix in this order.

        Parameters
        ----------
        blocks
            All rows.
        dtypes
            Dtypes of values and of column ids, the same in all blocks.
        n_values
            Number of stored values, or an upper bound.
        """
        return iter(blocks)

    def items(self, pieces: Iterable[NDArray[Any]], like: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """The items of an array, one per cell, in this order; `like` is an empty array of them."""
        return iter(pieces)

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The new row of each row; also of the columns of a graph."""
        return rows

    @property
    def sources(self) -> NDArray[np.int64] | slice:
        """The original row of each new row, for elements in memory."""
        return slice(None)


class _Shuffled(RowOrder):
    """A random order.

    Temporary files, next to the path `target`, are as large as the largest element (matrix, table
    or array) in memory, have no name, and disappear with the process.
    """

    moves = True

    def __init__(self, shuffle: Shuffle, n_obs: int, target: str) -> None:
        self._column, self._n_obs = shuffle.row_column, n_obs
        self._key = hashing.mixed(shuffle.seed)
        self._bounds = Bounds(target=target)

    def obs(
        self, tables: Sequence[TableSource], rows: Sequence[NDArray[np.int64]] | None = None
    ) -> Sequence[TableSource]:
        """The tables with a column of original rows, counted over all sources."""
        if any(self._column in table.schema.names for table in tables):
            raise OptionError(
                f"obs has a column {self._column!r} already, for example of an earlier shuffle; "
                "choose another name for the column of original rows with row_column="
            )
        field = pa.field(self._column, pa.int64())
        firsts = itertools.accumulate((table.num_rows for table in tables), initial=0)

        def numbered(table: TableSource, first: int, own: NDArray[np.int64] | None) -> TableSource:
            def values(start: int, stop: int) -> pa.Array:
                numbers = np.arange(first + start, first + stop) if own is None else own[start:stop]
                return arrow.numbers(numbers)

            return Extended(table, field, values)

        chosen = rows or itertools.repeat(None)
        return [*map(numbered, tables, firsts, chosen)]

    def var(self, parts: Iterable[VarPart], where: str) -> tuple[Iterable[VarPart], Sequence[str]]:
        return shared_var(parts, where)

    def table(self, united: United) -> pa.RecordBatchReader:
        batches = self._batches(united.reader(), united.schema, united.estimate_bytes())
        return pa.RecordBatchReader.from_batches(united.schema, batches)

    def rows(
        self, blocks: Iterable[SparseRows], dtypes: tuple[Dtype, Dtype], n_values: int
    ) -> Iterator[SparseRows]:
        schema = pa.schema([(part, pa.large_binary()) for part in ("data", "indices")])

        def packed(rows: SparseRows) -> pa.RecordBatch:
            arrays = [_packed(values, rows.indptr) for values in (rows.data, rows.indices)]
            return pa.RecordBatch.from_arrays(arrays, schema=schema)

        nbytes = sum(dtype.itemsize for dtype in dtypes) * n_values
        for batch in self._batches(map(packed, blocks), schema, nbytes):
            columns = zip(batch.columns, dtypes, strict=True)
            (data, indptr), (indices, _) = (_unpacked(*column) for column in columns)
            yield SparseRows(data, indices, indptr)

    def items(self, pieces: Iterable[NDArray[Any]], like: NDArray[Any]) -> Iterator[NDArray[Any]]:
        width = math.prod(like.shape[1:]) * like.itemsize
        if not width:
            yield from pieces
            return
        type_ = pa.binary(width)
        schema = pa.schema([("items", type_)])

        def packed(values: NDArray[Any]) -> pa.RecordBatch:
            buffers = [None, pa.py_buffer(np.ascontiguousarray(values, like.dtype))]
            array = pa.Array.from_buffers(type_, len(values), buffers)
            return pa.RecordBatch.from_arrays([array], schema=schema)

        for batch in self._batches(map(packed, pieces), schema, width * self._n_obs):
            (array,) = batch.columns
            values = np.frombuffer(array.buffers()[1], like.dtype)
            yield values[: len(array) * width // like.itemsize].reshape(-1, *like.shape[1:])

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return hashing.permuted(rows, self._n_obs, self._key)

    @cached_property
    def sources(self) -> NDArray[np.int64]:
        rows = np.empty(self._n_obs, np.int64)
        rows[self.places(np.arange(self._n_obs))] = np.arange(self._n_obs)
        return rows

    def _batches(
        self, batches: Iterable[pa.RecordBatch], schema: pa.Schema, nbytes: int
    ) -> Iterator[pa.RecordBatch]:
        """The rows of batches of at most `nbytes` altogether, in this order."""
        return in_order(batches, schema, nbytes, self._n_obs, self.places, self._bounds)


def _packed(values: NDArray[Any], indptr: NDArray[np.int64]) -> pa.Array:
    """Rows of values as an array of bytes; shares the memory of the values."""
    buffers = [None, pa.py_buffer(indptr * values.itemsize), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.large_binary(), len(indptr) - 1, buffers)


def _unpacked(rows: pa.Array, dtype: Dtype) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Values and offsets of rows that were packed."""
    _, offsets, values = rows.buffers()
    stops = np.frombuffer(offsets, np.int64, len(rows) + 1, rows.offset * 8) // dtype.itemsize
    first, last = int(stops[0]), int(stops[-1])
    if first == last:
        return np.empty(0, dtype), stops - first
    return np.frombuffer(values, dtype, last - first, first * dtype.itemsize), stops - first
