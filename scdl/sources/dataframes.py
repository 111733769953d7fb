"""Dataframes of an AnnData HDF5 file as tables that are read in blocks of rows.

Three generations of the encoding are supported: a group of columns (anndata 0.8 and newer), the
same with categories in a separate group (0.7, and SeuratDisk, which stores no references to them),
and a compound dataset (older). Source: anndata's on-disk format specification, and files written by
old releases and SeuratDisk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import h5py
import numpy as np
import pyarrow as pa

from scdl.archive.schema import INDEX
from scdl.archive.tables import ROWS_AT_ONCE, TableSource
from scdl.errors import SourceError
from scdl.sources import hdf5_guard
from scdl.sources.hdf5 import readable
from storage_backends.anndata_format import dataframes
from storage_backends.anndata_format.dataframes import Column, EncodingError, FrameReader
from storage_backends.anndata_format.names import OLD_CATEGORIES
from storage_backends.compute import arrow
from storage_backends.compute.caching import cached_property


class H5Table(TableSource):
    """One dataframe of a file.

    Parameters
    ----------
    where
        Path of the file and name of the dataframe, for messages.
    element
        The group, or the compound dataset of old files. It has not been checked yet.
    frame
        Creates the reader of a group; default: that of AnnData's encoding.

    Attributes
    ----------
    unread
        Columns that are left out because their encoding is unknown, their values are neither
        numbers nor UTF-8 text, or their data is in another file or missing.
    """

    def __init__(
        self,
        where: str,
        element: h5py.Group | h5py.Dataset,
        frame: Callable[[str, h5py.Group], H5Frame] | None = None,
    ) -> None:
        self._where = where
        self._frame = frame or H5Frame
        self._index_name = ""
        self._found: dict[str, Column] = {}
        self._left_out: list[str] = []
        if isinstance(element, h5py.Group):
            self._open_columns(element)
        elif element.dtype.names:
            hdf5_guard.check(element)
            self._open_compound(element)
        else:
            raise SourceError(f"{where}: expected a dataframe, found an array of {element.dtype}")
        self.num_rows = self._found[INDEX].length

    @cached_property
    def _columns(self) -> dict[str, Column]:
        """The readable columns; text columns are read completely to check their encoding."""
        with readable(self._where):
            columns = {name: c for name, c in self._found.items() if _is_utf8(c)}
        if INDEX not in columns:
            raise SourceError(
                f"{self._where}: its index {self._index_name!r} is not valid UTF-8 text; write "
                "the names again"
            )
        return columns

    @property
    def unread(self) -> list[str]:
        """Names of columns that are left out."""
        return self._left_out + [name for name in self._found if name not in self._columns]

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return dataframes.schema_of(self._columns.items(), self._index_name)

    @cached_property
    def categories(self) -> Mapping[str, pa.Array]:
        """Categories of each categorical column."""
        names = [field.name for field in self.schema if pa.types.is_dictionary(field.type)]
        return {name: self.column(name, 0, 0).dictionary for name in names}

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        arrays = [self.column(name, start, stop) for name in self._columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        try:
            with readable(f"{self._where}/{name}"):
                return self._columns[name].read(start, stop)
        except EncodingError as error:
            raise SourceError(f"{self._where}/{name}: {error}") from error

    @cached_property
    def whole(self) -> pa.Table:
        """All rows, which are read once."""
        return pa.Table.from_batches([self.read(0, self.num_rows)])

    def _open_columns(self, group: h5py.Group) -> None:
        hdf5_guard.check_attributes(group)
        reader = self._frame(self._where, group)
        attributes = reader.attributes
        self._index_name = reader.index_name(attributes)
        columns, self._left_out = reader.columns(attributes)
        self._found = {name: self._with_labels(reader, name, columns[name]) for name in columns}
        named = reader.listed(attributes, self._index_name)
        known = {self._index_name, OLD_CATEGORIES, INDEX, *(name.split("/")[0] for name in named)}
        self._left_out += [name for name in group if name not in known]

    def _with_labels(self, reader: FrameReader, name: str, column: Column) -> Column:
        """Decode a column of codes whose labels are stored separately, as by SeuratDisk."""
        path = f"{OLD_CATEGORIES}/{name}"
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            return column
        with suppress(hdf5_guard.UnreadableError):
            labels = reader.member(path)
            if labels is None:
                return column
            codes, ordered = dataframes.whole_numbers(column), dataframes.is_ordered(labels)
            labelled = dataframes.coded(codes, reader.column(labels), ordered=ordered)
            if labelled is not None and _is_readable(labelled):
                return labelled
        # The labels are in another file, or the numbers are not valid codes.
        self._left_out.append(path)
        return column

    def _open_compound(self, dataset: h5py.Dataset) -> None:
        names = dataset.dtype.names
        index = self._index_name = "index" if "index" in names else names[0]
        names_of_rows = _field(dataset, index)
        if names_of_rows is None:
            raise SourceError(
                f"{self._where}: its index {index!r} is not a column of text or numbers"
            )
        self._found[INDEX] = dataframes.as_text(names_of_rows)
        # Old releases stored the codes in the table and the categories in uns.
        uns = H5Frame(self._where, dataset.file)
        for name in names:
            if name == index:
                continue
            column = _field(dataset, name)
            categories = uns.member(f"uns/{name}_categories")
            if categories is not None:
                ordered = dataframes.is_ordered(categories)
                column = dataframes.coded(column, uns.column(categories), ordered=ordered)
            if column is None or name in self._found:
                self._left_out.append(name)
            else:
                self._found[name] = column


class H5Frame(FrameReader):
    """Reads dataframes from HDF5; every element is validated before it is used."""

    error = SourceError
    unreadable = hdf5_guard.UnreadableError

    @property
    def attributes(self) -> Any:
        """Attributes that name the index and the columns."""
        return self.group.attrs

    def member(self, path: str) -> h5py.Group | h5py.Dataset | None:
        # Below the group also where a damaged list of columns has an absolute path.
        return hdf5_guard.element(self.group, path.lstrip("/"))

    def text(self, array: h5py.Dataset) -> Column | None:
        return _text(array, array.dtype, int(array.shape[0]))

    def old_categories(self, codes: h5py.Dataset) -> h5py.Group | h5py.Dataset | None:
        reference = codes.attrs.get("categories")
        if not isinstance(reference, h5py.Reference):
            return None
        if not reference:
            raise EncodingError(f"{codes.name} refers to categories that do not exist")
        categories = codes.file[reference]
        hdf5_guard.check(categories)
        return categories


def _field(dataset: h5py.Dataset, name: str) -> Column | None:
    field, dtype, length = dataset.fields(name), dataset.dtype[name], int(dataset.shape[0])
    return dataframes.numbers(field, dtype, length) or _text(field, dtype, length)


def _text(array: Any, dtype: np.dtype[Any], length: int) -> Column | None:
    """A text column, read as bytes, because text declared as ASCII is often UTF-8."""
    if not h5py.check_string_dtype(dtype):
        return None
    return Column(
        pa.large_string(), length, lambda start, stop: arrow.text(array[start:stop].tolist())
    )


def _is_utf8(column: Column) -> bool:
    """Whether all text of a column, or of its categories, is valid UTF-8."""
    n_rows = column.length if column.type == pa.large_string() else 0
    try:
        for start in range(0, n_rows or 1, ROWS_AT_ONCE):
            column.read(start, min(start + ROWS_AT_ONCE, n_rows))
    except UnicodeDecodeError:
        return False
    return True


def _is_readable(column: Column) -> bool:
    """Whether all codes of a column refer to categories."""
    try:
        for start in range(0, column.length, ROWS_AT_ONCE):
            column.read(start, min(start + ROWS_AT_ONCE, column.length))
    except (EncodingError, UnicodeDecodeError, pa.ArrowException):
        return False
    return True
