"""Dataframes of an AnnData HDF5 file as tables, read by blocks of rows.

Three generations of the encoding are known: a group of columns (anndata 0.8 and newer), the same
with categories elsewhere (0.7, and SeuratDisk, which does not refer to them), and a compound
dataset (older). Source: anndata's on-disk format specification, and files that old releases and
SeuratDisk wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scdl.archive.schema import INDEX, INDEX_NAME, NULLABLE
from scdl.archive.tables import ROWS_AT_ONCE, TableSource
from scdl.errors import SourceError
from scdl.sources import hdf5_guard
from scdl.sources.hdf5 import readable
from storage_backends.anndata_format.nulls import is_for_nulls
from storage_backends.compute import arrow, uniting
from storage_backends.compute.caching import cached_property

#: Gives rows [start, stop) of numbers of which a column is made.
_Numbers = Callable[[int, int], NDArray[Any]]

#: Where old files have the categories of a table, under the names of its columns.
_CATEGORIES = "__categories"
#: Bytes of the largest numbers that Arrow has.
_LARGEST_NUMBER = 8


class _Column(NamedTuple):
    """A column of a file.

    Attributes
    ----------
    read
        Gives rows ``[start, stop)``.
    is_text
        Whether these are bytes that may turn out to be no text.
    nullable
        Whether it is of a type of its own for nulls.
    """

    read: Callable[[int, int], pa.Array]
    is_text: bool = False
    nullable: bool = False


class H5Table(TableSource):
    """One dataframe of a file.

    Parameters
    ----------
    where
        File and name, for messages.
    element
        The group, or the compound dataset of old files; not checked.

    Attributes
    ----------
    unread
        Columns that are left out: they are of encodings that are not known, hold what is no number
        and no text in UTF-8, lie in other files, or are nowhere.
    """

    def __init__(self, where: str, element: h5py.Group | h5py.Dataset) -> None:
        self._where = where
        self._index_name = ""
        self._found: dict[str, _Column] = {}
        self._left_out: list[str] = []
        if isinstance(element, h5py.Group):
            self._open_columns(element)
        elif element.dtype.names:
            hdf5_guard.check(element)
            self._open_compound(element)
        else:
            raise SourceError(f"{where}: expected a dataframe, found an array of {element.dtype}")

    @cached_property
    def _columns(self) -> dict[str, _Column]:
        """Those that can be read, which is known of text only when all of it was looked at."""
        with readable(self._where):
            columns = {n: c for n, c in self._found.items() if not c.is_text or self._is_utf8(c)}
        if INDEX not in columns:
            raise SourceError(
                f"{self._where}: its index {self._index_name!r} is no text in UTF-8; write the "
                "names anew"
            )
        return columns

    def _is_utf8(self, column: _Column) -> bool:
        try:
            for start in range(0, self.num_rows, ROWS_AT_ONCE):
                column.read(start, min(start + ROWS_AT_ONCE, self.num_rows))
        except UnicodeDecodeError:
            return False
        return True

    @property
    def unread(self) -> list[str]:
        """Names of columns that are left out."""
        return self._left_out + [name for name in self._found if name not in self._columns]

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types."""
        index = self._index_name
        return pa.schema(
            [
                pa.field(name, array.type, metadata=NULLABLE if column.nullable else None)
                for (name, column), array in zip(self._columns.items(), self._empty, strict=True)
            ],
            {INDEX_NAME: index} if index not in ("", INDEX) else None,
        )

    @cached_property
    def categories(self) -> Mapping[str, pa.Array]:
        """Categories of each categorical column."""
        pairs = zip(self._columns, self._empty, strict=True)
        return {n: array.dictionary for n, array in pairs if pa.types.is_dictionary(array.type)}

    @cached_property
    def _empty(self) -> list[pa.Array]:
        with readable(self._where):
            return [column.read(0, 0) for column in self._columns.values()]

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        arrays = [self.column(name, start, stop) for name in self._columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        with readable(f"{self._where}/{name}"):
            return self._columns[name].read(start, stop)

    def whole(self) -> pa.Table:
        """All rows."""
        return pa.Table.from_batches([self.read(0, self.num_rows)])

    def _open_columns(self, group: h5py.Group) -> None:
        hdf5_guard.check_attributes(group)
        index = self._index_name = self._name_of_index(group)
        found = _element(group, index)
        if found is None:
            raise SourceError(
                f"{self._where}: its index {index!r} is missing; expected names, or another index "
                "in the attribute _index"
            )
        self.num_rows = _length(found)
        names_of_rows = _column(found)
        if names_of_rows is None:
            raise SourceError(f"{self._where}: its index {index!r} is no column of text or numbers")
        self._found[INDEX] = _as_text(names_of_rows)
        listed = group.attrs.get("column-order")
        others = [name for name in group if name not in (index, _CATEGORIES)]
        names = others if listed is None else [_text(name) for name in listed]
        for name in names:
            self._add(name, self._open(group, name))
        known = {INDEX, *(name.split("/")[0] for name in names)}
        self._left_out += [name for name in others if name not in known]

    @staticmethod
    def _name_of_index(group: h5py.Group) -> str:
        named = group.attrs.get("_index")
        if named is not None:
            return _text(named)
        return "index" if INDEX not in group and "index" in group else INDEX

    def _open(self, group: h5py.Group, name: str) -> _Column | None:
        try:
            element = _element(group, name)
            column = None if element is None else _column(element)
            if element is None or column is None:
                return None
            if _length(element) != self.num_rows:
                raise SourceError(
                    f"{self._where}: column {name!r} has {_length(element)} rows, its index "
                    f"{self.num_rows}"
                )
            return self._with_labels(group, name, column)
        except hdf5_guard.ElsewhereError:
            return None

    def _with_labels(self, group: h5py.Group, name: str, column: _Column) -> _Column:
        """A column of numbers whose labels lie beside it, as SeuratDisk leaves them."""
        labels = _element(group, f"{_CATEGORIES}/{name}")
        if labels is None or not isinstance(column.read(0, 0), pa.NumericArray):
            return column
        coded = _coded(_whole_numbers(column.read), labels, labels)
        try:
            if coded is not None:
                for start in range(0, self.num_rows, ROWS_AT_ONCE):
                    coded.read(start, min(start + ROWS_AT_ONCE, self.num_rows))
                return coded
        except (SourceError, pa.ArrowException):
            # The numbers are no codes of these.
            pass
        self._left_out.append(f"{_CATEGORIES}/{name}")
        return column

    def _open_compound(self, dataset: h5py.Dataset) -> None:
        self.num_rows = int(dataset.shape[0])
        names = dataset.dtype.names
        index = "index" if "index" in names else names[0]
        self._index_name = index
        names_of_rows = _plain(dataset.fields(index), dataset.dtype[index])
        if names_of_rows is None:
            raise SourceError(f"{self._where}: its index {index!r} is no column of text or numbers")
        self._found[INDEX] = _as_text(names_of_rows)
        for name in names:
            if name == index:
                continue
            # Categories stood in uns, and the table held their codes.
            categories = hdf5_guard.element(dataset.file, f"uns/{name}_categories")
            dtype, field = dataset.dtype[name], dataset.fields(name)
            if categories is None:
                self._add(name, _plain(field, dtype))
            else:
                self._add(name, _coded(_numbers(field, dtype), categories, categories))

    def _add(self, name: str, column: _Column | None) -> None:
        if column is None or name in self._found:
            self._left_out.append(name)
        else:
            self._found[name] = column


def _element(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    return hdf5_guard.element(group.file, f"{group.name}/{name}")


def _column(element: h5py.Group | h5py.Dataset) -> _Column | None:
    """How to read a column; None for an encoding that is not known."""
    if isinstance(element, h5py.Dataset):
        if element.ndim != 1:
            return None
        reference = element.attrs.get("categories")
        if isinstance(reference, h5py.Reference):
            categories = element.file[reference] if reference else None
            if not isinstance(categories, h5py.Dataset):
                return None
            hdf5_guard.check(categories)
            return _coded(_numbers(element, element.dtype), categories, categories)
        return _plain(element, element.dtype)
    encoding = _text(element.attrs.get("encoding-type", ""))
    parts = {
        name: element.get(name) for name in ("values", "mask", "codes", "categories", "levels")
    }
    values, codes = (_numbers_of(parts[name]) for name in ("values", "codes"))
    if encoding == "categorical":
        return _coded(codes, parts["categories"], element)
    if encoding.startswith("nullable-"):
        nullable = is_for_nulls(element.attrs.get("na-value"))
        return _masked(parts["values"], parts["mask"], nullable=nullable)
    if not encoding and values is not None and parts["levels"] is not None:
        # A factor of R, as SeuratDisk has it, counts from 1.
        return _coded(_counted_from_one(values), parts["levels"], element)
    return None


def _length(element: h5py.Group | h5py.Dataset) -> int:
    if isinstance(element, h5py.Group):
        part = element.get("codes", element.get("values"))
        return _length(part) if isinstance(part, h5py.Dataset) else -1
    return int(element.shape[0]) if element.ndim else -1


def _numbers(source: Any, dtype: np.dtype[Any]) -> _Numbers | None:
    """Numbers of a dataset, or of a field of one; None where Arrow has none of that type."""
    if dtype.kind not in "biuf" or dtype.itemsize > _LARGEST_NUMBER:
        return None
    return lambda start, stop: source[start:stop]


def _numbers_of(part: Any) -> _Numbers | None:
    is_column = isinstance(part, h5py.Dataset) and part.ndim == 1
    return _numbers(part, part.dtype) if is_column else None


def _counted_from_one(values: _Numbers) -> _Numbers:
    """Codes of R's factors, whose smallest integer stands for what is missing."""
    return lambda start, stop: np.maximum(values(start, stop).astype(np.int64) - 1, -1)


def _whole_numbers(read: Callable[[int, int], pa.Array]) -> _Numbers:
    """Codes that may be stored as floats, and of which negative ones and NaN are none."""

    def codes(start: int, stop: int) -> NDArray[Any]:
        part = uniting.cast(read(start, stop), pa.int64()).fill_null(-1)
        numbers: NDArray[np.int64] = part.to_numpy(zero_copy_only=False)
        return np.maximum(numbers, -1)

    return codes


def _plain(source: Any, dtype: np.dtype[Any]) -> _Column | None:
    """Numbers or text of a dataset, or of a field of one."""
    if (read := _numbers(source, dtype)) is not None:
        return _Column(lambda start, stop: arrow.numbers(read(start, stop)))
    if h5py.check_string_dtype(dtype):
        # As bytes: what calls itself ASCII is often UTF-8.
        return _Column(lambda start, stop: arrow.text(source[start:stop].tolist()), is_text=True)
    return None


def _coded(codes: _Numbers | None, stored: Any, described: h5py.HLObject) -> _Column | None:
    """A categorical column; codes of -1 are nulls.

    Parameters
    ----------
    stored
        The categories.
    described
        What says whether they are ordered.
    """
    column = _column(stored) if isinstance(stored, h5py.Dataset | h5py.Group) else None
    if codes is None or column is None:
        return None
    try:
        categories = column.read(0, _length(stored))
    except UnicodeDecodeError:
        return None
    categorical = arrow.coder(categories, ordered=bool(described.attrs.get("ordered", False)))

    def coded(start: int, stop: int) -> pa.Array:
        part = codes(start, stop).astype(np.int64)
        if len(part) and (part.min() < -1 or part.max() >= len(categories)):
            raise SourceError(
                f"{stored.file.filename}: {stored.name} holds {len(categories)} categories, but "
                f"codes run from {part.min()} to {part.max()}"
            )
        return categorical(arrow.numbers(part.astype(np.int32), part < 0))

    return _Column(coded)


def _masked(stored: Any, mask: Any, *, nullable: bool) -> _Column | None:
    absent = _numbers_of(mask)
    is_column = isinstance(stored, h5py.Dataset) and stored.ndim == 1
    values = _plain(stored, stored.dtype) if is_column else None
    if values is None or absent is None or _length(mask) != _length(stored):
        return None

    def masked(start: int, stop: int) -> pa.Array:
        part = values.read(start, stop)
        present = arrow.numbers(~absent(start, stop).astype(bool))
        return pc.if_else(present, part, pa.nulls(len(part), part.type))

    return _Column(masked, values.is_text, nullable=nullable)


def _as_text(column: _Column) -> _Column:
    def text(start: int, stop: int) -> pa.Array:
        part = column.read(start, stop)
        part = part.dictionary_decode() if pa.types.is_dictionary(part.type) else part
        return uniting.cast(part, pa.large_string())

    return _Column(text, column.is_text)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
