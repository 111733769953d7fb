"""Dataframes of an AnnData HDF5 file as tables, read by blocks of rows.

Three generations of the encoding are known: a group of columns (anndata 0.8 and newer), the same
with categories elsewhere (0.7), and a compound dataset (older). Source: anndata's on-disk format
specification, and files that old releases wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scdl import hdf5_claims
from scdl.chunks import readable
from scdl.errors import SourceError
from scdl.schema import INDEX, INDEX_NAME, NULLABLE
from scdl.tables import TableSource
from storage_backends import arrow

#: Gives rows [start, stop) of a column, or of numbers of which one is made.
_Reader = Callable[[int, int], pa.Array]
_Numbers = Callable[[int, int], NDArray[Any]]


class H5Table(TableSource):
    """One dataframe of a file.

    Parameters
    ----------
    where
        File and name, for messages.
    element
        The group, or the compound dataset of old files.

    Attributes
    ----------
    unread
        Columns of encodings that are not known, which are left out.
    """

    def __init__(self, where: str, element: h5py.Group | h5py.Dataset) -> None:
        self._where = where
        self.unread: list[str] = []
        self._index_name = ""
        self._readers: dict[str, _Reader] = {}
        self._nullable: set[str] = set()
        if isinstance(element, h5py.Group):
            self._open_columns(element)
        elif element.dtype.names:
            self._open_compound(element)
        else:
            raise SourceError(f"{where}: expected a dataframe, found an array of {element.dtype}")
        empty = {name: read(0, 0) for name, read in self._readers.items()}
        named = {INDEX_NAME: self._index_name} if self._index_name not in ("", INDEX) else None
        self.schema = pa.schema(
            [
                pa.field(name, array.type, metadata=NULLABLE if name in self._nullable else None)
                for name, array in empty.items()
            ],
            named,
        )
        self.categories = {
            name: array.dictionary
            for name, array in empty.items()
            if pa.types.is_dictionary(array.type)
        }

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        with readable(self._where):
            arrays = [read(start, stop) for read in self._readers.values()]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def whole(self) -> pa.Table:
        """All rows."""
        return pa.Table.from_batches([self.read(0, self.num_rows)])

    def _open_columns(self, group: h5py.Group) -> None:
        index = self._index_name = _text(group.attrs.get("_index", "_index"))
        if index not in group:
            raise SourceError(f"{self._where}: its index {index!r} is missing")
        names = [_text(name) for name in group.attrs.get("column-order", [])]
        self.num_rows = _length(group[index])
        for name in names:
            if name not in group:
                raise SourceError(f"{self._where}: its column {name!r} is missing")
            if _column(group[name]) and _length(group[name]) != self.num_rows:
                raise SourceError(
                    f"{self._where}: column {name!r} has {_length(group[name])} rows, "
                    f"its index {self.num_rows}"
                )
        names_of_rows = _column(group[index])
        if names_of_rows is None:
            raise SourceError(f"{self._where}: its index {index!r} is no column of text or numbers")
        self._add(INDEX, _as_text(names_of_rows))
        for name in names:
            self._add(name, _column(group[name]))
            if _text(group[name].attrs.get("encoding-type", "")).startswith("nullable-"):
                self._nullable.add(name)

    def _open_compound(self, dataset: h5py.Dataset) -> None:
        self.num_rows = int(dataset.shape[0])
        names = dataset.dtype.names
        index = "index" if "index" in names else names[0]
        self._index_name = index
        self._add(INDEX, _as_text(_field(dataset, index)))
        for name in names:
            if name == index:
                continue
            # Categories stood in uns, and the table held their codes.
            categories = hdf5_claims.element(dataset.file, f"uns/{name}_categories")
            if categories is None:
                self._add(name, _field(dataset, name))
                continue
            codes = _numbers(dataset.fields(name), dataset.dtype[name])
            self._add(name, _coded(codes, categories, ordered=False))

    def _add(self, name: str, read: _Reader | None) -> None:
        if read is None or name in self._readers:
            self.unread.append(name)
        else:
            self._readers[name] = read


def _column(element: h5py.Group | h5py.Dataset) -> _Reader | None:
    """How to read a column; None for an encoding that is not known."""
    if isinstance(element, h5py.Dataset):
        if element.ndim != 1:
            return None
        reference = element.attrs.get("categories")
        if isinstance(reference, h5py.Reference):
            categories = element.file[reference]
            hdf5_claims.check(categories)
            return _coded(
                _numbers(element, element.dtype),
                categories,
                bool(categories.attrs.get("ordered", False)),
            )
        return _plain(element)
    encoding = _text(element.attrs.get("encoding-type", ""))
    if encoding == "categorical":
        ordered = bool(element.attrs.get("ordered", False))
        codes = element["codes"]
        return _coded(_numbers(codes, codes.dtype), element["categories"], ordered)
    if encoding.startswith("nullable-") and {"values", "mask"} <= set(element):
        return _masked(_plain(element["values"]), element["mask"])
    return None


def _length(element: h5py.Group | h5py.Dataset) -> int:
    if isinstance(element, h5py.Group):
        part = element.get("codes", element.get("values"))
        return int(part.shape[0]) if isinstance(part, h5py.Dataset) else -1
    return int(element.shape[0]) if element.ndim else -1


def _numbers(source: Any, dtype: np.dtype[Any]) -> _Numbers | None:
    """Numbers of a dataset, or of a field of one; None where it holds something else."""
    if dtype.kind not in "biuf":
        return None
    return lambda start, stop: source[start:stop]


def _plain(dataset: h5py.Dataset) -> _Reader | None:
    """Numbers or text."""
    if (read := _numbers(dataset, dataset.dtype)) is not None:
        return lambda start, stop: arrow.numbers(read(start, stop))
    if h5py.check_string_dtype(dataset.dtype):
        return lambda start, stop: arrow.text(dataset.asstr()[start:stop])
    return None


def _field(dataset: h5py.Dataset, name: str) -> _Reader | None:
    """A field of a compound dataset."""
    dtype, field = dataset.dtype[name], dataset.fields(name)
    if (read := _numbers(field, dtype)) is not None:
        return lambda start, stop: arrow.numbers(read(start, stop))
    if h5py.check_string_dtype(dtype):
        return lambda start, stop: arrow.text([_text(value) for value in field[start:stop]])
    return None


def _coded(codes: _Numbers | None, dataset: h5py.Dataset, ordered: bool) -> _Reader | None:
    """A categorical column; codes below 0 are nulls."""
    values = _plain(dataset)
    if codes is None or values is None:
        return None
    categories = values(0, len(dataset))

    def coded(start: int, stop: int) -> pa.Array:
        part = codes(start, stop).astype(np.int64)
        if len(part) and (part.min() < -1 or part.max() >= len(categories)):
            raise SourceError(
                f"{dataset.file.filename}: {dataset.name} holds {len(categories)} categories, but "
                f"codes run from {part.min()} to {part.max()}"
            )
        indices = arrow.numbers(part.astype(np.int32), part < 0)
        return pa.DictionaryArray.from_arrays(indices, categories, ordered=ordered)

    return coded


def _masked(values: _Reader | None, mask: h5py.Dataset) -> _Reader | None:
    if values is None:
        return None

    def masked(start: int, stop: int) -> pa.Array:
        part = values(start, stop)
        present = arrow.numbers(~mask[start:stop].astype(bool))
        return pc.if_else(present, part, pa.nulls(len(part), part.type))

    return masked


def _as_text(read: _Reader | None) -> _Reader | None:
    if read is None:
        return None

    def text(start: int, stop: int) -> pa.Array:
        column = read(start, stop)
        column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        return column.cast(pa.large_string())

    return text


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
