"""Tables with only the chosen rows and columns of others."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.archive.csr import spans
from scdl.archive.schema import INDEX
from scdl.archive.tables import ROWS_AT_ONCE, NoTable, TableSource
from scdl.errors import OptionError
from storage_backends.compute import arrow
from storage_backends.compute.caching import cached_property

#: Columns to keep: their names, or their new names by their names.
Columns: TypeAlias = Sequence[str] | Mapping[str, str]


def taken(table: TableSource, rows: NDArray[np.int64]) -> TableSource:
    """Some rows of a table, given by positions in ascending order."""
    return _Taken(table, rows) if table.schema.names else NoTable(len(rows))


class _Taken(TableSource):
    """Some rows of a table; blocks of rows without any of them are not read."""

    def __init__(self, table: TableSource, rows: NDArray[np.int64]) -> None:
        self._table, self._rows = table, rows
        self.num_rows, self.schema, self.categories = len(rows), table.schema, table.categories

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        pieces = [
            self._table.column(name, first, last).take(inside)
            for first, last, inside in self._pieces(start, stop)
        ]
        return pa.concat_arrays(pieces) if pieces else self._table.column(name, 0, 0)

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        columns = [self.column(name, start, stop) for name in self.schema.names]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, pa.Array]]:
        """Ranges of rows to read, and the positions of chosen rows in each."""
        rows = self._rows[start:stop]
        while len(rows):
            first = int(rows[0])
            n = int(np.searchsorted(rows, first + ROWS_AT_ONCE))
            yield first, int(rows[n - 1]) + 1, arrow.numbers(rows[:n] - first)
            rows = rows[n:]


class Trimmed(TableSource):
    """A table without the categories that do not occur, as of a view of an AnnData."""

    def __init__(self, table: TableSource) -> None:
        self._table = table
        self.num_rows, self.schema = table.num_rows, table.schema

    @cached_property
    def used(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which categories of each categorical column occur."""
        used = {
            name: np.zeros(len(labels), bool) for name, labels in self._table.categories.items()
        }
        for start, stop in spans(self.num_rows, ROWS_AT_ONCE):
            for name, found in used.items():
                codes = self._table.column(name, start, stop).indices
                found[arrow.to_numpy(codes.drop_null())] = True
        return used

    @cached_property
    def categories(self) -> Mapping[str, pa.Array]:
        """The categories that occur."""
        return {
            name: labels.filter(arrow.numbers(self.used[name]))
            for name, labels in self._table.categories.items()
        }

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        column = self._table.column(name, start, stop)
        if name not in self.used or self.used[name].all():
            return column
        used = self.used[name]
        places = arrow.numbers(np.where(used, np.cumsum(used) - 1, 0))
        codes = places.take(column.indices).cast(column.type.index_type)
        labels = self.categories[name]
        return pa.DictionaryArray.from_arrays(codes, labels, ordered=column.type.ordered)

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        columns = [self.column(name, start, stop) for name in self.schema.names]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


class Renamed(TableSource):
    """Some columns of a table, under other names.

    Parameters
    ----------
    table
        The table.
    names
        Name in the table of each column to have.
    """

    def __init__(self, table: TableSource, names: Mapping[str, str]) -> None:
        self._table, self._names = table, names
        self.num_rows = table.num_rows
        fields = [table.schema.field(old).with_name(new) for new, old in names.items()]
        self.schema = pa.schema(fields, table.schema.metadata)

    @cached_property
    def categories(self) -> Mapping[str, pa.Array]:
        """Categories of each categorical column."""
        known = self._table.categories
        return {new: known[old] for new, old in self._names.items() if old in known}

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        return self._table.column(self._names[name], start, stop)

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        if not self._names:
            return NoTable(stop - start).read(0, stop - start)
        columns = [self.column(name, start, stop) for name in self.schema.names]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def columns_of(option: str, columns: Columns) -> dict[str, str]:
    """Name of each column to keep by its new name.

    Raises
    ------
    OptionError
        `columns` is neither a mapping nor a list of names, or names repeat.
    """
    if isinstance(columns, str):
        columns = [columns]
    pairs = columns.items() if isinstance(columns, Mapping) else zip(columns, columns, strict=True)
    found: dict[str, str] = {}
    for old, new in pairs:
        if not (isinstance(old, str) and isinstance(new, str)):
            raise OptionError(
                f"{option} must be a list of names, or new names by names, found {old!r:.100} and "
                f"{new!r:.100}"
            )
        if new in found or new == INDEX:
            problem = "is reserved for names" if new == INDEX else "is the name of two columns"
            raise OptionError(f"{option}: {new!r} {problem}; choose another name")
        found[new] = old
    return found


def kept_columns(schema: pa.Schema, names: Mapping[str, str] | None) -> dict[str, str]:
    """Name in a table of each column to have; columns that it lacks are left out."""
    if names is None:
        return {name: name for name in schema.names}
    index = {INDEX: INDEX} if INDEX in schema.names else {}
    return index | {new: old for new, old in names.items() if old in schema.names}


def unknown(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that does not exist: similar names, or all."""
    names = [one for one in dict.fromkeys(known) if one != INDEX]
    near = difflib.get_close_matches(name, names, 3)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"there are: {listed or 'none'}"
