"""Tables that are read in blocks of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

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
    """Rows ``[start, stop)`` of a table of an archive, with all or some of its columns."""

    def __init__(
        self,
        store: ArrayStore,
        name: str,
        stop: int,
        start: int = 0,
        columns: Sequence[str] | None = None,
    ) -> None:
        self._store, self._name, self._start = store, name, start
        self.num_rows = stop - start
        self.schema = store.table_schema(name)
        self._columns: list[str] | None = None
        if columns is not None:
            self._columns = [column for column in columns if column in self.schema.names]
            fields = [self.schema.field(column) for column in self._columns]
            self.schema = pa.schema(fields, self.schema.metadata)
        categorical = [f.name for f in self.schema if pa.types.is_dictionary(f.type)]
        empty = store.read_table(name, categorical, 0, 0)
        self.categories = {c: empty[c].chunk(0).dictionary for c in categorical}

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        first = self._start
        return read_batch(self._store, self._name, self._columns, first + start, first + stop)

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        first = self._start
        return read_batch(self._store, self._name, [name], first + start, first + stop).column(0)


def read_batch(
    store: ArrayStore, name: str, columns: Sequence[str] | None, start: int, stop: int
) -> pa.RecordBatch:
    """Read rows ``[start, stop)`` of a stored table as one batch; `columns` None: all."""
    if columns is not None and not columns:
        return NoTable(stop - start).read(0, stop - start)
    table = store.read_table(name, columns, start, stop).combine_chunks()
    return pa.RecordBatch.from_arrays(
        [column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)
         for column in table.columns],
        schema=table.schema,
    )  # fmt: skip


class NoTable(TableSource):
    """Placeholder for a missing table: rows without columns."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.schema = pa.schema([])
        self.categories = {}

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([pa.nulls(stop - start)], [""])
