"""Tables that are read in blocks of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence

import pyarrow as pa

from storage_backends.base import ArrayStore

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


class LoadedTable(TableSource):
    """A table in memory; codes of categories are stored in the smallest type that holds them."""

    def __init__(self, table: pa.Table) -> None:
        batch = _one_batch(table)
        columns = [narrow_codes(column) for column in batch.columns]
        fields = [f.with_type(c.type) for f, c in zip(batch.schema, columns, strict=True)]
        self.num_rows, self.schema = batch.num_rows, pa.schema(fields, batch.schema.metadata)
        self.categories = {
            field.name: column.dictionary
            for field, column in zip(fields, columns, strict=True)
            if pa.types.is_dictionary(column.type)
        }
        self._batch = pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        return self._batch.slice(start, stop - start)


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
        self.schema = pa.schema([])
        self.categories = {}

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([pa.nulls(stop - start)], [""])


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    chunks = (column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)
              for column in table.combine_chunks().columns)  # fmt: skip
    return pa.RecordBatch.from_arrays([*chunks], schema=table.schema)


def narrow_codes(column: pa.Array) -> pa.Array:
    """A column with the smallest signed type for its codes, if it is categorical."""
    if not pa.types.is_dictionary(column.type):
        return column
    codes = column.indices.cast(code_type(len(column.dictionary)))
    return pa.DictionaryArray.from_arrays(codes, column.dictionary, ordered=column.type.ordered)


def code_type(n: int) -> pa.DataType:
    """The smallest signed type for codes of `n` categories."""
    return pa.int8() if n <= 1 << 7 else pa.int16() if n <= 1 << 15 else pa.int32()
