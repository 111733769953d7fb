"""Parquet tables, written as a stream."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage_backends.anndata_format.names import is_nullable
from storage_backends.base import INDEX, INDEX_NAME
from storage_backends.checks import alike_batches
from storage_backends.compute import arrow
from storage_backends.directory.recorder import CheckedFile
from storage_backends.errors import refused_write

if TYPE_CHECKING:
    from pyarrow import Schema, Table

ROW_GROUP = 1 << 16


def write(
    table: Table | pa.RecordBatchReader,
    columns: str,
    *,
    names: str,
    categories: str,
    only_names: str,
    create: Callable[[str], CheckedFile],
) -> tuple[int, dict[str, Any]]:
    """Write a table to its files; a table with only names is written to `columns`.

    Parameters
    ----------
    table
        Every batch of a stream has the same categories.
    columns, names, categories
        Paths of the files, as for :class:`ParquetTable`.
    only_names
        Name of the column of names in `columns` if there are no other columns.
    create
        Creates a file at a path.

    Returns
    -------
    tuple
        Number of rows, and the entry of the table in the manifest.
    """
    schema, batches = table.schema, alike_batches(columns, table)
    first = next(batches)
    main = [field for field in schema if field.name != INDEX]
    categorical = [f.name for f in main if pa.types.is_dictionary(f.type)]
    wanted = [(columns, {field.name: field.name for field in main})] if main else []
    if INDEX in schema.names:
        wanted.append((names, {INDEX: INDEX}) if main else (columns, {INDEX: only_names}))
    num_rows = 0
    with contextlib.ExitStack() as stack:
        targets = [
            stack.enter_context(_Target(create, path, renamed, first)) for path, renamed in wanted
        ]
        for batch in itertools.chain([first], batches):
            num_rows += batch.num_rows
            for target in targets:
                target.write(batch)
    if categorical:
        lists = _category_table(first, categorical)
        with (
            refused_write(categories),
            create(categories) as file,
            _writer(file, lists.schema) as writer,
        ):
            writer.write_table(lists)
    has_names = INDEX in schema.names
    index_name = (schema.metadata or {}).get(INDEX_NAME)
    return num_rows, {
        "names": has_names and bool(main),
        "categories": bool(categorical),
        "only_names": only_names if has_names and not main else None,
        "index_name": index_name.decode() if index_name is not None else None,
        # Columns that pandas holds in a nullable type.
        "nullable": [field.name for field in main if is_nullable(field)],
    }


class _Target:
    """One parquet file that takes some columns of every batch, under its own names."""

    def __init__(
        self,
        create: Callable[[str], CheckedFile],
        path: str,
        names: Mapping[str, str],
        first: pa.RecordBatch,
    ) -> None:
        self._names = names
        self._path = path
        with refused_write(path), contextlib.ExitStack() as stack:
            file = stack.enter_context(create(path))
            self._writer = stack.enter_context(_writer(file, self._project(first).schema))
            self._closing = stack.pop_all()

    def _project(self, batch: pa.RecordBatch) -> Table:
        columns = [_decode(batch.column(name)) for name in self._names]
        return pa.table(columns, names=list(self._names.values()))

    def write(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            with refused_write(self._path):
                self._writer.write_table(self._project(batch), row_group_size=ROW_GROUP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with refused_write(self._path):
            self._closing.close()


@contextlib.contextmanager
def _writer(file: CheckedFile, schema: Schema) -> Iterator[pq.ParquetWriter]:
    writer = pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)
    try:
        yield writer
    finally:
        try:
            writer.close()
        finally:
            # A failed writer would retry on garbage collection, and print the error.
            writer.is_open = False


def _decode(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def plain_type(type_: pa.DataType) -> pa.DataType:
    """The type of a column's values, whether or not they are stored as codes."""
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _category_table(batch: pa.RecordBatch, names: Sequence[str]) -> Table:
    columns, fields = [], []
    for name in names:
        column = batch.column(name)
        ends = arrow.numbers(np.array([0, len(column.dictionary)], np.int32))
        lists = pa.ListArray.from_arrays(ends, column.dictionary)
        meta = {"index": str(column.type.index_type), "ordered": str(int(column.type.ordered))}
        columns.append(lists)
        fields.append(pa.field(name, lists.type, metadata=meta))
    return pa.table(columns, schema=pa.schema(fields))
