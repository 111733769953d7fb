"""Dataframes of AnnData in Zarr groups, read as Arrow tables.

A group that ``writing`` wrote has one attribute more than AnnData's: the Arrow schema of the table
and where AnnData's encoding was not enough. Any other is read as ``scdl.sources.dataframes`` reads
those of HDF5. Source: anndata's on-disk format specification.
"""

from __future__ import annotations

import base64
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import zarr

from storage_backends.anndata_format.nulls import is_for_nulls
from storage_backends.base import INDEX, INDEX_NAME, NULLABLE
from storage_backends.checks import check_rows
from storage_backends.errors import ArchiveFormatError, ScdlError, one_line
from storage_backends.zarr.tables import text as text_chunks

if TYPE_CHECKING:
    import pyarrow as pa

#: Attribute of the groups that we wrote.
ATTRIBUTE = "scdl_table"
#: Where stores of old releases have categories.
_CATEGORIES = "__categories"
#: Rows of one chunk of what is read, which bounds the text in it.
_PIECE = 1 << 20


class _Column(NamedTuple):
    """How to read rows [start, stop) of a column."""

    type: pa.DataType
    length: int
    read: Callable[[int, int], pa.Array]
    nullable: bool = False


class ZarrTable:
    """A dataframe element in a Zarr group.

    Parameters
    ----------
    where
        Opens the message of an error: ``PATH: the table obs``.
    group
        The group of the dataframe.

    Attributes
    ----------
    num_rows
        Rows, from metadata.
    schema
        Names and types of the columns; its metadata may have the ``index_name``.
    unread
        Columns of encodings that are not known, which are left out.
    """

    num_rows: int
    schema: pa.Schema
    unread: Sequence[str]

    def __init__(self, where: str, group: zarr.Group) -> None:
        self._where = where
        self._group = group
        self._opened: dict[str, _Column] = {}
        #: Of what we wrote: where columns lie that AnnData does not know by their names, and nulls
        #: that it does not know at all.
        self._paths: Mapping[str, str] = {}
        self._nulls: Mapping[str, str] = {}
        self.unread = []
        attrs = group.attrs.asdict()
        if ATTRIBUTE in attrs:
            self._open_ours(attrs[ATTRIBUTE])
        else:
            self._open_foreign(attrs)

    def _open_ours(self, ours: Any) -> None:
        import pyarrow as pa

        try:
            serialized = base64.b64decode(ours["schema"], validate=True)
            self.schema = pa.ipc.read_schema(pa.py_buffer(serialized))
            # Names are decoded only when they are asked for.
            assert self.schema.names is not None
            self.num_rows = int(ours["num_rows"])
            self._paths, self._nulls = dict(ours["paths"]), dict(ours["nulls"])
        except Exception as error:
            raise ArchiveFormatError(
                f"{self._where}: its attribute {ATTRIBUTE!r} is damaged ({one_line(error)})"
            ) from error

    def _open_foreign(self, attrs: Mapping[str, Any]) -> None:
        import pyarrow as pa

        index = str(attrs.get("_index", INDEX))
        names = self._find(index, foreign=True)
        if names is None:
            raise ArchiveFormatError(
                f"{self._where}: its index {index!r} is no column of text or numbers"
            )
        self.num_rows = names.length
        self._opened[INDEX] = _as_text(names)
        unread = []
        for name in map(str, self._listed(attrs, index)):
            column = None
            if name not in self._opened:
                column = self._unless_unread(name)
            if column is None:
                unread.append(name)
            else:
                self._opened[name] = self._checked(name, column)
        self.unread = unread
        self.schema = pa.schema(
            [
                pa.field(name, column.type, metadata=NULLABLE if column.nullable else None)
                for name, column in self._opened.items()
            ],
            metadata=None if index == INDEX else {INDEX_NAME: index},
        )

    def _listed(self, attrs: Mapping[str, Any], index: str) -> Sequence[str]:
        """Names of columns; all that there is where nothing says so."""
        if "column-order" in attrs:
            return list(attrs["column-order"])
        with self._readable(index):
            return sorted(name for name in self._group if name not in (index, _CATEGORIES))

    def _unless_unread(self, name: str) -> _Column | None:
        """A column; None where it is missing, or of a type or encoding that is not known."""
        try:
            return self._find(name, foreign=True)
        except ArchiveFormatError:
            return None

    def read(self, columns: Sequence[str] | None, start: int, stop: int | None) -> pa.Table:
        """Rows ``[start, stop)`` of some columns, as ``ArrayStore.read_table`` gives them."""
        import pyarrow as pa

        known = self.schema.names
        wanted = known if columns is None else list(columns)
        stop = check_rows(self._where, self.num_rows, start, stop, names=known, columns=wanted)
        # The first column counts the rows of a table without columns.
        rows = pa.table({"": pa.nulls(stop - start)}, metadata=self.schema.metadata)
        for name in wanted:
            rows = rows.append_column(self.schema.field(name), self._read(name, start, stop))
        return rows.select(range(1, rows.num_columns))

    def _read(self, name: str, start: int, stop: int) -> pa.ChunkedArray:
        import pyarrow as pa

        if name not in self._opened:
            self._opened[name] = self._open(name)
        column = self._opened[name]
        with self._readable(name):
            pieces = [
                column.read(first, min(first + _PIECE, stop))
                for first in range(start, max(stop, start + 1), _PIECE)
            ]
            return pa.chunked_array(pieces, column.type)

    def _open(self, name: str) -> _Column:
        """A column that we wrote."""
        column = self._find(self._paths.get(name, name))
        if column is not None and name in self._nulls:
            with self._readable(name):
                column = _masked(column, self._find(self._nulls[name]))
        type_ = self.schema.field(name).type
        if column is None or column.type != stand_in(type_):
            raise ArchiveFormatError(
                f"{self._where}: column {name!r} should be {type_}, but is stored as "
                f"{column.type if column else 'something else'}"
            )
        column = self._checked(name, column)
        return _Column(type_, column.length, lambda a, b: _restore(column.read(a, b), type_))

    def _find(self, path: str, *, foreign: bool = False) -> _Column | None:
        with self._readable(path):
            return _column(self._group, path, foreign=foreign)

    def _checked(self, name: str, column: _Column) -> _Column:
        if column.length != self.num_rows:
            raise ArchiveFormatError(
                f"{self._where}: column {name!r} has {column.length} rows, expected {self.num_rows}"
            )
        return column

    @contextlib.contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        try:
            yield
        except (ScdlError, OSError):
            # What the system or a store says is not about these bytes.
            raise
        except Exception as error:
            raise ArchiveFormatError(
                f"{self._where}: column {name!r:.200} cannot be read ({one_line(error)})"
            ) from error


def stand_in(type_: pa.DataType) -> pa.DataType | None:
    """The type that AnnData has an encoding of, and which values of `type_` are stored as."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(type_):
        values = stand_in(type_.value_type)
        return None if values is None else pa.dictionary(pa.int32(), values, ordered=type_.ordered)
    if types.is_boolean(type_) or types.is_integer(type_) or types.is_floating(type_):
        return type_
    if str(type_) in ("string", "large_string", "string_view"):
        return pa.large_string()
    if types.is_null(type_):
        return pa.bool_()
    if types.is_temporal(type_):
        return {32: pa.int32(), 64: pa.int64()}.get(type_.bit_width)
    return None


def _restore(array: pa.Array, type_: pa.DataType) -> pa.Array:
    """Give values, stored as the stand-in of `type_`, that type again."""
    import pyarrow as pa

    if array.type == type_:
        return array
    if pa.types.is_dictionary(type_):
        return pa.DictionaryArray.from_arrays(
            array.indices.cast(type_.index_type),
            _restore(array.dictionary, type_.value_type),
            ordered=type_.ordered,
        )
    if pa.types.is_null(type_):
        return pa.nulls(len(array))
    return array.cast(type_) if pa.types.is_large_string(array.type) else array.view(type_)


def _column(group: zarr.Group, path: str, *, foreign: bool = False) -> _Column | None:
    """How to read a column; None for an encoding that is not known.

    Those that we wrote keep categories as they were, others get them as pandas has them.
    """
    element = group.get(path)
    if element is None:
        raise ValueError(f"there is no {path!r} in {group.name!r}")
    if isinstance(element, zarr.Array):
        # Dataframes of version 0.1.0 had their categories in a group of their own.
        reference = element.attrs.get("categories")
        if not isinstance(reference, str):
            return _plain(element)
        ordered = bool(group[reference].attrs.get("ordered", False))
        return _coded(_plain(element), _column(group, reference), ordered, foreign=foreign)
    encoding = str(element.attrs.get("encoding-type", ""))
    if encoding == "categorical":
        ordered = bool(element.attrs.get("ordered", False))
        codes, categories = _column(element, "codes"), _column(element, "categories")
        return _coded(codes, categories, ordered, foreign=foreign)
    if encoding.startswith("nullable-"):
        nullable = is_for_nulls(element.attrs.get("na-value"))
        values, mask = _column(element, "values"), _column(element, "mask")
        return _masked(values, mask, nullable=nullable)
    return None


def _plain(array: zarr.Array[Any]) -> _Column | None:
    """Numbers or text."""
    import pyarrow as pa

    if array.ndim != 1:
        return None
    length = array.shape[0]
    if array.dtype.kind in "biuf" and array.dtype.itemsize <= 8:
        native = array.dtype.newbyteorder("=")
        type_ = pa.from_numpy_dtype(native)
        return _Column(
            type_,
            length,
            lambda start, stop: pa.array(np.ascontiguousarray(array[start:stop], native), type_),
        )
    if array.dtype.kind in "OSTU":
        return _Column(pa.large_string(), length, text_chunks.reader(array))
    return None


def _coded(
    codes: _Column | None, categories: _Column | None, ordered: bool, *, foreign: bool
) -> _Column | None:
    """A categorical column; codes below 0 are nulls."""
    import pyarrow as pa

    if codes is None or categories is None or not pa.types.is_integer(codes.type):
        return None
    n_categories = categories.length

    @functools.cache
    def coder() -> Callable[[pa.Array], pa.DictionaryArray]:
        values = categories.read(0, n_categories)
        if foreign:
            from storage_backends.compute import arrow

            return arrow.coder(values, ordered=ordered)
        return lambda codes: pa.DictionaryArray.from_arrays(codes, values, ordered=ordered)

    def coded(start: int, stop: int) -> pa.Array:
        part = codes.read(start, stop).to_numpy(zero_copy_only=False).astype(np.int64)
        if len(part) and (part.min() < -1 or part.max() >= n_categories):
            raise ValueError(
                f"there are {n_categories} categories, but codes run from {part.min()} to "
                f"{part.max()}"
            )
        indices = pa.array(part, pa.int32(), mask=part < 0)
        return coder()(indices)

    type_ = pa.dictionary(pa.int32(), categories.type, ordered=ordered)
    return _Column(type_, codes.length, coded)


def _masked(
    values: _Column | None, mask: _Column | None, *, nullable: bool = True
) -> _Column | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    if values is None or mask is None:
        return None
    if mask.length != values.length:
        raise ValueError(f"there are {values.length} values, but {mask.length} tell nulls")

    def masked(start: int, stop: int) -> pa.Array:
        absent = mask.read(start, stop).cast(pa.bool_())
        return pc.if_else(absent, pa.scalar(None, values.type), values.read(start, stop))

    return _Column(values.type, values.length, masked, nullable=nullable)


def _as_text(column: _Column) -> _Column:
    import pyarrow as pa

    from storage_backends.compute import uniting

    def text(start: int, stop: int) -> pa.Array:
        part = column.read(start, stop)
        part = part.dictionary_decode() if pa.types.is_dictionary(part.type) else part
        return uniting.cast(part, pa.large_string())

    return _Column(pa.large_string(), column.length, text)
