"""Tables of several origins as one, in bounded memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scdl.errors import CastError
from scdl.genes import space_key
from scdl.schema import INDEX, NULLABLE, Block, var_table
from storage_backends import arrow
from storage_backends.base import ArrayStore, ArrayWriter, is_nullable
from storage_backends.errors import one_line

ROWS_AT_ONCE = 1 << 16


class TableSource(ABC):
    """A table that is read in batches of rows.

    Attributes
    ----------
    num_rows
        Rows.
    schema
        Names and types; categorical columns have dictionary types.
    categories
        Categories of each categorical column.
    """

    num_rows: int
    schema: pa.Schema
    categories: Mapping[str, pa.Array]

    @abstractmethod
    def read(self, start: int, stop: int) -> pa.RecordBatch:
        """Rows ``[start, stop)`` of all columns."""


class StoredTable(TableSource):
    """Rows ``[start, stop)`` of a table of an archive: all columns, or those of some names."""

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


def read_batch(
    store: ArrayStore, name: str, columns: Sequence[str] | None, start: int, stop: int
) -> pa.RecordBatch:
    """Rows ``[start, stop)`` of some columns of a stored table (default: all) as one batch."""
    if columns is not None and not columns:
        return NoTable(stop - start).read(0, stop - start)
    table = store.read_table(name, columns, start, stop).combine_chunks()
    return pa.RecordBatch.from_arrays(
        [column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)
         for column in table.columns],
        schema=table.schema,
    )  # fmt: skip


class NoTable(TableSource):
    """What stands for a table that is not there: rows without columns."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.schema = pa.schema([])
        self.categories = {}

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([pa.nulls(stop - start)], [""])


def united(sources: Sequence[TableSource]) -> pa.RecordBatchReader:
    """The rows of all tables, with the columns of all.

    Where a table lacks a column its rows are null; categorical columns get the categories of all
    tables, in the order they are met; they stay ordered where one table has all categories, in the
    order of every other; types that differ become one that holds both, at worst text.
    """
    names = list(dict.fromkeys(name for source in sources for name in source.schema.names))
    names.sort(key=lambda name: name != INDEX)
    columns = [_United(name, sources) for name in names]
    metadata = [source.schema.metadata for source in sources]
    # What the index is called, where all agree.
    agreed = metadata[0] if all(m == metadata[0] for m in metadata) else None
    schema = pa.schema([column.field for column in columns], agreed)

    def batches() -> Iterator[pa.RecordBatch]:
        for source in sources:
            for start in range(0, source.num_rows, ROWS_AT_ONCE):
                batch = source.read(start, min(start + ROWS_AT_ONCE, source.num_rows))
                arrays = [column.convert(batch) for column in columns]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        # A reader of no rows still learns the categories.
        yield pa.RecordBatch.from_arrays([column.empty() for column in columns], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


class VarBlocks(NamedTuple):
    """Feature blocks that were written.

    Attributes
    ----------
    blocks
        The blocks, of parts with the same table one.
    differing
        Columns of var that blocks of one gene space do not share, in the order they are met.
    """

    blocks: tuple[Block, ...]
    differing: tuple[str, ...]


def write_var(writer: ArrayWriter, parts: Iterable[tuple[pa.Table, int, str | None]]) -> VarBlocks:
    """Write var tables, one for every run of parts with the same table.

    Parameters
    ----------
    parts
        Of each its var table, number of cells and label.
    """
    blocks: list[Block] = []
    spaces = _Spaces()
    previous: pa.Table | None = None
    stop = 0
    for table, n_obs, label in parts:
        stop += n_obs
        if previous is not None and _is_same(table, previous):
            blocks[-1] = replace(blocks[-1], stop=stop)
            continue
        writer.write_table(var_table(len(blocks)), table)
        blocks.append(Block(stop, table.num_rows, label, spaces.add(table)))
        previous = table
    return VarBlocks(tuple(blocks), tuple(spaces.differing))


def _is_same(table: pa.Table, other: pa.Table) -> bool:
    """Whether two tables have the same columns in the same order, and call their index alike."""
    return bool(table.schema.equals(other.schema)) and all(
        arrow.same(table[name], other[name]) for name in table.schema.names
    )


class _Spaces:
    """Gene spaces of var tables, and the columns in which tables of one gene space differ."""

    def __init__(self) -> None:
        self._shared: dict[str, tuple[int, pa.Table]] = {}
        #: Used as an ordered set.
        self.differing: dict[str, None] = {}

    def add(self, table: pa.Table) -> int:
        """The number of a table's gene space."""
        key = space_key(table)
        number, known = self._shared.get(key, (len(self._shared), table))
        shared = arrow.shared_columns([known, table])
        self._shared[key] = number, shared
        kept = {*shared.schema.names}
        names = [*known.schema.names, *table.schema.names]
        self.differing |= dict.fromkeys(name for name in names if name not in kept)
        return number


def alike(
    sources: Sequence[TableSource], names: Sequence[str]
) -> Callable[[pa.RecordBatch], list[pa.Array]]:
    """What makes of rows of any of some tables columns of types that hold those of all."""
    columns = [_United(name, sources) for name in names]
    return lambda batch: [column.convert(batch) for column in columns]


class _United:
    """One column over several tables."""

    def __init__(self, name: str, sources: Sequence[TableSource]) -> None:
        self.name = name
        having = [source for source in sources if name in source.schema.names]
        fields = [source.schema.field(name) for source in having]
        types = [field.type for field in fields]
        self._nullable = any(is_nullable(field) for field in fields)
        self.type: pa.DataType
        self._categories: pa.Array | None = None
        if not all(pa.types.is_dictionary(type_) for type_ in types):
            self.type = _common_type([_plain(type_) for type_ in types])
            return
        values = _common_type([type_.value_type for type_ in types])
        lists = [_cast(source.categories[name], values, name) for source in having]
        longest = max(lists, key=len)
        # An order is kept where one table has all categories, and the others some in that order.
        ordered = all(t.ordered for t in types) and all(_is_in_order(c, longest) for c in lists)
        self._categories = longest if ordered else pc.unique(pa.concat_arrays(lists))
        self.type = pa.dictionary(pa.int32(), values, ordered)

    @property
    def field(self) -> pa.Field:
        """Name and type."""
        return pa.field(self.name, self.type, metadata=NULLABLE if self._nullable else None)

    def convert(self, batch: pa.RecordBatch) -> pa.Array:
        if self.name not in batch.schema.names:
            if self._categories is None:
                return pa.nulls(batch.num_rows, self.type)
            return self._coded(pa.nulls(batch.num_rows, pa.int32()))
        column = batch.column(self.name)
        if self._categories is None:
            column = column.dictionary_decode() if _plain(column.type) != column.type else column
            return _cast(column, self.type, self.name)
        dictionary = _cast(column.dictionary, self._categories.type, self.name)
        positions = pc.index_in(dictionary, self._categories)
        return self._coded(positions.take(column.indices))

    def empty(self) -> pa.Array:
        if self._categories is None:
            return pa.nulls(0, self.type)
        return self._coded(pa.nulls(0, pa.int32()))

    def _coded(self, codes: pa.Array) -> pa.Array:
        return pa.DictionaryArray.from_arrays(codes, self._categories, ordered=self.type.ordered)


def _is_in_order(some: pa.Array, of: pa.Array) -> bool:
    """Whether categories are among others, in the order of those."""
    places = pc.index_in(some, of)
    return not places.null_count and bool((np.diff(places.to_numpy()) > 0).all())


def _cast(values: pa.Array, type_: pa.DataType, name: str) -> pa.Array:
    try:
        return values.cast(type_)
    except pa.ArrowInvalid as error:
        raise CastError(
            f"column {name!r} is {values.type} in one table and {type_} in another, which does not "
            f"hold all of its values ({one_line(error)}); make the types alike"
        ) from error


def _plain(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _common_type(types: Sequence[pa.DataType]) -> pa.DataType:
    try:
        fields = [pa.schema([pa.field("x", type_)]) for type_ in types]
        return pa.unify_schemas(fields, promote_options="permissive").field("x").type
    except pa.ArrowTypeError:
        return pa.large_string()
