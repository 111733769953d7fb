"""Tables as parquet files, with data that parquet alone would lose.

Names (the column ``_index``) and the categories of categorical columns go to files of their own,
so that the main file stays what readers of the documented format expect: plain columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import pyarrow as pa

from storage_backends.base import INDEX, INDEX_NAME, NULLABLE
from storage_backends.checks import check_rows
from storage_backends.compute.caching import cached_property
from storage_backends.compute.claims import check_claim
from storage_backends.compute.uniting import ColumnPart, UnitedColumn
from storage_backends.directory.mapped_file import MappedFile
from storage_backends.errors import ArchiveFormatError
from storage_backends.memmap.parquet import ParquetFile, readable
from storage_backends.memmap.table_writer import plain_type, to_categorical

if TYPE_CHECKING:
    from pyarrow import Schema, Table

#: Minimum bytes of a row of text in memory.
_ROW_BYTES = 64


class ParquetTable:
    """One table in up to three files, whose metadata is read once.

    Parameters
    ----------
    where
        Start of error messages.
    columns
        Files of the plain columns, one after the other; where their columns differ, they are
        united by :mod:`storage_backends.compute.uniting`, and columns missing in a file are null.
    expected_rows
        Required number of rows; None accepts any.
    names
        File of the column ``_index``, or None.
    categories
        File of one row, whose columns are the lists of categories, or None.
    only_names
        Column of the main file that is the ``_index``, in a table that has nothing else, or None.
    index_name
        Name of the ``_index``, or None.
    nullable
        Columns that pandas holds in a nullable type.
    mapped
        Mapped files by path, which are read instead of those on disk.
    bounded
        Whether these files are the only source of the number of rows.
    """

    def __init__(
        self,
        where: str,
        columns: Sequence[str],
        expected_rows: int | None,
        *,
        names: str | None = None,
        categories: str | None = None,
        only_names: str | None = None,
        index_name: str | None = None,
        nullable: Sequence[str] = (),
        mapped: Mapping[str, MappedFile] = MappingProxyType({}),
        bounded: bool = True,
    ) -> None:
        self._where = where
        self._columns = [ParquetFile(path, mapped) for path in columns]
        self._expected_rows = expected_rows
        self._names = None if names is None else ParquetFile(names, mapped)
        self._categories = None if categories is None else ParquetFile(categories, mapped)
        self._only_names = only_names
        self._bounded = bounded
        self._metadata = None if index_name is None else {INDEX_NAME: index_name}
        self._nullable = frozenset(nullable)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        files = (*self._columns, self._names, self._categories)
        return sum(file.nbytes for file in files if file is not None)

    @cached_property
    def num_rows(self) -> int:
        """Rows, from the files' footers."""
        n_rows = sum(file.num_rows for file in self._columns)
        if self._expected_rows not in (None, n_rows):
            raise ArchiveFormatError(
                f"{self._where} has {n_rows} rows, expected {self._expected_rows}"
            )
        if self._bounded:
            check_claim(self._where, (n_rows,), _ROW_BYTES, lambda: self.nbytes)
        if self._names and self._names.num_rows != n_rows:
            raise ArchiveFormatError(
                f"{self._names}: expected {n_rows} names, one for each row, found "
                f"{self._names.num_rows}"
            )
        return n_rows

    @cached_property
    def schema(self) -> Schema:
        """Names and types of the columns, ``_index`` first."""
        if len(self._columns) == 1:
            plain = self._columns[0].schema.remove_metadata()
        else:
            plain = pa.schema([pa.field(k, column.type) for k, column in self._united.items()])
        if self._only_names:
            self._require(plain, self._only_names, self._columns[0])
            names_of_rows = pa.field(INDEX, plain.field(self._only_names).type)
            return pa.schema([names_of_rows], self._metadata)
        types = {field.name: plain_type(field.type) for field in plain}
        types |= {name: category.type for name, category in self._category_lists.items()}
        fields = [
            pa.field(name, type_, metadata=NULLABLE if name in self._nullable else None)
            for name, type_ in types.items()
        ]
        if self._names:
            names = self._names.schema
            self._require(names, INDEX, self._names)
            fields.insert(0, names.field(INDEX).remove_metadata())
        return pa.schema(fields, self._metadata)

    @staticmethod
    def _require(schema: Schema, name: str, file: ParquetFile) -> None:
        if schema.names.count(name) != 1:
            raise ArchiveFormatError(f"{file}: expected one column {name!r:.100}")

    @cached_property
    def _united(self) -> Mapping[str, UnitedColumn]:
        """The columns of several files, whose types may differ from file to file."""
        schemas = {file: file.schema for file in self._columns}
        names = dict.fromkeys(name for schema in schemas.values() for name in schema.names)
        return {
            name: UnitedColumn(
                [
                    ColumnPart(schema.field(name).type, None, partial(file.pieces, name))
                    for file, schema in schemas.items()
                    if name in schema.names
                ]
            )
            for name in names
        }

    def read(self, columns: Sequence[str] | None, start: int, stop: int | None) -> Table:
        """Rows ``[start, stop)`` of some columns."""
        with readable(self._where):
            known = self.schema.names
            wanted = known if columns is None else list(columns)
            stop = check_rows(self._where, self.num_rows, start, stop, names=known, columns=wanted)
            # The first column counts the rows of a table without columns.
            rows = pa.table({"": pa.nulls(stop - start)}, metadata=self._metadata)
            if self._only_names:
                names = self._read_plain([self._only_names], start, stop)
                return rows.append_column(self.schema.field(INDEX), names.column(0)).select(wanted)
            plain = [name for name in wanted if name != INDEX or self._names is None]
            categories = {k: v for k, v in self._category_lists.items() if k in plain}
            columns_read = self._read_plain(plain, start, stop, list(categories)) if plain else rows
            for name in plain:
                column = columns_read[name]
                if name in categories:
                    column = to_categorical(column, categories[name])
                rows = rows.append_column(self.schema.field(name), column)
            if INDEX in wanted and self._names:
                names = self._names.read([INDEX], start, stop)
                rows = rows.append_column(self.schema.field(INDEX), names[INDEX])
            return rows.select(wanted)

    def _read_plain(
        self, columns: list[str], start: int, stop: int, as_dictionary: Sequence[str] = ()
    ) -> Table:
        if len(self._columns) == 1:
            return self._columns[0].read(columns, start, stop, as_dictionary)
        united = {name: self._united[name] for name in columns}
        pieces: dict[str, list[pa.Array]] = {name: [] for name in columns}
        position = 0
        for file in self._columns:
            n_rows = file.num_rows
            first, last = max(start - position, 0), min(stop - position, n_rows)
            position += n_rows
            if first >= last:
                continue
            present = file.schema.names
            for name, column in united.items():
                if name in present:
                    found = file.read([name], first, last).column(0)
                    pieces[name] += map(column.convert, found.chunks)
                else:
                    pieces[name].append(column.nulls(last - first))
        return pa.table(
            {name: pa.chunked_array(pieces[name], column.type) for name, column in united.items()}
        )

    @cached_property
    def _category_lists(self) -> Mapping[str, pa.DictionaryArray]:
        """An empty dictionary array per categorical column, with its type and categories."""
        if self._categories is None:
            return {}
        found = {}
        with readable(f"{self._categories}: the table of categories"):
            if self._categories.num_rows != 1:
                raise ArchiveFormatError(f"{self._categories}: expected one row of categories")
            table = self._categories.read_all()
            for field in table.schema:
                # See `_category_table`.
                values = table[field.name].chunk(0).flatten()
                meta = field.metadata or {}
                index_type = pa.type_for_alias(meta.get(b"index", b"int32").decode())
                found[field.name] = pa.DictionaryArray.from_arrays(
                    pa.nulls(0, index_type), values, ordered=meta.get(b"ordered") == b"1"
                )
        return found
