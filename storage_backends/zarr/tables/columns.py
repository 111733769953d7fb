"""Columns of tables, written as arrays and groups that AnnData reads."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zarr
from numpy.typing import NDArray

from storage_backends.anndata_format import names
from storage_backends.anndata_format.names import encoding, is_nullable
from storage_backends.compute import arrow
from storage_backends.compute.claims import FREE_BYTES
from storage_backends.errors import OutputError
from storage_backends.zarr.tables.text import LENGTH_BYTES

#: Maximum bytes of text per chunk, unless a string is longer than those of the first rows.
_TEXT_BYTES = FREE_BYTES >> 2


class Frame(Protocol):
    """The group of a dataframe."""

    where: str
    group: zarr.Group

    def array(self, path: str, type_: pa.DataType, chunk: int) -> zarr.Array[Any]:
        """Create an empty array for values of a type, in chunks of `chunk` values."""


class ColumnWriter:
    """Writes one column: values, and a null mask from the first null on.

    Parameters
    ----------
    frame
        The dataframe.
    field
        Name and type.
    path
        Path of the column in the group of the dataframe.
    nulls
        Path of nulls that AnnData cannot represent.
    """

    def __init__(self, frame: Frame, field: pa.Field, path: str, nulls: str) -> None:
        self.name, self.path, self.nulls = field.name, path, nulls
        self._frame, self._type = frame, field.type
        self._is_categorical = pa.types.is_dictionary(field.type)
        self._nullable = is_nullable(field) and not self._is_categorical
        self._is_text = arrow.is_text(field.type)
        #: Type of the result of :meth:`encode`.
        self._stored = pa.large_string() if self._is_text else field.type
        if self._is_categorical:
            self._stored = _code_type(field.type.index_type)
        #: Maps categories of the table to those of the column, once they are known.
        self._coder: arrow.Coder | None = None
        self._values: zarr.Array[Any] | None = None
        self._mask: zarr.Array[Any] | None = None

    def resume(self) -> None:
        """Continue a column that was written before."""
        group, path = self._frame.group, self.path
        parts = {"codes": None, "values": "mask"}
        node = group[path]
        if isinstance(node, zarr.Group):
            part = next(part for part in parts if part in node)
            self._values = _array(group, f"{path}/{part}")
            mask = parts[part] and f"{path}/{parts[part]}"
        else:
            self._values, mask = node, self.nulls if self.nulls in group else None
        self._mask = _array(group, mask) if mask else None

    def _add_categories(self, values: pa.Array) -> None:
        """Write a longer list of categories, if the stored one is shorter."""
        group, path = self._frame.group, f"{self.path}/categories"
        if len(values) > _array(group, path).shape[0]:
            del group[path]
            self._write_categories(values)

    @property
    def has_unseen_nulls(self) -> bool:
        """Whether there are nulls among floats, which AnnData reads as NaN."""
        return self._mask is not None and pa.types.is_floating(self._stored)

    def encode(self, array: pa.Array) -> pa.Array:
        """Convert values to the stored type; categories become codes, with -1 for a null."""
        if not self._is_categorical:
            return array.cast(self._stored)
        if self._coder is None:
            self._coder = arrow.Coder(array.dictionary)
            if self._values is not None:
                self._add_categories(self._coder.values)
        return self._coder.codes(array.indices).cast(self._stored).fill_null(-1)

    def write(self, part: pa.Array) -> None:
        """Append the result of :meth:`encode`; the first part has the length of a chunk."""
        if self._values is None:
            self._values = self._begin(self._chunk_of(part))
        self._check_text(part, self._values.chunks[0])
        if (part.null_count or self._nullable) and self._mask is None:
            self._values, self._mask = self._begin_mask(self._values)
        _append(self._values, _to_numpy(part))
        if self._mask is not None:
            _append(self._mask, _to_numpy(part.is_null()))

    def _chunk_of(self, part: pa.Array) -> int:
        """Rows of a chunk; fewer for long text, so that readers accept its decoded size."""
        if not self._is_text or not len(part):
            return len(part)
        most = max(_TEXT_BYTES // int(_text_sizes(part).max()), 1)
        # Parts consist of whole chunks.
        return min(len(part), 1 << most.bit_length() - 1)

    def _check_text(self, part: pa.Array, chunk: int) -> None:
        """Raise OutputError for text too long to be read back."""
        if self._is_text and len(part):
            sizes = np.add.reduceat(_text_sizes(part), np.arange(0, len(part), chunk))
            if sizes.max() > FREE_BYTES:
                raise OutputError(
                    f"{self._frame.where}: column {self.name!r} has {sizes.max():,} bytes of text "
                    f"in {chunk:,} rows, more than the maximum of {FREE_BYTES:,}; "
                    "shorten it, or leave the column out"
                )

    def _begin(self, chunk: int) -> zarr.Array[Any]:
        if not self._is_categorical:
            return self._frame.array(self.path, self._stored, chunk)
        assert self._coder is not None
        attributes = encoding("categorical", ordered=self._type.ordered)
        self._frame.group.create_group(self.path, attributes=attributes)
        self._write_categories(self._coder.values)
        return self._frame.array(f"{self.path}/codes", self._stored, chunk)

    def _write_categories(self, values: pa.Array) -> None:
        values = values.cast(pa.large_string()) if arrow.is_text(values.type) else values
        path = f"{self.path}/categories"
        _append(self._frame.array(path, values.type, len(values)), _to_numpy(values))

    def _begin_mask(self, values: zarr.Array[Any]) -> tuple[zarr.Array[Any], zarr.Array[Any]]:
        frame, chunk, n = self._frame, values.chunks[0], values.shape[0]
        path = self.nulls
        if not pa.types.is_floating(self._stored):
            # The array cannot be moved into the group that replaces it.
            copied = _copy(values, frame.array(self.nulls, self._stored, chunk)) if n else None
            del frame.group[self.path]
            frame.group.create_group(self.path, attributes=self._encoding_of_nulls())
            values = frame.array(f"{self.path}/values", self._stored, chunk)
            if copied is not None:
                _copy(copied, values)
                del frame.group[self.nulls]
            path = f"{self.path}/mask"
        mask = frame.array(path, pa.bool_(), chunk)
        for start in range(0, n, chunk):
            _append(mask, np.zeros(min(n - start, chunk), np.bool_))
        return values, mask

    def _encoding_of_nulls(self) -> dict[str, Any]:
        if self._is_text:
            # NaN marks plain text for readers with pandas 3.
            plain = {} if self._nullable else {names.NA_VALUE: "NaN"}
            return encoding("nullable-string-array", **plain)
        kind = "boolean" if pa.types.is_boolean(self._stored) else "integer"
        return encoding(f"nullable-{kind}")


def _array(group: zarr.Group, path: str) -> zarr.Array[Any]:
    found = group[path]
    assert isinstance(found, zarr.Array)
    return found


def _code_type(type_: pa.DataType) -> pa.DataType:
    """Signed type of codes, as -1 stands for a null."""
    width = type_.bit_width * (1 if pa.types.is_signed_integer(type_) else 2)
    return pa.type_for_alias(f"int{min(width, 64)}")


def _to_numpy(array: pa.Array) -> NDArray[Any]:
    """Values of an array with nulls replaced by a placeholder: NaN for floats."""
    if array.null_count and not pa.types.is_floating(array.type):
        empty = {"bool": False, "large_string": ""}.get(str(array.type), 0)
        array = array.fill_null(empty)
    values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values


def _text_sizes(part: pa.Array) -> NDArray[np.int64]:
    """Bytes of each string in a chunk."""
    lengths = pc.binary_length(part).fill_null(0).to_numpy(zero_copy_only=False)
    return np.asarray(lengths, np.int64) + LENGTH_BYTES


def _append(array: zarr.Array[Any], values: NDArray[Any]) -> None:
    if len(values):
        start = array.shape[0]
        array.resize((start + len(values),))
        array[start:] = values


def _copy(source: zarr.Array[Any], to: zarr.Array[Any]) -> zarr.Array[Any]:
    for start in range(0, source.shape[0], source.chunks[0]):
        _append(to, np.asarray(source[start : start + source.chunks[0]]))
    return to
