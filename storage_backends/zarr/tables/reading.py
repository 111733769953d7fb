"""Dataframes of AnnData in Zarr groups, read as Arrow tables.

Groups written by ``writing`` have an additional attribute with the Arrow schema of the table and
the paths of data that AnnData's encoding cannot represent.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import zarr

from storage_backends.anndata_format import dataframes
from storage_backends.anndata_format.dataframes import Column, FrameReader
from storage_backends.checks import check_rows
from storage_backends.compute import arrow
from storage_backends.errors import ArchiveFormatError, ScdlError, one_line
from storage_backends.zarr.tables import text

#: Attribute of groups written by scdl.
ATTRIBUTE = "scdl_table"
#: Maximum rows per chunk of a table that is read, which bounds the size of its text.
_PIECE = 1 << 20


class ZarrTable:
    """A dataframe element in a Zarr group.

    Parameters
    ----------
    where
        Start of error messages, such as ``PATH: the table obs``.
    group
        The group of the dataframe.

    Attributes
    ----------
    num_rows
        Rows, from metadata.
    schema
        Names and types of the columns; its metadata may have the ``index_name``.
    unread
        Columns of unknown encodings, which are omitted.
    """

    num_rows: int
    schema: pa.Schema
    unread: Sequence[str]

    def __init__(self, where: str, group: zarr.Group) -> None:
        self._where = where
        self._reader = _ZarrFrame(where, group)
        self._opened: dict[str, Column] = {}
        #: In groups written by scdl: paths of columns stored outside AnnData's layout, and
        #: paths of null masks that AnnData does not support.
        self._paths: Mapping[str, str] = {}
        self._nulls: Mapping[str, str] = {}
        self.unread = []
        attrs = group.attrs.asdict()
        if ATTRIBUTE in attrs:
            self._open_scdl(attrs[ATTRIBUTE])
        else:
            self._opened, self.unread = self._reader.columns(attrs)
            columns = list(self._opened.items())
            self.num_rows = columns[0][1].length
            self.schema = dataframes.schema_of(columns, self._reader.index_name(attrs))

    def _open_scdl(self, attribute: Any) -> None:
        try:
            serialized = base64.b64decode(attribute["schema"], validate=True)
            self.schema = pa.ipc.read_schema(pa.py_buffer(serialized))
            # Accessing the names forces their decoding, which may fail.
            assert self.schema.names is not None
            self.num_rows = int(attribute["num_rows"])
            self._paths, self._nulls = dict(attribute["paths"]), dict(attribute["nulls"])
            self._reader.are_distinct = True
        except Exception as error:
            raise ArchiveFormatError(
                f"{self._where}: its attribute {ATTRIBUTE!r} is damaged ({one_line(error)})"
            ) from error

    def read(self, columns: Sequence[str] | None, start: int, stop: int | None) -> pa.Table:
        """Rows ``[start, stop)`` of some columns, as ``ArrayStore.read_table`` returns them."""
        known = self.schema.names
        wanted = known if columns is None else list(columns)
        stop = check_rows(self._where, self.num_rows, start, stop, names=known, columns=wanted)
        # The first column counts the rows of a table without columns.
        rows = pa.table({"": pa.nulls(stop - start)}, metadata=self.schema.metadata)
        for name in wanted:
            rows = rows.append_column(self.schema.field(name), self._read(name, start, stop))
        return rows.select(range(1, rows.num_columns))

    def _read(self, name: str, start: int, stop: int) -> pa.ChunkedArray:
        if name not in self._opened:
            self._opened[name] = self._open(name)
        column = self._opened[name]
        with _readable(self._where, name):
            pieces = [
                column.read(first, min(first + _PIECE, stop))
                for first in range(start, max(stop, start + 1), _PIECE)
            ]
            return pa.chunked_array(pieces, column.type)

    def _open(self, name: str) -> Column:
        """Open a column written by scdl."""
        with _readable(self._where, name):
            column = self._reader.find(self._paths.get(name, name))
            if name in self._nulls:
                column = dataframes.masked(column, self._reader.find(self._nulls[name]))
        type_ = self.schema.field(name).type
        if column is None or column.type != _stored_as(type_):
            raise ArchiveFormatError(
                f"{self._where}: column {name!r} should be {type_}, but is "
                f"{column.type if column else 'missing, or of another encoding'}"
            )
        if column.length != self.num_rows:
            raise ArchiveFormatError(
                f"{self._where}: column {name!r} has {column.length} rows, expected {self.num_rows}"
            )
        return Column(type_, column.length, lambda a, b: _restored(column.read(a, b), type_))


class _ZarrFrame(FrameReader):
    """Elements of a Zarr group."""

    error = unreadable = ArchiveFormatError

    def find(self, path: str) -> Column | None:
        with _readable(self.where, path):
            return super().find(path)

    def member(self, path: str) -> Any:
        return self.group.get(path)

    def text(self, array: zarr.Array[Any]) -> Column | None:
        if array.dtype.kind not in "OSTU":
            return None
        return Column(pa.large_string(), array.shape[0], text.reader(array))

    def old_categories(self, codes: zarr.Array[Any]) -> Any:
        path = codes.attrs.get("categories")
        return self.member(path) if isinstance(path, str) else None


def _stored_as(type_: pa.DataType) -> pa.DataType | None:
    """The type as which values are stored; all text has one type.

    Archives of earlier releases also have times stored as integers, and null columns as booleans.
    """
    types = pa.types
    if types.is_dictionary(type_):
        values = _stored_as(type_.value_type)
        return values and pa.dictionary(pa.int32(), arrow.category_type(values), type_.ordered)
    if arrow.is_text(type_):
        return pa.large_string()
    if types.is_null(type_):
        return pa.bool_()
    if types.is_temporal(type_):
        return {32: pa.int32(), 64: pa.int64()}.get(type_.bit_width)
    return type_


def _restored(array: pa.Array, type_: pa.DataType) -> pa.Array:
    """Convert stored values to their original type."""
    if array.type == type_:
        return array
    if pa.types.is_dictionary(type_):
        codes = array.indices.cast(type_.index_type)
        categories = _restored(array.dictionary, type_.value_type)
        return pa.DictionaryArray.from_arrays(codes, categories, ordered=type_.ordered)
    if pa.types.is_null(type_):
        return pa.nulls(len(array))
    return array.view(type_) if pa.types.is_temporal(type_) else array.cast(type_)


@contextlib.contextmanager
def _readable(where: str, name: str) -> Iterator[None]:
    """Add the location to errors of unreadable columns."""
    try:
        yield
    except (ScdlError, OSError):
        # Errors of the system or a store do not concern the content of the column.
        raise
    except Exception as error:
        raise ArchiveFormatError(
            f"{where}: column {name!r:.200} cannot be read ({one_line(error)})"
        ) from error
