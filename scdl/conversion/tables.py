"""Concatenation of tables in bounded memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scdl.archive.schema import INDEX, NULLABLE, OBS
from scdl.archive.tables import ROWS_AT_ONCE, Encoded, TableSource, code_type, encode
from scdl.errors import CastError, ScdlWarning
from storage_backends.anndata_format.names import is_nullable
from storage_backends.compute import arrow
from storage_backends.compute.uniting import ColumnPart, UnitedColumn
from storage_backends.errors import one_line

#: Rows of a table from which the size of the others is estimated.
_SAMPLE = 1_000


class United:
    """Concatenation of tables with the union of their columns.

    Rows of tables that lack a column are null. Categorical columns get the categories of all tables
    in order of first occurrence; they stay ordered if one table has all categories, in an order
    consistent with all other tables. :mod:`storage_backends.compute.uniting` describes how
    differing types are combined.

    Attributes
    ----------
    schema
        Names and types of the columns.
    changes
        Columns whose values are converted, each with a description of the conversion.
    """

    def __init__(self, sources: Sequence[TableSource]) -> None:
        self._sources = sources
        names = list(dict.fromkeys(name for source in sources for name in source.schema.names))
        names.sort(key=lambda name: name != INDEX)
        self._columns = [_Column(name, sources) for name in names]
        metadata = [source.schema.metadata for source in sources]
        # The metadata contains the index name; keep it if all tables agree.
        agreed = metadata[0] if all(m == metadata[0] for m in metadata) else None
        self.schema = pa.schema([column.field for column in self._columns], agreed)
        self.changes = tuple(
            f"{column.name} ({column.change})" for column in self._columns if column.change
        )

    def reader(self) -> pa.RecordBatchReader:
        """Read all rows in batches."""
        return pa.RecordBatchReader.from_batches(self.schema, self._batches())

    def encoded(self, name: str) -> Encoded | pa.Array:
        """All rows of one column, labels as codes; the tables are read one after the other.

        Memory is that of the codes twice, and of the distinct labels.
        """
        column = next(column for column in self._columns if column.name == name)
        if column.holds_labels:
            return column.encoded(self._sources)
        chunks = [
            column.convert_values(source.column(name, 0, source.num_rows))
            if name in source.schema.names
            else column.nulls(source.num_rows)
            for source in self._sources
        ]
        return pa.chunked_array(chunks, column.field.type).combine_chunks()

    def _batches(self, first: int = 0) -> Iterator[pa.RecordBatch]:
        for source in self._sources[first:]:
            yield from map(self._convert, source.batches())
        # An empty batch passes on the categories even if there are no rows.
        arrays = [column.nulls(0) for column in self._columns]
        yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _convert(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        arrays = [column.convert(batch) for column in self._columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def extends(self, schema: pa.Schema, categories: Mapping[str, pa.Array]) -> bool:
        """Whether the first table, of this schema, only needs further rows to become the whole.

        Codes of categories may be of another type, if it holds all of them.
        """
        if schema.names != self.schema.names or schema.metadata != self.schema.metadata:
            return False
        for column in self._columns:
            old, new = schema.field(column.name), column.field
            if not pa.types.is_dictionary(new.type) or not pa.types.is_dictionary(old.type):
                if not old.equals(new, check_metadata=True):
                    return False
                continue
            known, every = categories[column.name], column.nulls(0).dictionary
            same = old.type.value_type == new.type.value_type
            same &= old.type.ordered == new.type.ordered
            fits = len(every) <= np.iinfo(old.type.index_type.to_pandas_dtype()).max
            if not (same and fits and every.slice(0, len(known)).equals(known)):
                return False
        return True

    def extension(self, schema: pa.Schema) -> pa.RecordBatchReader:
        """Read the rows of all tables but the first, as a table of that `schema` stores them."""

        def as_stored(column: pa.Array, type_: pa.DataType) -> pa.Array:
            if not pa.types.is_dictionary(type_):
                return column
            codes = column.indices.cast(type_.index_type)
            return pa.DictionaryArray.from_arrays(codes, column.dictionary, ordered=type_.ordered)

        batches = (
            pa.RecordBatch.from_arrays(
                list(map(as_stored, batch.columns, schema.types)), schema=schema
            )
            for batch in self._batches(1)
        )
        return pa.RecordBatchReader.from_batches(schema, batches)

    def estimate_bytes(self) -> int:
        """Size of all rows in memory, estimated from the first rows of each table."""
        nbytes = 0
        for source in self._sources:
            if n := min(source.num_rows, _SAMPLE):
                nbytes += bytes_of(self._convert(source.read(0, n))) * source.num_rows // n
        return nbytes

    def warn(self, where: str, table: str = OBS) -> tuple[str, ...]:
        """Warn about converted columns, and return them; the message starts with `where`."""
        if self.changes:
            warnings.warn(
                f"{where}: columns of {table} with different types were converted to a common "
                f"type: {'; '.join(self.changes)}; use one type in all sources if this is not "
                "intended",
                ScdlWarning,
                stacklevel=3,
            )
        return tuple(f"{table}/{change}" for change in self.changes)


def bytes_of(batch: pa.RecordBatch) -> int:
    """Size of rows in bytes, without the categories, which all batches of a table share."""
    return sum(
        (column.indices if pa.types.is_dictionary(column.type) else column).nbytes
        for column in batch.columns
    )


def column_converter(
    sources: Sequence[TableSource], names: Sequence[str]
) -> Callable[[pa.RecordBatch], list[pa.Array]]:
    """Function that converts batches of any of the tables to the common types of columns."""
    columns = [_Column(name, sources) for name in names]
    return lambda batch: [column.convert(batch) for column in columns]


class _Column:
    """One column over several tables, of which at least one has it."""

    def __init__(self, name: str, sources: Sequence[TableSource]) -> None:
        self.name = name
        having = [source for source in sources if source.schema.get_field_index(name) >= 0]
        nullable = any(is_nullable(source.schema.field(name)) for source in having)
        self._united = UnitedColumn(_distinct(_part(name, source) for source in having))
        self.change = self._united.change
        self.nulls = self._united.nulls
        self.field = pa.field(name, self._united.type, metadata=NULLABLE if nullable else None)

    def convert(self, batch: pa.RecordBatch) -> pa.Array:
        """Convert the column of a batch of any of the tables to the common type."""
        if self.name not in batch.schema.names:
            return self.nulls(batch.num_rows)
        return self.convert_values(batch.column(self.name))

    def convert_values(self, column: pa.Array) -> pa.Array:
        """Convert values of any of the tables to the common type."""
        try:
            return self._united.convert(column)
        except pa.ArrowException as error:
            raise CastError(
                f"column {self.name!r} is {column.type} in one table, and the common type "
                f"{self.field.type} cannot hold all of its values ({one_line(error)}); use "
                "one type in all sources"
            ) from error

    @property
    def holds_labels(self) -> bool:
        """Whether the common type is text or categorical."""
        return pa.types.is_dictionary(self.field.type) or arrow.is_text(self.field.type)

    def encoded(self, sources: Sequence[TableSource]) -> Encoded:
        """All rows of all tables as codes of labels."""
        pieces = [self._encoded(source) for source in sources]
        # Tables often share lists of labels.
        lists = {id(piece.labels): piece for piece in pieces if isinstance(piece, Encoded)}
        found = {key: self._common_labels(piece) for key, piece in lists.items()}
        if pa.types.is_dictionary(self.field.type):
            labels = self.nulls(0).dictionary
        else:
            labels = pc.unique(pa.concat_arrays([pa.nulls(0, self.field.type), *found.values()]))
            labels = labels.drop_null()
        positions = {
            key: arrow.to_numpy(arrow.filled(arrow.positions_in(values, labels), -1))
            for key, values in found.items()
        }
        stops = np.cumsum([0, *(source.num_rows for source in sources)])
        narrow, type_ = code_type(len(labels)), self.field.type
        if pa.types.is_dictionary(type_):
            type_ = pa.dictionary(narrow, type_.value_type, type_.ordered)
        codes = np.full(stops[-1], -1, narrow.to_pandas_dtype())
        for i, piece in enumerate(pieces):
            if isinstance(piece, Encoded):
                piece.recoded(positions[id(piece.labels)], codes[stops[i] : stops[i + 1]])
        return Encoded(codes, labels, type_)

    def _encoded(self, source: TableSource) -> Encoded | None:
        """The column of one table as codes; None if the table lacks it."""
        if source.schema.get_field_index(self.name) < 0:
            return None
        column = source.encoded(self.name)
        if isinstance(column, Encoded):
            return column
        # Numbers that become text.
        converted = encode(pa.chunked_array([self.convert_values(column)]))
        assert isinstance(converted, Encoded)
        return converted

    def _common_labels(self, piece: Encoded) -> pa.Array:
        """The labels of one table in the common type; null if they have no place there."""
        every = piece._replace(codes=np.arange(len(piece.labels), dtype=np.int32))
        converted = self.convert_values(every.array())
        is_coded = pa.types.is_dictionary(converted.type)
        return converted.dictionary_decode() if is_coded else converted


def _distinct(parts: Iterable[ColumnPart]) -> list[ColumnPart]:
    """The parts without those that have the same list of categories as another."""
    found: dict[Any, ColumnPart] = {}
    for i, part in enumerate(parts):
        key = i if part.categories is None else (str(part.type), id(part.categories))
        found.setdefault(key, part)
    return list(found.values())


def _part(name: str, source: TableSource) -> ColumnPart:
    def pieces() -> Iterator[pa.Array]:
        for start in range(0, source.num_rows, ROWS_AT_ONCE):
            yield source.column(name, start, min(start + ROWS_AT_ONCE, source.num_rows))

    return ColumnPart(source.schema.field(name).type, source.categories.get(name), pieces)
