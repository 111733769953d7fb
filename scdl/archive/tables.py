"""Tables that are read in blocks of rows."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage_backends.base import INDEX, ArrayStore
from storage_backends.compute.arrow import Coder, filled, is_text, numbers, to_numpy

ROWS_AT_ONCE = 1 << 16


class TableSource(ABC):
    """A table that is read in batches of rows.

    Attributes
    ----------
    num_rows
        Number of rows.
    schema
        Names and types of the columns; categorical columns have dictionary types.
    categories
        Categories of each categorical column.
    """

    num_rows: int
    schema: pa.Schema
    categories: Mapping[str, pa.Array]

    @abstractmethod
    def read(self, start: int, stop: int) -> pa.RecordBatch:
        """Read rows ``[start, stop)`` of all columns."""

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        """Read rows ``[start, stop)`` of one column."""
        return self.read(start, stop).column(name)

    def encoded(self, name: str) -> Encoded | pa.Array:
        """Read all rows of one column, labels as codes; see :func:`encode`."""
        return encode(pa.chunked_array([self.column(name, 0, self.num_rows)]))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read all rows in batches of :data:`ROWS_AT_ONCE` rows."""
        for start in range(0, self.num_rows, ROWS_AT_ONCE):
            yield self.read(start, min(start + ROWS_AT_ONCE, self.num_rows))


class StoredTable(TableSource):
    """Rows ``[start, stop)`` of a table of an archive, with all or some of its columns.

    Parameters
    ----------
    store
        The archive, or a function that returns it when rows are read.
    """

    def __init__(
        self,
        store: ArrayStore | Callable[[], ArrayStore],
        name: str,
        stop: int,
        start: int = 0,
        columns: Sequence[str] | None = None,
    ) -> None:
        self._open: Callable[[], ArrayStore] = store if callable(store) else lambda: store
        self._name, self._start = name, start
        self.num_rows = stop - start
        self.schema = self._open().table_schema(name)
        if columns is not None:
            fields = [self.schema.field(c) for c in columns if c in self.schema.names]
            self.schema = pa.schema(fields, self.schema.metadata)
        categorical = [f.name for f in self.schema if pa.types.is_dictionary(f.type)]
        empty = self._open().read_table(name, categorical, 0, 0)
        self.categories = {c: empty[c].chunk(0).dictionary for c in categorical}

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        return self._read(self.schema.names, start, stop)

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        return self._read([name], start, stop).column(0)

    def _read(self, columns: Sequence[str], start: int, stop: int) -> pa.RecordBatch:
        if not columns:
            return NoTable(stop - start).read(0, stop - start)
        first, last = self._start + start, self._start + stop
        return _one_batch(self._open().read_table(self._name, columns, first, last))


class EncodedTable(TableSource):
    """Columns in memory, of which those of labels are codes of 1 to 4 bytes a row.

    Parameters
    ----------
    table
        The columns.
    known
        Lists of labels by content; equal lists of several tables become one.
    """

    def __init__(self, table: pa.Table, known: dict[bytes, Coder]) -> None:
        self.num_rows, self.schema = table.num_rows, table.schema
        self._columns = {name: encode(table[name], known) for name in table.schema.names}
        self.categories = {
            name: column.labels
            for name, column in self._columns.items()
            if isinstance(column, Encoded) and pa.types.is_dictionary(column.type)
        }

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        columns = [self.column(name, start, stop) for name in self.schema.names]
        return pa.RecordBatch.from_arrays(columns, self.schema.names)

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        column = self._columns[name]
        if isinstance(column, Encoded):
            return column._replace(codes=column.codes[start:stop]).array()
        return column.slice(start, stop - start)

    def encoded(self, name: str) -> Encoded | pa.Array:
        return self._columns[name]


class TableInMemory(TableSource):
    """A table in memory.

    Attributes
    ----------
    table
        The table.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()
        self.num_rows, self.schema = table.num_rows, table.schema
        self.categories = {
            field.name: self.column(field.name, 0, 0).dictionary
            for field in table.schema
            if pa.types.is_dictionary(field.type)
        }

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        return _one_batch(self.table.slice(start, stop - start))

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        return _one_batch(self.table.select([name]).slice(start, stop - start)).column(0)


class Extended(TableSource):
    """A table with an additional column.

    Parameters
    ----------
    table
        The table; it may have no columns.
    field
        Name and type of the column.
    values
        Returns rows ``[start, stop)`` of the column.
    """

    def __init__(
        self, table: TableSource, field: pa.Field, values: Callable[[int, int], pa.Array]
    ) -> None:
        self._table, self._name, self._values = table, field.name, values
        self.num_rows, self.schema = table.num_rows, table.schema.append(field)
        self.categories = table.categories
        if pa.types.is_dictionary(field.type):
            self.categories = {**table.categories, field.name: values(0, 0).dictionary}

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        if name == self._name:
            return self._values(start, stop)
        return self._table.column(name, start, stop)

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        batch = self._table.read(start, stop)
        # A batch of a table without columns has one unnamed column; it is dropped here.
        columns = [batch.column(name) for name in self._table.schema.names]
        fields = [batch.schema.field(name) for name in self._table.schema.names]
        schema = pa.schema([*fields, self.schema.field(len(columns))], self.schema.metadata)
        return pa.RecordBatch.from_arrays([*columns, self._values(start, stop)], schema=schema)


class NoTable(TableSource):
    """Placeholder for a missing table: rows without columns."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.schema, self.categories = pa.schema([]), {}

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([pa.nulls(stop - start)], [""])


def row_names(table: TableSource) -> list[Any]:
    """Names of the rows of a table; none if it has no names."""
    batches = table.batches() if INDEX in table.schema.names else ()
    return [name for batch in batches for name in batch.column(INDEX).to_pylist()]


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    chunks = (column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)
              for column in table.combine_chunks().columns)  # fmt: skip
    return pa.RecordBatch.from_arrays([*chunks], schema=table.schema)


def encode(column: pa.ChunkedArray, known: dict[bytes, Coder] | None = None) -> Encoded | pa.Array:
    """A column of text or categories as codes; the values of any other column.

    Parameters
    ----------
    known
        Lists of labels that were encoded before, by content; columns with equal lists share one.
    """
    type_ = column.type
    if is_text(type_):
        column = column.dictionary_encode()
    elif not pa.types.is_dictionary(type_):
        return column.combine_chunks()
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    coder = _coder_of(array.dictionary, known)
    codes, narrow = coder.codes(array.indices), code_type(len(coder.values))
    if codes.null_count:
        codes = filled(codes.cast(narrow), -1)
    if pa.types.is_dictionary(type_):
        type_ = pa.dictionary(narrow, coder.values.type, type_.ordered)
    # Codes are known to be in range, which a cast by Arrow would check again.
    narrowed = to_numpy(codes).astype(narrow.to_pandas_dtype(), copy=False)
    return Encoded(narrowed, coder.values, type_)


def _coder_of(labels: pa.Array, known: dict[bytes, Coder] | None) -> Coder:
    if known is None:
        return Coder(labels)
    key = _content(labels)
    return known.get(key) or known.setdefault(key, Coder(labels))


def as_array(column: Encoded | pa.Array) -> pa.Array:
    """A column that may be encoded, as an array."""
    return column.array() if isinstance(column, Encoded) else column


class Encoded(NamedTuple):
    """A column of labels as codes.

    Attributes
    ----------
    codes
        Position of the label of each row, of the smallest signed type that holds all; -1 if it is
        missing.
    labels
        The labels, unique and not null. Those of text are in order of first occurrence.
    type
        Type of the column: text, or a dictionary with codes of that type.
    """

    codes: NDArray[np.signedinteger[Any]]
    labels: pa.Array
    type: pa.DataType

    def array(self) -> pa.Array:
        """The column; categories share the memory of the codes."""
        absent = self.codes < 0
        codes = numbers(self.codes, absent if absent.any() else None)
        if not pa.types.is_dictionary(self.type):
            return self.labels.take(codes)
        return pa.DictionaryArray.from_arrays(codes, self.labels, ordered=self.type.ordered)

    def recoded(
        self, positions: NDArray[np.integer[Any]], out: NDArray[np.signedinteger[Any]]
    ) -> None:
        """Write codes of other labels to `out`, given the position of each label there, or -1."""
        if np.array_equal(positions, np.arange(len(positions))):
            out[:] = self.codes
            return
        # A missing label takes the last position.
        table = np.append(positions, -1).astype(out.dtype)
        np.take(table, self.codes, out=out, mode="wrap")


def _content(labels: pa.Array) -> bytes:
    """A key that only equal arrays share."""
    digest = hashlib.sha256(f"{labels.type} {len(labels)} {labels.offset}".encode())
    for buffer in labels.buffers():
        digest.update(b"-" if buffer is None else buffer)
    return digest.digest()


def code_type(n: int) -> pa.DataType:
    """The smallest signed type for codes of `n` categories."""
    return pa.int8() if n <= 1 << 7 else pa.int16() if n <= 1 << 15 else pa.int32()
