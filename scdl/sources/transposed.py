"""Conversion of matrices that are not stored by rows to rows, in bounded memory.

This is an external bucket sort. The first pass counts the entries of each row and divides the rows
into buckets that fit into memory. The second pass writes the entries to their buckets in a
temporary file. Then each bucket is read and sorted in memory. Memory use is one bucket plus 8 bytes
per row; disk use is the size of the entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from scdl.archive.csr import SparseRows, groups, spans
from scdl.errors import SourceError
from scdl.sources.hdf5 import numbers, readable, readers
from scdl.sources.matrices import (
    Bounds,
    Matrix,
    Reader,
    check_ids,
    check_offsets,
    compressed_ranges,
    scratch_file,
)


class Entries(NamedTuple):
    """Entries of a matrix, in the order of the file; `values` may be None if not needed."""

    rows: NDArray[Any]
    columns: NDArray[Any]
    values: Any


class ByEntry(Matrix):
    """A matrix whose entries are not stored by rows."""

    is_counted = True
    by_rows = False

    def _entries(self, bounds: Bounds, *, with_values: bool) -> Iterator[Entries]:
        raise NotImplementedError

    def beginning(self, n_values: int) -> Matrix | None:
        return _FirstEntries(self, n_values)

    def chosen(self, rows: NDArray[np.int64], bounds: Bounds) -> Iterator[SparseRows]:
        # Entries of other rows are dropped before they are sorted.
        return _ChosenEntries(self, rows).blocks(bounds)

    def blocks(self, bounds: Bounds) -> Iterator[SparseRows]:
        counts = np.zeros(self.shape[0], np.int64)
        for entries in self._entries(bounds, with_values=False):
            check_ids(self.where, entries.rows, self.shape[0], "rows")
            check_ids(self.where, entries.columns, self.shape[1], "columns")
            np.add.at(counts, entries.rows, 1)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        stops = _bucket_stops(indptr, bounds)
        record = np.dtype(
            [("row", _index_type(self.shape[0])), ("column", _index_type(self.shape[1])),
             ("value", self.dtype)]
        )  # fmt: skip
        with scratch_file(bounds) as file:
            self._deal(file, record, indptr, stops, bounds)
            for start, stop in pairwise([0, *stops.tolist()]):
                yield _sorted_bucket(file, record, indptr, start, stop)

    def _deal(
        self,
        file: BinaryIO,
        record: np.dtype[Any],
        indptr: NDArray[np.int64],
        stops: NDArray[np.int64],
        bounds: Bounds,
    ) -> None:
        """Write every entry to its bucket in the file, preserving the order within buckets."""
        cursors = indptr[np.concatenate([[0], stops[:-1]])].copy()
        for entries in self._entries(bounds, with_values=True):
            bucket = np.searchsorted(stops, entries.rows, side="right")
            order = np.argsort(bucket, kind="stable")
            records = np.empty(len(order), record)
            records["row"] = entries.rows[order]
            records["column"] = entries.columns[order]
            records["value"] = entries.values[order] if entries.values is not None else 0
            used, first, count = np.unique(bucket[order], return_index=True, return_counts=True)
            for b, f, n in zip(used.tolist(), first.tolist(), count.tolist(), strict=True):
                file.seek(int(cursors[b]) * record.itemsize)
                file.write(records[f : f + n].tobytes())
                cursors[b] += n
        file.flush()


class _ChosenEntries(ByEntry):
    """Some rows of a matrix, in ascending order."""

    def __init__(self, matrix: ByEntry, rows: NDArray[np.int64]) -> None:
        self.where, self.dtype, self.size = matrix.where, matrix.dtype, matrix.size
        self.shape = len(rows), matrix.shape[1]
        self._matrix = matrix
        self._places = np.full(matrix.shape[0], -1, np.int64)
        self._places[rows] = np.arange(len(rows))

    def _entries(self, bounds: Bounds, *, with_values: bool) -> Iterator[Entries]:
        for rows, columns, values in self._matrix._entries(bounds, with_values=with_values):
            check_ids(self.where, rows, len(self._places), "rows")
            places = self._places[rows]
            kept = places >= 0
            yield Entries(places[kept], columns[kept], None if values is None else values[kept])

    def beginning(self, n_values: int) -> Matrix | None:
        return None


class _FirstEntries(ByEntry):
    """The first entries of a matrix."""

    def __init__(self, matrix: ByEntry, n_values: int) -> None:
        self.where, self.dtype, self.shape = matrix.where, matrix.dtype, matrix.shape
        self.size = min(matrix.size, n_values)
        self._matrix = matrix

    def _entries(self, bounds: Bounds, *, with_values: bool) -> Iterator[Entries]:
        left, few = self.size, bounds._replace(values=min(bounds.values, max(self.size, 1)))
        for rows, columns, values in self._matrix._entries(few, with_values=with_values):
            yield Entries(rows[:left], columns[:left], None if values is None else values[:left])
            left -= len(rows)
            if left <= 0:
                return


class Csc(ByEntry):
    """A matrix in CSC form: ``data``, ``indices`` and ``indptr``."""

    def __init__(self, where: str, parts: Mapping[str, Reader], shape: tuple[int, int]) -> None:
        self.where, self.shape = where, shape
        self._parts = parts
        self.dtype = self._parts["data"].dtype
        self.size = check_offsets(where, self._parts, shape[1], "columns")

    def _entries(self, bounds: Bounds, *, with_values: bool) -> Iterator[Entries]:
        indptr = self._parts["indptr"]
        for start, _, offsets in compressed_ranges(
            self.where, indptr, self.shape[1], self.size, bounds
        ):
            first, last = int(offsets[0]), int(offsets[-1])
            # A single gene may have more entries than fit into a block.
            for begin in range(first, last, bounds.values):
                end = min(begin + bounds.values, last)
                position = np.arange(begin, end)
                columns = start + np.searchsorted(offsets, position, side="right") - 1
                values = self._parts["data"].read(begin, end) if with_values else None
                yield Entries(self._parts["indices"].read(begin, end), columns, values)


class Coo(ByEntry):
    """A matrix in COO form: a group with three datasets.

    Parameters
    ----------
    parts
        Names of the datasets with the values, the rows and the columns.
    """

    def __init__(
        self,
        where: str,
        group: h5py.Group,
        shape: tuple[int, int],
        parts: tuple[str, str, str] = ("data", "row", "col"),
    ) -> None:
        self.where, self.shape = where, shape
        found = readers(where, group, *parts)
        self._values, self._rows, self._columns = (found[part] for part in parts)
        self.dtype, self.size = self._values.dtype, len(self._values)
        lengths = {part: len(reader) for part, reader in found.items()}
        if len(set(lengths.values())) > 1:
            raise SourceError(f"{where}: {', '.join(parts)} differ in length: {lengths}")

    def _entries(self, bounds: Bounds, *, with_values: bool) -> Iterator[Entries]:
        for start in range(0, self.size, bounds.values):
            stop = min(start + bounds.values, self.size)
            values = self._values.read(start, stop) if with_values else None
            rows, columns = (part.read(start, stop) for part in (self._rows, self._columns))
            yield Entries(rows, columns, values)


class DenseTiles(ByEntry):
    """A dense dataset whose chunks of the same rows do not fit into memory together.

    It is read chunk by chunk, each chunk once per pass; zeros are dropped.

    Parameters
    ----------
    shape
        Shape of the matrix, which is that of the dataset, or its reverse if `is_transposed`.
    """

    def __init__(
        self,
        where: str,
        dataset: h5py.Dataset,
        shape: tuple[int, int],
        *,
        is_transposed: bool = False,
    ) -> None:
        self.where, self.shape = where, shape
        self._dataset = numbers(where, dataset)
        self._is_transposed = is_transposed
        self.dtype = dataset.dtype
        self.size = shape[0] * shape[1]

    def beginning(self, n_values: int) -> Matrix | None:
        return None

    def _entries(self, bounds: Bounds, *, with_values: bool) -> Iterator[Entries]:
        height, width = self._dataset.chunks
        for top in range(0, self._dataset.shape[0], height):
            for left in range(0, self._dataset.shape[1], width):
                with readable(self.where):
                    tile = self._dataset[top : top + height, left : left + width]
                row, column = np.nonzero(tile)
                values = tile[row, column] if with_values else None
                places = row + top, column + left
                yield Entries(*(places[::-1] if self._is_transposed else places), values)


class Columns:
    """Columns of a dataset as rows, as a reader; consecutive ranges read each chunk once.

    Parameters
    ----------
    dataset
        Dataset of numbers with two dimensions.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self.dtype: np.dtype[Any] = dataset.dtype
        self.item_shape = (int(dataset.shape[0]),)
        self._width = dataset.chunks[1] if dataset.chunks else 1
        #: First column and rows of the last chunks, which the next range usually begins with.
        self._last: tuple[int, NDArray[Any]] = 0, np.empty((0, *self.item_shape), self.dtype)

    def __len__(self) -> int:
        return int(self._dataset.shape[1])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Columns ``[start, stop)`` as rows, in the stored dtype."""
        first, last = self._last
        kept = last[start - first :] if first <= start < first + len(last) else last[:0]
        if len(kept) >= stop - start:
            return kept[: stop - start]
        begin = start + len(kept)
        begin -= begin % self._width
        end = min(-(-stop // self._width) * self._width, len(self))
        with readable(f"{self._dataset.file.filename}: {self._dataset.name}"):
            rows = np.ascontiguousarray(self._dataset[:, begin:end].T)
        self._last = begin, rows
        rows = rows[start + len(kept) - begin : stop - begin]
        return np.concatenate([kept, rows]) if len(kept) else rows


def _index_type(n: int) -> type[np.unsignedinteger[Any]]:
    return np.uint32 if n <= 1 << 32 else np.uint64


def _bucket_stops(indptr: NDArray[np.int64], bounds: Bounds) -> NDArray[np.int64]:
    """End rows of buckets within `bounds`, of at least one row."""
    stops = [
        start + last
        for start, stop in spans(len(indptr) - 1, bounds.rows)
        for _, last in groups(indptr[start : stop + 1], bounds.values)
    ]
    return np.array(stops, np.int64)


def _sorted_bucket(
    file: BinaryIO, record: np.dtype[Any], indptr: NDArray[np.int64], start: int, stop: int
) -> SparseRows:
    first, last = int(indptr[start]), int(indptr[stop])
    file.seek(first * record.itemsize)
    records = np.frombuffer(file.read((last - first) * record.itemsize), record)
    rows = records["row"] - np.asarray(start, records["row"].dtype)
    # NumPy uses a linear-time radix sort for 16-bit integers.
    rows = rows.astype(np.uint16) if stop - start <= 1 << 16 else rows
    order = np.argsort(rows, kind="stable")
    offsets = indptr[start : stop + 1] - first
    return SparseRows(records["value"][order], records["column"][order], offsets)
