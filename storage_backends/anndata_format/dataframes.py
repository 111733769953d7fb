"""Reading columns of AnnData's data frames, in HDF5 or Zarr groups, by ranges of rows.

This module implements all encodings; subclasses for each file format read groups and arrays.
Source: anndata's on-disk format specification, and files of old releases, R and SeuratDisk.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_backends.anndata_format import names
from storage_backends.base import INDEX, INDEX_NAME, NULLABLE
from storage_backends.compute import arrow, uniting
from storage_backends.errors import ScdlError

#: Bytes of the largest numeric type supported here.
_LARGEST_NUMBER = 8


class EncodingError(ValueError):
    """The parts of a column contradict each other."""


class Column(NamedTuple):
    """A column that can be read.

    Attributes
    ----------
    type
        Type of its values.
    length
        Number of rows.
    read
        Returns rows ``[start, stop)``.
    nullable
        Whether it has a nullable type in pandas.
    """

    type: pa.DataType
    length: int
    read: Callable[[int, int], pa.Array]
    nullable: bool = False


class FrameReader(ABC):
    """Finds the columns of a data frame.

    Subclasses find and read the elements of a file format.

    Parameters
    ----------
    where
        Start of error messages.
    group
        The group of the data frame.
    """

    #: Parameter of :func:`coded`.
    are_distinct = False
    #: Raised for a data frame that cannot be read.
    error: type[ScdlError]
    #: Raised by :meth:`find` for a column that is to be omitted.
    unreadable: type[ScdlError]

    def __init__(self, where: str, group: Any) -> None:
        self.where, self.group = where, group

    @abstractmethod
    def member(self, path: str) -> Any:
        """The array or group at a path in the group; None if it does not exist."""

    @abstractmethod
    def text(self, array: Any) -> Column | None:
        """The text column of a one-dimensional, non-numeric array; None if it is not text."""

    @abstractmethod
    def old_categories(self, codes: Any) -> Any:
        """Categories that codes refer to in files of anndata 0.7; None if there are none."""

    def columns(self, attributes: Any) -> tuple[dict[str, Column], list[str]]:
        """The index and the columns by their names, and names of columns that cannot be read."""
        index = self.index_name(attributes)
        names_of_rows = self.index(index)
        found, unread = {INDEX: names_of_rows}, []
        for name in self.listed(attributes, index):
            try:
                column = None if name in found else self.find(name)
            except (self.unreadable, EncodingError):
                column = None
            if column is None:
                unread.append(name)
            elif column.length != names_of_rows.length:
                raise self.error(
                    f"{self.where}: column {name!r} has {column.length} rows, expected "
                    f"{names_of_rows.length}, as many as the index has"
                )
            else:
                found[name] = column
        return found, unread

    def index_name(self, attributes: Any) -> str:
        """Name of the member that is the index."""
        named = attributes.get(names.INDEX_NAMED)
        if named is not None:
            return names.text(named)
        return "index" if INDEX not in self.group and "index" in self.group else INDEX

    def index(self, name: str) -> Column:
        """The names of rows, as text."""
        column = self.find(name)
        if column is None:
            raise self.error(
                f"{self.where}: its index {name!r} is missing, or not a column of text or "
                f"numbers; expected the attribute {names.INDEX_NAMED} to name the index column"
            )
        return as_text(column)

    def listed(self, attributes: Any, index: str) -> list[str]:
        """Names of the columns in order; all members if no attribute lists them."""
        order = attributes.get(names.COLUMN_ORDER)
        if order is not None:
            return [names.text(name) for name in order]
        return sorted(name for name in self.group if name not in (index, names.OLD_CATEGORIES))

    def find(self, path: str) -> Column | None:
        """The column at a path; None if it is missing or its encoding is unknown."""
        return self.column(self.member(path))

    def column(self, element: Any) -> Column | None:
        """The column in an array or a group; None if its encoding is unknown."""
        if element is None:
            return None
        if hasattr(element, "shape"):
            if (categories := self.old_categories(element)) is None:
                return self._plain(element)
            ordered = is_ordered(categories)
            return coded(self._plain(element), self.column(categories), ordered=ordered)
        encoding = names.encoding_of(element)
        if encoding == "categorical":
            codes, categories = element.get("codes"), self.column(element.get("categories"))
            return coded(
                self._plain(codes),
                categories,
                ordered=is_ordered(element),
                are_distinct=self.are_distinct,
            )
        values = self._plain(element.get("values"))
        if encoding.startswith(names.NULLABLE_PREFIX):
            nullable = names.is_for_nulls(element.attrs.get(names.NA_VALUE))
            return masked(values, self._plain(element.get("mask")), nullable=nullable)
        if not encoding and values is not None:
            # A factor of R, as SeuratDisk writes it.
            levels = self.column(element.get("levels"))
            return coded(_counted_from_zero(values), levels, ordered=is_ordered(element))
        return None

    def _plain(self, array: Any) -> Column | None:
        """The numbers or the text of an array with one dimension."""
        if len(getattr(array, "shape", None) or ()) != 1:
            return None
        return numbers(array, array.dtype, array.shape[0]) or self.text(array)


def is_ordered(element: Any) -> bool:
    """Whether the attributes of an element declare ordered categories."""
    return bool(element.attrs.get("ordered", False))


def numbers(array: Any, dtype: np.dtype[Any], length: int) -> Column | None:
    """The column of a numeric array; None if Arrow does not support its type."""
    if dtype.kind not in "biuf" or dtype.itemsize > _LARGEST_NUMBER:
        return None
    type_ = pa.from_numpy_dtype(dtype.newbyteorder("="))
    return Column(type_, length, lambda start, stop: arrow.numbers(array[start:stop]))


def coded(
    codes: Column | None, categories: Column | None, *, ordered: bool, are_distinct: bool = False
) -> Column | None:
    """A categorical column, whose categories are read with its first rows; code -1 is a null.

    Parameters
    ----------
    are_distinct
        Whether categories other than floats are known to be non-null and distinct.
    """
    if codes is None or categories is None or not pa.types.is_integer(codes.type):
        return None
    n_categories = categories.length

    @functools.cache
    def coder() -> Callable[[pa.Array], pa.DictionaryArray]:
        values = categories.read(0, n_categories)
        if are_distinct and not pa.types.is_floating(values.type):
            return lambda codes: pa.DictionaryArray.from_arrays(codes, values, ordered=ordered)
        return functools.partial(arrow.Coder(values).array, ordered=ordered)

    def read(start: int, stop: int) -> pa.Array:
        part = arrow.to_numpy(codes.read(start, stop)).astype(np.int64)
        if len(part) and (part.min() < -1 or part.max() >= n_categories):
            raise EncodingError(
                f"expected codes from -1 to {n_categories - 1}, found codes from {part.min()} to "
                f"{part.max()}"
            )
        return coder()(arrow.numbers(part.astype(np.int32), part < 0))

    type_ = pa.dictionary(pa.int32(), arrow.category_type(categories.type), ordered)
    return Column(type_, codes.length, read)


def whole_numbers(column: Column) -> Column:
    """Codes that may be stored as floats; negative values and NaN are nulls."""

    def read(start: int, stop: int) -> pa.Array:
        part = uniting.cast(column.read(start, stop), pa.int64()).fill_null(-1)
        return arrow.numbers(np.maximum(arrow.to_numpy(part), -1))

    return Column(pa.int64(), column.length, read)


def _counted_from_zero(column: Column) -> Column:
    """Codes of an R factor, which start at 1; its smallest integer is a missing value."""

    def read(start: int, stop: int) -> pa.Array:
        return arrow.numbers(np.maximum(arrow.to_numpy(codes.read(start, stop)) - 1, -1))

    codes = whole_numbers(column)
    return Column(pa.int64(), column.length, read)


def masked(values: Column | None, mask: Column | None, *, nullable: bool = True) -> Column | None:
    """Values with a null mask."""
    if values is None or mask is None or not pa.types.is_primitive(mask.type):
        return None
    if mask.length != values.length:
        raise EncodingError(f"expected a mask of {values.length} values, found {mask.length}")

    def read(start: int, stop: int) -> pa.Array:
        absent, part = mask.read(start, stop).cast(pa.bool_()), values.read(start, stop)
        return pc.if_else(absent, pa.nulls(len(part), part.type), part)

    return Column(values.type, values.length, read, nullable)


def as_text(column: Column) -> Column:
    """A column as text, in the format of Python's ``str``."""

    def read(start: int, stop: int) -> pa.Array:
        part = column.read(start, stop)
        part = part.dictionary_decode() if pa.types.is_dictionary(part.type) else part
        return uniting.cast(part, pa.large_string())

    return Column(pa.large_string(), column.length, read)


def schema_of(columns: Iterable[tuple[str, Column]], index_name: str) -> pa.Schema:
    """The schema of a table with the given columns and index name."""
    fields = [
        pa.field(name, column.type, metadata=NULLABLE if column.nullable else None)
        for name, column in columns
    ]
    return pa.schema(fields, {INDEX_NAME: index_name} if index_name not in ("", INDEX) else None)
