"""Tables, sparse and dense arrays of TileDB-SOMA in blocks of rows.

Rows and columns are known by their ids, ``soma_joinid``, which are sorted and may have gaps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.archive.csr import SparseRows, groups
from scdl.archive.schema import INDEX, INDEX_NAME
from scdl.archive.tables import TableSource
from scdl.errors import SourceError
from scdl.sources.damage import readable_by
from scdl.sources.matrices import Bounds, Matrix
from storage_backends.base import is_column_type
from storage_backends.compute import arrow, uniting

JOINID = "soma_joinid"
_SPARSE = "SOMASparseNDArray"
INDEX_NAMED = "soma_dataframe_original_index_name"
#: Values of a sparse array that are read together, as a multiple of those that are processed
#: together: arrays are stored in tiles, each of which is read for every range that it is part of.
_READ_AHEAD = 2
#: Rows that are read first, to learn how many values rows have.
_FIRST_ROWS = 256


#: Converts errors of TileDB, as for damaged arrays, to a SourceError.
readable = partial(readable_by, "tiledbsoma cannot read it")


def joinids(frame: Any, query: str | None = None) -> NDArray[np.int64]:
    """Sorted ids of the rows of a data frame; those that a filter of tiledbsoma selects."""
    read = frame.read(column_names=[JOINID], value_filter=query)
    parts = [arrow.to_numpy(table.column(JOINID).combine_chunks()) for table in read]
    ids: NDArray[np.int64] = np.concatenate([np.empty(0, np.int64), *parts])
    ids.sort()
    return ids


def _coordinates(ids: NDArray[np.int64]) -> Any:
    """Ids as TileDB reads them fastest."""
    if len(ids) and int(ids[-1]) - int(ids[0]) == len(ids) - 1:
        return slice(int(ids[0]), int(ids[-1]))
    return pa.array(ids)


class SomaTable(TableSource):
    """Rows of a data frame.

    Parameters
    ----------
    where
        Path and name, for messages.
    frame
        The open data frame.
    ids
        Sorted ids of the rows.
    names
        Columns that may be the names of rows if the data frame does not say which is; if it has
        none of them, the ids are the names.

    Attributes
    ----------
    unread
        Columns of types that archives do not store.
    """

    def __init__(
        self, where: str, frame: Any, ids: NDArray[np.int64], names: Sequence[str]
    ) -> None:
        self._where, self._frame, self._ids = where, frame, ids
        self.num_rows = len(ids)
        fields = {field.name: field for field in frame.schema}
        original = json.loads(frame.metadata.get(INDEX_NAMED, "null"))
        self._index = original if original in fields else next(
            (name for name in names if name in fields), JOINID
        )  # fmt: skip
        columns = [name for name in fields if name not in (self._index, JOINID, INDEX)]
        self._columns = [name for name in columns if is_column_type(fields[name].type)]
        self.unread = [name for name in columns if name not in self._columns]
        metadata = {INDEX_NAME: original} if original in fields else None
        index = pa.field(INDEX, pa.large_string())
        self.schema = pa.schema([index, *(fields[name] for name in self._columns)], metadata)
        #: All rows, of a data frame that is not sorted by these ids.
        self._sorted: pa.Table | None = None
        if tuple(frame.index_column_names) != (JOINID,):
            with readable(where):
                self._sorted = frame.read(column_names=self._read_columns).concat().sort_by(JOINID)
        first = self.read(0, min(1, self.num_rows))
        self.categories = {
            field.name: first.column(field.name).dictionary
            for field in self.schema
            if pa.types.is_dictionary(field.type)
        }

    @property
    def _read_columns(self) -> list[str]:
        return list(dict.fromkeys([JOINID, self._index, *self._columns]))

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        ids = self._ids[start:stop]
        with readable(self._where):
            if self._sorted is not None:
                at = np.searchsorted(self._sorted.column(JOINID).to_numpy(), ids)
                table = self._sorted.take(pa.array(at))
            else:
                coordinates = (_coordinates(ids),)
                read = self._frame.read(coords=coordinates, column_names=self._read_columns)
                table = read.concat()
            if not np.array_equal(table.column(JOINID).to_numpy(), ids):
                table = table.sort_by(JOINID)
            names = table.column(self._index).combine_chunks()
            if pa.types.is_dictionary(names.type):
                names = names.dictionary_decode()
            arrays = [uniting.cast(names, pa.large_string())]
            for name in self._columns:
                column = table.column(name).unify_dictionaries().combine_chunks()
                column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
                arrays.append(column.cast(self.schema.field(name).type))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


class SomaMatrix(Matrix):
    """A sparse or dense array, whose rows are cells.

    Parameters
    ----------
    where
        Path and name, for messages.
    array
        The open array.
    rows, columns
        Sorted ids of the rows and columns.
    outside
        What values in other columns are of, which are an error then; None: they are left out.
    """

    def __init__(
        self,
        where: str,
        array: Any,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        outside: str | None = None,
    ) -> None:
        self.where, self._array = where, array
        self._rows, self._columns, self._outside = rows, columns, outside
        self.shape = len(rows), len(columns)
        with readable(where):
            self._is_sparse = array.soma_type == _SPARSE
            type_ = array.schema.field("soma_data").type
            self.size = _most_values(array, self.shape)
        if not (pa.types.is_integer(type_) or pa.types.is_floating(type_)):
            raise SourceError(f"{where}: expected numbers, found {type_} values")
        self.dtype = np.dtype(type_.to_pandas_dtype())

    def blocks(self, bounds: Bounds) -> Iterator[SparseRows]:
        at_once = bounds.values if self._is_sparse else bounds.values // max(1, self.shape[1])
        start, n_rows = 0, min(_FIRST_ROWS, bounds.rows)
        if not self._is_sparse:
            n_rows = max(1, min(bounds.rows, at_once))
        while start < len(self._rows):
            stop = min(start + n_rows, len(self._rows))
            with readable(self.where):
                rows = self._read(start, stop)
            for first, last in groups(rows.indptr, bounds.values):
                a, b = int(rows.indptr[first]), int(rows.indptr[last])
                offsets = rows.indptr[first : last + 1] - a
                yield SparseRows(rows.data[a:b], rows.indices[a:b], offsets)
            if self._is_sparse:
                # As many rows as had the wanted number of values, at most twice as many as before.
                fitting = _READ_AHEAD * bounds.values * n_rows // max(1, len(rows.indices))
                n_rows = max(1, min(fitting, 2 * n_rows, bounds.rows))
            start = stop

    def part(self, start: int, stop: int) -> Matrix | None:
        return None

    def check_rows(self, table: str) -> None:
        """Raise SourceError if there are values below the last row, which a table has."""
        if not (self._is_sparse and self.size):
            return
        with readable(self.where):
            last = int(self._array.non_empty_domain()[0][1])
        if not len(self._rows) or last > int(self._rows[-1]):
            raise SourceError(
                f"{self.where}: it has values of the {JOINID} {last}, which {table} does not have"
            )

    def _read(self, start: int, stop: int) -> SparseRows:
        ids = self._rows[start:stop]
        if self._is_sparse:
            table = self._array.read(coords=(_coordinates(ids),)).tables().concat()
            row, column, values = (arrow.to_numpy(table.column(i).combine_chunks())
                                   for i in ("soma_dim_0", "soma_dim_1", "soma_data"))  # fmt: skip
        else:
            tile = _dense(self._array, ids)
            row, column = np.nonzero(tile)
            values, row = tile[row, column], ids[row]
        places, known = _positions(self._columns, column)
        if not known.all():
            if self._outside is not None:
                raise SourceError(
                    f"{self.where}: it has values of the {JOINID} {column[~known][0]}, which "
                    f"{self._outside} does not have"
                )
            row, places, values = row[known], places[known], values[known]
        row, _ = _positions(ids, row)
        if (np.diff(row) < 0).any():
            # Tiles follow each other, each sorted. NumPy sorts 16-bit integers in linear time.
            order = np.argsort(row.astype(np.uint16) if len(ids) <= 1 << 16 else row, kind="stable")
            row, places, values = row[order], places[order], values[order]
        indptr = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=len(ids)), out=indptr[1:])
        return SparseRows(values, places, indptr)


def _most_values(array: Any, shape: tuple[int, int]) -> int:
    """An upper bound of the number of stored values.

    ``array.nnz`` reads all coordinates at once if fragments might overlap.
    """
    count = getattr(getattr(array, "_handle", None), "fragment_cell_count", None)
    n_dense = shape[0] * shape[1]
    return n_dense if count is None or array.soma_type != _SPARSE else min(int(count()), n_dense)


def _positions(
    ids: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Positions in sorted ids, and whether each one is there."""
    n = len(ids)
    if n and int(ids[-1]) - int(ids[0]) == n - 1:
        places = wanted - ids[0]
        return places, (places >= 0) & (places < n)
    places = np.searchsorted(ids, wanted)
    places[places == n] = 0
    return places, ids[places] == wanted if n else np.zeros(len(wanted), bool)


def _dense(array: Any, ids: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of a dense array."""
    first, last = int(ids[0]), int(ids[-1])
    rows: NDArray[Any] = array.read((slice(first, last),)).to_numpy()
    return rows if len(ids) == len(rows) else rows[ids - first]


class SomaVectors:
    """One dense vector for each row, of a sparse or a dense array, as a reader."""

    def __init__(self, where: str, array: Any, ids: NDArray[np.int64]) -> None:
        self._where, self._array, self._ids = where, array, ids
        with readable(where):
            self.dtype: np.dtype[Any] = np.dtype(
                array.schema.field("soma_data").type.to_pandas_dtype()
            )
            self.item_shape = (self._width(),)

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``[start, stop)``."""
        ids = self._ids[start:stop]
        with readable(self._where):
            if self._array.soma_type != _SPARSE:
                return _dense(self._array, ids)
            out = np.zeros((len(ids), *self.item_shape), self.dtype)
            for table in self._array.read(coords=(_coordinates(ids),)).tables():
                row, column = (
                    table.column(name).to_numpy() for name in ("soma_dim_0", "soma_dim_1")
                )
                out[np.searchsorted(ids, row), column] = table.column("soma_data").to_numpy()
            return out

    def _width(self) -> int:
        if len(self._array.shape) != 2:
            raise SourceError(
                f"{self._where}: expected an array of two dimensions, found {self._array.shape}"
            )
        if getattr(self._array, "tiledbsoma_has_upgraded_shape", True):
            return int(self._array.shape[1])
        # The shape of old arrays is what they could hold.
        return int(self._array.non_empty_domain()[1][1]) + 1
