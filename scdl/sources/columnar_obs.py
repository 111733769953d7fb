"""The columns of Parquet and Arrow files other than lists, as a table of cells."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scdl.archive.gene_names import strings
from scdl.archive.schema import INDEX, INDEX_NAME
from scdl.archive.tables import ROWS_AT_ONCE, TableSource, code_type
from scdl.errors import OptionError, SourceError
from scdl.sources.columnar_files import ColumnarFiles, Piece, readable
from scdl.sources.gene_vocabulary import index_of_pandas
from storage_backends.base import is_column_type
from storage_backends.compute import arrow
from storage_backends.compute.caching import cached_property

#: What Hive writes in the place of a missing value.
_MISSING = "__HIVE_DEFAULT_PARTITION__"


class ColumnarObs(TableSource):
    """The table of cells.

    Parameters
    ----------
    path
        Path of the source; names of directories below it may hold columns.
    files
        The files.
    lists
        Columns with the genes of cells and their values.
    obs_names
        Column with the names of cells; None: the index that pandas stored, else numbers.

    Raises
    ------
    OptionError
        There is no such column.
    SourceError
        Columns of a name have types in two files that have no common type.

    Attributes
    ----------
    unread
        Names of columns of other types than those of archives.
    """

    def __init__(
        self, path: str, files: ColumnarFiles, lists: Sequence[str], obs_names: str | None
    ) -> None:
        self._path, self._files = path, files
        self.num_rows = sum(files.num_rows)
        firsts = np.cumsum([0, *files.num_rows[:-1]]).tolist()
        self._first_rows = dict(zip(files.paths, firsts, strict=True))
        self._types, self.unread = _common_types(files, lists, obs_names)
        self._parts = {file: _parts_of(file, path) for file in files.paths}
        keys = dict.fromkeys(key for parts in self._parts.values() for key in parts)
        self._types |= {key: pa.dictionary(pa.int32(), pa.large_string()) for key in keys
                        if key not in self._types}  # fmt: skip
        stored = index_of_pandas(next(iter(files.schemas)))
        self._index = obs_names or (stored if stored in self._types else None)
        if self._index not in (None, *self._types):
            raise OptionError(
                f"{path}: obs_names={obs_names!r} is not a column that could name cells; there "
                f"are: {', '.join(self._types) or 'none'}"
            )
        #: Columns and first row of those that are read next if reading continues.
        self._at: tuple[Sequence[str], int] | None = None
        self._pieces: Iterator[Piece]
        self._left: pa.RecordBatch

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of the columns; the first has the names of cells."""
        fields = [pa.field(INDEX, pa.large_string())]
        for name, type_ in self._types.items():
            if name in self._labels:
                type_ = self._labels[name].type
            if name != self._index:
                fields.append(pa.field(name, type_))
        is_named = self._index is not None and not self._index.startswith("__index_level_")
        return pa.schema(fields, {INDEX_NAME: self._index} if is_named else None)

    @cached_property
    def categories(self) -> Mapping[str, pa.Array]:
        """Categories of each categorical column, over all files."""
        return {name: labels.values for name, labels in self._labels.items()}

    @cached_property
    def _labels(self) -> dict[str, _Labels]:
        coded = [n for n, t in self._types.items() if n != self._index and _is_coded(t)]
        found = {name: _Labels(self._types[name]) for name in coded}
        for piece in self._files.pieces(coded, ROWS_AT_ONCE) if coded else ():
            for name in coded:
                found[name].add(self._stored(name, piece).dictionary)
        return found

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        return self._read(self.schema.names, start, stop)

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        return self._read([name], start, stop).column(0)

    def _read(self, names: Sequence[str], start: int, stop: int) -> pa.RecordBatch:
        """Rows of some columns; those after the last ones are read on, others from a new start."""
        fields = [self.schema.field(name) for name in names]
        schema = pa.schema(fields, self.schema.metadata)
        empty = pa.RecordBatch.from_arrays([self._nulls(f, 0) for f in fields], schema=schema)
        if self._at != (names, start):
            columns = [self._index if name == INDEX else name for name in names]
            wanted = [name for name in columns if name is not None]
            self._pieces, self._left = self._files.pieces(wanted, ROWS_AT_ONCE, start), empty
        found = [self._left.slice(0, stop - start)]
        self._left, row = self._left.slice(stop - start), start + len(found[0])
        while row < stop:
            piece = next(self._pieces)
            arrays = [self._values(field, piece) for field in fields]
            batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
            found.append(batch.slice(0, stop - row))
            self._left, row = batch.slice(stop - row), row + len(found[-1])
        self._at = names, stop
        table = pa.Table.from_batches(found).combine_chunks()
        return next(iter(table.to_batches()), empty)

    def _values(self, field: pa.Field, piece: Piece) -> pa.Array:
        """One column of some rows."""
        name = self._index if field.name == INDEX else field.name
        if name is None:
            first = self._first_rows[piece.path] + piece.first
            return strings(arrow.numbers(np.arange(first, first + len(piece.rows))))
        column = self._stored(name, piece)
        if field.name == INDEX:
            return strings(column)
        if name in self._labels:
            return self._labels[name].coded(column)
        with readable(f"{piece.path}: column {name!r}"):
            column = column.dictionary_decode() if _is_coded(column.type) else column
            return column if column.type == field.type else column.cast(field.type)

    def _nulls(self, field: pa.Field, n: int) -> pa.Array:
        if field.name in self._labels:
            return self._labels[field.name].coded(pa.nulls(n, self._types[field.name]))
        return pa.nulls(n, field.type)

    def _stored(self, name: str, piece: Piece) -> pa.Array:
        """One column of some rows as the file, or the name of a directory, has it."""
        rows, type_ = piece.rows, self._types[name]
        if name in rows.schema.names:
            column = rows.column(name)
            is_plain = _is_coded(type_) and not _is_coded(column.type)
            return column.dictionary_encode() if is_plain else column
        value = self._parts[piece.path].get(name, _MISSING)
        if value == _MISSING:
            return pa.nulls(len(rows), type_)
        codes = arrow.numbers(np.zeros(len(rows), np.int32))
        return pa.DictionaryArray.from_arrays(codes, arrow.text([unquote(value)]))


class _Labels:
    """The categories of a column, of which files and their parts may have lists of their own.

    They are in the order of their first occurrence. They stay ordered if one list has all of them,
    and the others have theirs in the same order.
    """

    def __init__(self, type_: pa.DataType) -> None:
        self.values = pa.array([], type_.value_type)
        self._is_ordered, self._is_whole = type_.ordered, True

    @property
    def type(self) -> pa.DataType:
        """The type of the column."""
        ordered = self._is_ordered and self._is_whole
        return pa.dictionary(code_type(len(self.values)), self.values.type, ordered)

    def add(self, labels: pa.Array) -> None:
        """Add those of a list that are new."""
        labels = pc.unique(labels.cast(self.values.type)).drop_null()
        united = pc.unique(pa.concat_arrays([self.values, labels]))
        if len(united) > len(self.values):
            self._is_whole = len(united) == len(labels)
        self.values = united
        places = arrow.to_numpy(arrow.positions_in(labels, united))
        self._is_ordered &= bool((places[1:] > places[:-1]).all())

    def coded(self, column: pa.DictionaryArray) -> pa.DictionaryArray:
        """A column with these categories."""
        labels = column.dictionary.cast(self.values.type)
        codes = arrow.positions_in(labels, self.values).take(column.indices)
        return pa.DictionaryArray.from_arrays(
            codes.cast(self.type.index_type), self.values, ordered=self.type.ordered
        )


def _common_types(
    files: ColumnarFiles, lists: Sequence[str], obs_names: str | None
) -> tuple[dict[str, pa.DataType], list[str]]:
    """Types of the columns of all files, and the names of those that archives do not store."""
    found: dict[str, dict[pa.DataType, str]] = {}
    repeated = set()
    for schema, path in files.schemas.items():
        for field in schema:
            found.setdefault(field.name, {}).setdefault(field.type, path)
        repeated |= {name for name in schema.names if schema.names.count(name) > 1}
    types, unread = {}, []
    for name, kinds in found.items():
        if name in lists:
            continue
        known = {type_: path for type_, path in kinds.items() if not pa.types.is_null(type_)}
        is_kept = name not in repeated and (name != INDEX or name == obs_names)
        if known and is_kept and all(map(is_column_type, known)):
            types[name] = _common_type(name, known)
        else:
            unread.append(f"obs/{name}")
    return types, unread


def _common_type(name: str, kinds: Mapping[pa.DataType, str]) -> pa.DataType:
    """A type for the values of a column of all files."""
    if len(kinds) == 1:
        return next(iter(kinds))
    plain = [type_.value_type if _is_coded(type_) else type_ for type_ in kinds]
    try:
        united = pa.unify_schemas(
            [pa.schema([("", type_)]) for type_ in plain], promote_options="permissive"
        )
    except pa.ArrowException:
        named = ", ".join(f"{type_} in {path}" for type_, path in kinds.items())
        raise SourceError(
            f"column {name!r} has types without a common one: {named}; pass a list of the files, "
            "to convert them one by one"
        ) from None
    if not all(map(_is_coded, kinds)):
        return united.field(0).type
    ordered = all(type_.ordered for type_ in kinds)
    return pa.dictionary(pa.int32(), united.field(0).type, ordered)


def _is_coded(type_: pa.DataType) -> bool:
    return bool(pa.types.is_dictionary(type_))


def _parts_of(path: str, root: str) -> dict[str, str]:
    """Columns and values that the directories of a file name, as in ``drug=x/0.parquet``."""
    below = os.path.dirname(os.path.relpath(path, root)).split(os.sep)
    pairs = (name.partition("=") for name in below)
    return {key: value for key, mark, value in pairs if mark and key}
