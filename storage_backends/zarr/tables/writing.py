"""Arrow tables written as dataframes of AnnData in Zarr groups, block by block.

AnnData finds every column under its name and in its encoding. Data that AnnData cannot represent
(names that are not valid keys, nulls of floats, row names that are not text) is in a group that
AnnData ignores, and an attribute records its paths for ``reading``.

Source: anndata's on-disk format specification.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from zarr.dtype import VariableLengthUTF8

from storage_backends.anndata_format import names
from storage_backends.anndata_format.names import encoding, is_nullable
from storage_backends.base import INDEX, INDEX_NAME, NULLABLE
from storage_backends.checks import alike_batches, check_columns
from storage_backends.compute import arrow
from storage_backends.errors import refused_write
from storage_backends.zarr import layout
from storage_backends.zarr.tables.columns import ColumnWriter
from storage_backends.zarr.tables.reading import ATTRIBUTE

#: The column of row names.
_NAMES = pa.field(INDEX, pa.large_string())
#: Rows per chunk; a table with fewer rows has one chunk of its length.
_ROWS = 1 << 16
#: Maximum bytes of a key that is a file name, with room for suffixes that stores append.
_LONGEST_KEY = 200


def write(group: zarr.Group, name: str, table: pa.Table | pa.RecordBatchReader) -> int:
    """Write a table, whole or as a stream, as the new dataframe `name` of a group.

    Parameters
    ----------
    group
        Group of Zarr format 3.
    name
        Key of the dataframe in the group.
    table
        A stream is written in blocks; every batch has the same categories. A table without row
        names gets row numbers, which only AnnData sees.

    Returns
    -------
    int
        Number of rows written.

    Raises
    ------
    OutputError
        Names of columns repeat, a type cannot be stored, categories of batches differ, or text is
        too long.
    ArchiveWriteError
        The operating system refuses the write.
    """
    where = _where(group, name)
    check_columns(where, table.schema)
    with refused_write(where):
        frame = _Frame(where, group.create_group(name), table.schema)
    # Errors raised by the stream itself are not write errors.
    for block in _blocks(map(frame.encode, alike_batches(where, table)), _ROWS):
        with refused_write(where):
            frame.write(block)
    with refused_write(where):
        frame.finish()
    return frame.num_rows


def can_extend(group: zarr.Group, name: str) -> bool:
    """Whether a dataframe that :func:`write` wrote has chunks of the size of a long table."""
    attribute = group[name].attrs.asdict().get(ATTRIBUTE)
    return isinstance(attribute, dict) and int(attribute["num_rows"]) >= _ROWS


def extend(group: zarr.Group, name: str, table: pa.RecordBatchReader) -> int:
    """Add rows to a dataframe that :func:`write` wrote, if it can be extended.

    Parameters
    ----------
    table
        New rows with the schema of the dataframe. Categories are those of the dataframe, and may
        have further ones at the end.

    Returns
    -------
    int
        Number of rows afterwards.
    """
    where = _where(group, name)
    with refused_write(where):
        dataframe = group[name]
        assert isinstance(dataframe, zarr.Group)
        frame = _Frame(where, dataframe, table.schema)
        frame.resume()
    first = _ROWS - frame.num_rows % _ROWS
    for block in _blocks(map(frame.encode, alike_batches(where, table)), first):
        with refused_write(where):
            frame.write(block)
    with refused_write(where):
        frame.finish()
    return frame.num_rows


def _where(group: zarr.Group, name: str) -> str:
    # The path of a recording store has the prefix of a wrapped store.
    return f"{group.store_path}/{name}".removeprefix("wrapping-").removeprefix("file://")


def _blocks(batches: Iterable[pa.RecordBatch], missing: int) -> Iterator[pa.RecordBatch]:
    """Re-slice batches so that every chunk is written once; the last may be empty.

    `missing` is the number of rows of the first block.
    """
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        while batch.num_rows >= missing:
            yield _joined([*pending, batch.slice(0, missing)])
            batch, pending, missing = batch.slice(missing), [], _ROWS
        pending.append(batch)
        missing -= batch.num_rows
    yield _joined(pending)


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    table = pa.Table.from_batches(batches)
    # An empty table would give no batches.
    columns = [column.combine_chunks() for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)


class _Frame:
    """The group of a dataframe, and the paths of its columns."""

    def __init__(self, where: str, group: zarr.Group, schema: pa.Schema) -> None:
        self.where = where
        self.group = group
        self.num_rows = 0
        self._schema = schema
        name = (schema.metadata or {}).get(INDEX_NAME)
        self._index_name = None if name is None else name.decode()
        #: Group that AnnData ignores.
        self._unseen = "scdl"
        while self._unseen in (*schema.names, self._index_name):
            self._unseen += "_"
        # As in AnnData, the index is stored under its name unless a column has that name.
        free = self._index_name not in schema.names and _is_key(self._index_name or "")
        self._index = self._index_name if self._index_name and free else INDEX
        #: Columns of the table, and row numbers as the index if it has none.
        self._columns = [self._column(i, field) for i, field in enumerate(schema)]
        if not any(column.path == self._index for column in self._columns):
            self._columns.append(ColumnWriter(self, _NAMES, self._index, f"{self._unseen}/names"))

    def _column(self, i: int, field: pa.Field) -> ColumnWriter:
        path = self._index if field.name == INDEX else field.name
        seen = arrow.is_text(field.type) if field.name == INDEX else _is_key(field.name)
        nulls = f"{self._unseen}/{i}-nulls"
        return ColumnWriter(self, field, path if seen else f"{self._unseen}/{i}", nulls)

    def resume(self) -> None:
        """Continue a dataframe that was written before."""
        attribute: Any = self.group.attrs[ATTRIBUTE]
        self.num_rows = int(attribute["num_rows"])
        for column in self._columns:
            column.resume()

    def encode(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Convert a batch to the stored types."""
        arrays = batch.columns
        if len(arrays) < len(self._columns):
            arrays.append(arrow.numbers(np.arange(batch.num_rows) + self.num_rows))
        self.num_rows += batch.num_rows
        arrays = [column.encode(a) for column, a in zip(self._columns, arrays, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, names=[str(i) for i in range(len(arrays))])

    def write(self, block: pa.RecordBatch) -> None:
        """Append the result of :meth:`encode`; the first block has the length of a chunk."""
        for column, part in zip(self._columns, block.columns, strict=True):
            column.write(part)

    def array(self, path: str, type_: pa.DataType, chunk: int) -> zarr.Array[Any]:
        """Create an empty array for values of a type, in chunks of `chunk` values."""
        dtype: Any = VariableLengthUTF8() if arrow.is_text(type_) else type_.to_pandas_dtype()
        return self.group.create_array(
            path,
            shape=(0,),
            chunks=(max(chunk, 1),),
            dtype=dtype,
            attributes=encoding("string-array" if arrow.is_text(type_) else "array"),
            compressors=layout.CHECKED,
            # Chunks of zeros are written too, so that a missing chunk can be detected.
            config={"write_empty_chunks": True},
        )

    def finish(self) -> None:
        """Write the attributes."""
        fields = [
            field.with_metadata(NULLABLE) if is_nullable(field) else field.remove_metadata()
            for field in self._schema
        ]
        metadata = {INDEX_NAME: self._index_name} if self._index_name is not None else None
        schema = pa.schema(fields, metadata=metadata).serialize().to_pybytes()
        columns = self._columns[: len(fields)]
        attribute = {
            "schema": base64.b64encode(schema).decode(),
            "num_rows": self.num_rows,
            "paths": {c.name: c.path for c in columns if c.path != c.name},
            "nulls": {c.name: c.nulls for c in columns if c.has_unseen_nulls},
        }
        order = [c.path for c in columns if "/" not in c.path and c.path != self._index]
        more = {names.INDEX_NAMED: self._index, names.COLUMN_ORDER: order, ATTRIBUTE: attribute}
        self.group.attrs.update(encoding("dataframe", **more))


def _is_key(name: str) -> bool:
    """Whether a column can be stored under its name."""
    return (
        name not in ("", ".", "..", "zarr.json")
        and not {"/", "\\", "\0"} & set(name)
        and len(name.encode()) <= _LONGEST_KEY
    )
