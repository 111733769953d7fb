"""Tables as parquet files, with data that parquet alone would lose.

Names (the column ``_index``) and the categories of categorical columns go to files of their own,
so that the main file stays what readers of the documented format expect: plain columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import pyarrow as pa

from storage_backends.base import INDEX, INDEX_NAME, NULLABLE
from storage_backends.checks import check_rows
from storage_backends.compute import steps
from storage_backends.compute.caching import cached_property
from storage_backends.compute.claims import check_claim
from storage_backends.compute.uniting import ColumnPart, UnitedColumn
from storage_backends.directory.mapped_file import MappedFile
from storage_backends.errors import ArchiveFormatError
from storage_backends.memmap.categories import lists_in, to_categorical
from storage_backends.memmap.parquet import ParquetFile, readable
from storage_backends.memmap.table_writer import plain_type

if TYPE_CHECKING:
    from pyarrow import Schema, Table

#: Maximum number of values that are read together.
_MOST_AT_ONCE = 1 << 22
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
        Files of the column ``_index``, one after the other; none without the column.
    are_alike
        Whether all files of columns have the same columns and types.
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
        names: Sequence[str] = (),
        are_alike: bool = False,
        categories: str | None = None,
        only_names: str | None = None,
        index_name: str | None = None,
        nullable: Sequence[str] = (),
        mapped: Mapping[str, MappedFile] = MappingProxyType({}),
        bounded: bool = True,
    ) -> None:
        self._where = where
        self._categories = None if categories is None else ParquetFile(categories, mapped)
        # Columns of several files are united by their values. No reference to this object, as a
        # cycle would keep mapped files of thousands of tables until garbage is collected.
        self._are_alike = are_alike or len(columns) == 1
        coded = partial(lists_in, self._categories) if self._are_alike else tuple
        self._columns = [ParquetFile(path, mapped, coded) for path in columns]
        self._expected_rows = expected_rows
        self._names = [ParquetFile(path, mapped) for path in names]
        self._only_names = only_names
        self._bounded = bounded
        self._metadata = None if index_name is None else {INDEX_NAME: index_name}
        self._nullable = frozenset(nullable)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        files = (*self._columns, *self._names, self._categories)
        return sum(file.nbytes for file in files if file is not None)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the bytes of the files, and of how they are read."""
        how = (self._only_names, self._metadata, sorted(self._nullable), self._expected_rows)
        digest = hashlib.sha256(repr(how).encode())
        for file in (*self._columns, *self._names, *([] if self._names else [None])):
            digest.update(b"none" if file is None else file.content)
        digest.update(b"none" if self._categories is None else self._categories.content)
        return digest.hexdigest()

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
        return n_rows

    @cached_property
    def schema(self) -> Schema:
        """Names and types of the columns, ``_index`` first."""
        fields = [self._field(name) for name in self._types]
        if self._names:
            fields = [self._names_field, *fields]
        return pa.schema(fields, self._metadata)

    @cached_property
    def _types(self) -> Mapping[str, pa.DataType]:
        """Types of all columns that are not in the file of names."""
        plain = self._columns[0].schema
        if not self._are_alike:
            plain = pa.schema([pa.field(k, column.type) for k, column in self._united.items()])
        if self._only_names:
            self._require(plain, self._only_names, self._columns[0])
            return {INDEX: plain.field(self._only_names).type}
        types = {field.name: plain_type(field.type) for field in plain}
        return types | {name: column.type for name, column in self._category_lists.items()}

    def _field(self, name: str) -> pa.Field:
        metadata = NULLABLE if name in self._nullable else None
        return pa.field(name, self._types[name], metadata=metadata)

    @cached_property
    def _names_field(self) -> pa.Field:
        """Field of the file of names, which is opened only if names are needed."""
        for file in self._names:
            self._require(file.schema, INDEX, file)
        n_names = sum(file.num_rows for file in self._names)
        if n_names != self.num_rows:
            raise ArchiveFormatError(
                f"{self._names[0]}: expected {self.num_rows} names, one for each row, found "
                f"{n_names}"
            )
        field: pa.Field = self._names[0].schema.field(INDEX).remove_metadata()
        return field

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
        return steps.result(self.reading(columns, start, stop))

    def reading(
        self, columns: Sequence[str] | None, start: int, stop: int | None
    ) -> steps.Steps[Table]:
        """As :meth:`read`, in steps."""
        with readable(self._where):
            known = [INDEX, *self._types] if self._names else [*self._types]
            wanted = known if columns is None else list(columns)
            stop = check_rows(self._where, self.num_rows, start, stop, names=known, columns=wanted)
            yield
            found: dict[str, pa.ChunkedArray] = {}
            if self._only_names:
                found[INDEX] = self._read_plain([self._only_names], start, stop).column(0)
            elif self._names and INDEX in wanted:
                found[INDEX] = _read_alike(self._names, [INDEX], start, stop).column(0)
            plain = [name for name in wanted if name not in found]
            if plain:
                found |= yield from self._read_columns(plain, start, stop)
            if not wanted:
                # A table without columns has its rows nevertheless.
                rows = pa.table({"": pa.nulls(stop - start)}, metadata=self._metadata)
                return rows.select([])
            fields = [
                self._names_field if self._names and name == INDEX else self._field(name)
                for name in wanted
            ]
            schema = pa.schema(fields, self._metadata)
            return pa.Table.from_arrays([found[name] for name in wanted], schema=schema)

    def _read_columns(
        self, names: Sequence[str], start: int, stop: int
    ) -> steps.Steps[dict[str, pa.ChunkedArray]]:
        """Columns that are not names, with their categories."""
        distinct = list(dict.fromkeys(names))
        if (stop - start) * len(distinct) > _MOST_AT_ONCE and len(distinct) > 1:
            # One after the other, as the codes of categories are several times wider meanwhile.
            found: dict[str, pa.ChunkedArray] = {}
            for name in distinct:
                found |= yield from self._read_columns([name], start, stop)
            return found
        categories = self._category_lists
        columns = self._read_plain(distinct, start, stop)
        yield
        return {
            name: to_categorical(columns[name], categories[name])
            if name in categories
            else columns[name]
            for name in distinct
        }

    def _read_plain(self, columns: list[str], start: int, stop: int) -> Table:
        if self._are_alike:
            return _read_alike(self._columns, columns, start, stop)
        united = {name: self._united[name] for name in columns}
        pieces: dict[str, list[pa.Array]] = {name: [] for name in columns}
        for file, first, last in _ranges(self._columns, start, stop):
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
        return lists_in(self._categories)


def _ranges(
    files: Sequence[ParquetFile], start: int, stop: int
) -> Iterator[tuple[ParquetFile, int, int]]:
    """The files with rows ``[start, stop)`` of all, and which of their own rows these are."""
    position = 0
    for file in files:
        first, last = max(start - position, 0), min(stop - position, file.num_rows)
        position += file.num_rows
        if first < last:
            yield file, first, last


def _read_alike(files: Sequence[ParquetFile], columns: list[str], start: int, stop: int) -> Table:
    """Rows ``[start, stop)`` of files with the same columns."""
    if len(files) == 1:
        return files[0].read(columns, start, stop)
    found = [file.read(columns, *rows) for file, *rows in _ranges(files, start, stop)]
    return pa.concat_tables(found or [files[0].read(columns, 0, 0)])
