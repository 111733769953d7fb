"""Matrices of sources as blocks of sparse rows, for all encodings."""

from __future__ import annotations

import math
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive.csr import SparseRows, groups, spans
from scdl.archive.schema import MATRIX
from scdl.errors import SourceError
from scdl.sources.ranges import RangeReader as RangeReader
from scdl.sources.ranges import Reader as Reader
from scdl.sources.ranges import read_ranges, within
from storage_backends.errors import refused_write

#: Default number of stored values processed at a time: 8 MB of int32 and float32.
BLOCK_VALUES = 1 << 20


class Bounds(NamedTuple):
    """Largest number of values and rows of a matrix to process at a time."""

    values: int = BLOCK_VALUES
    rows: int = 1 << 15
    #: Path next to which temporary files are created; None: the system's temporary directory.
    target: str | None = None


@contextmanager
def scratch_file(bounds: Bounds) -> Iterator[BinaryIO]:
    """An unnamed temporary file that is deleted on exit.

    Raises
    ------
    ArchiveWriteError
        The file cannot be written, for example because the disk is full.
    """
    target = bounds.target or tempfile.gettempdir()
    parent = os.path.dirname(os.path.abspath(target))
    with refused_write(target):
        # Files of the size of the data belong on the disk of the archive if it is writable.
        file = tempfile.TemporaryFile(dir=parent if os.access(parent, os.W_OK) else None)  # noqa: SIM115
        try:
            yield file
        finally:
            # After a full disk the buffer cannot be flushed; its contents are not needed.
            with suppress(OSError):
                file.close()


class Matrix(ABC):
    """A matrix that is read in blocks of consecutive rows."""

    #: Path of the file and name of the matrix, for messages.
    where: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    #: Number of stored values, or an upper bound.
    size: int
    #: Whether `size` is the number of stored values.
    is_counted = False
    #: Whether some rows can be read without reading all.
    by_rows = True

    @abstractmethod
    def blocks(self, bounds: Bounds) -> Iterator[SparseRows]:
        """Yield consecutive rows as stored; column ids are checked to be in range."""

    def chosen(self, rows: NDArray[np.int64], bounds: Bounds) -> Iterator[SparseRows]:
        """Yield some rows, given in ascending order; others are read only where they must be."""
        first = 0
        for block in self.blocks(bounds):
            stop = first + len(block.indptr) - 1
            inside = rows[slice(*np.searchsorted(rows, (first, stop)))] - first
            if len(inside):
                yield _rows_of(block, inside)
            first = stop
            if not len(rows) or first > rows[-1]:
                return

    def part(self, start: int, stop: int) -> Matrix | None:
        """Rows ``[start, stop)`` as a matrix; None if they cannot be read separately."""
        return self if (start, stop) == (0, self.shape[0]) else None

    def beginning(self, n_values: int) -> Matrix | None:
        """A matrix of this shape with about the first stored values, which is cheap to read.

        None if it is not known how many of the stored values these are.
        """
        return None


def pieces(reader: Reader, n_values: int) -> Iterator[NDArray[Any]]:
    """Read an array in pieces of about `n_values` numbers; an empty array is one empty piece."""
    rows = max(1, n_values // max(math.prod(reader.item_shape), 1))
    for start in range(0, max(len(reader), 1), rows):
        yield reader.read(start, min(start + rows, len(reader)))


def reader_part(reader: Reader, start: int, stop: int) -> RangeReader:
    """Rows ``[start, stop)`` of another reader."""
    many = getattr(reader, "read_ranges", None)
    return RangeReader(
        lambda a, b: reader.read(start + a, start + b),
        stop - start,
        reader.dtype,
        reader.item_shape,
        many and (lambda a, b, out: many(start + a, start + b, out)),
    )


class Csr(Matrix):
    """A matrix in CSR form: ``data``, ``indices`` and ``indptr``."""

    is_counted = True

    def __init__(self, where: str, parts: Mapping[str, Reader], shape: tuple[int, int]) -> None:
        self.where, self.shape = where, shape
        self.parts = parts
        self.dtype = parts["data"].dtype
        self.size = check_offsets(where, self.parts, shape[0], "rows")

    def blocks(self, bounds: Bounds) -> Iterator[SparseRows]:
        indptr = self.parts["indptr"]
        for start, stop, offsets in compressed_ranges(
            self.where, indptr, self.shape[0], self.size, bounds
        ):
            first, last = int(offsets[0]), int(offsets[-1])
            indices = self.parts["indices"].read(first, last)
            check_ids(self.where, indices, self.shape[1], f"rows {start} to {stop}")
            yield SparseRows(self.parts["data"].read(first, last), indices, offsets - first)

    def chosen(self, rows: NDArray[np.int64], bounds: Bounds) -> Iterator[SparseRows]:
        indptr = self.parts["indptr"]
        for start, stop in spans(self.shape[0], bounds.rows):
            inside = rows[slice(*np.searchsorted(rows, (start, stop)))] - start
            if not len(inside):
                continue
            offsets = read_offsets(self.where, indptr, start, stop, self.size)
            starts, stops = offsets[inside], offsets[inside + 1]
            ends = np.concatenate([[0], np.cumsum(stops - starts)])
            for first, last in groups(ends, bounds.values):
                ranges = starts[first:last], stops[first:last], bounds.values
                data, indices = (read_ranges(self.parts[p], *ranges) for p in MATRIX[:2])
                check_ids(self.where, indices, self.shape[1], f"rows {start} to {stop}")
                yield SparseRows(data, indices, ends[first : last + 1] - ends[first])

    def part(self, start: int, stop: int) -> Matrix | None:
        return CsrPart(self.where, self.parts, (start, stop), self.shape[1])


class CsrPart(Csr):
    """A range of rows of a CSR matrix; its offsets need not start at 0."""

    def __init__(
        self, where: str, parts: Mapping[str, Reader], rows: tuple[int, int], n_columns: int
    ) -> None:
        start, stop = rows
        self.where, self.shape = where, (stop - start, n_columns)
        self.parts = {**parts, "indptr": reader_part(parts["indptr"], start, stop + 1)}
        self.dtype = parts["data"].dtype
        self.size = len(parts["data"])


class Dense(Matrix):
    """A dense matrix; zeros are dropped."""

    def __init__(
        self, where: str, reader: Reader, shape: tuple[int, int], chunk_rows: int = 1
    ) -> None:
        self.where, self.shape = where, shape
        self._reader = reader
        self.dtype = reader.dtype
        self.size = shape[0] * shape[1]
        self._chunk_rows = chunk_rows

    def blocks(self, bounds: Bounds) -> Iterator[SparseRows]:
        for start, stop in spans(self.shape[0], self._rows_at_once(bounds)):
            yield _without_zeros(self._reader.read(start, stop))

    def chosen(self, rows: NDArray[np.int64], bounds: Bounds) -> Iterator[SparseRows]:
        most = self._rows_at_once(bounds)
        for first, last in spans(len(rows), most):
            some = rows[first:last]
            yield _without_zeros(read_ranges(self._reader, some, some + 1, most, self._chunk_rows))

    def _rows_at_once(self, bounds: Bounds) -> int:
        rows = max(1, min(bounds.rows, bounds.values // max(self.shape[1], 1)))
        return rows - rows % self._chunk_rows if rows > self._chunk_rows else rows

    def part(self, start: int, stop: int) -> Matrix | None:
        rows = reader_part(self._reader, start, stop)
        return Dense(self.where, rows, (stop - start, self.shape[1]), self._chunk_rows)


def compressed_ranges(
    where: str, indptr: Reader, n: int, size: int, bounds: Bounds
) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Split the compressed axis into ranges within `bounds`, of at least one row or column.

    Yields
    ------
    start, stop, offsets
        A half-open range and its ``stop - start + 1`` offsets as int64.
    """
    for start, stop in spans(n, bounds.rows):
        offsets = read_offsets(where, indptr, start, stop, size)
        for first, last in groups(offsets, bounds.values):
            yield start + first, start + last, offsets[first : last + 1]


def read_offsets(where: str, indptr: Reader, start: int, stop: int, size: int) -> NDArray[np.int64]:
    """The ``stop - start + 1`` offsets of a range of rows or columns.

    Raises
    ------
    SourceError
        They decrease, or are not in ``[0, size]``.
    """
    offsets = indptr.read(start, stop + 1).astype(np.int64)
    if (np.diff(offsets) < 0).any() or int(offsets[-1]) > size or int(offsets[0]) < 0:
        raise SourceError(
            f"{where}: indptr is not monotone between {start} and {stop}; the file is damaged"
        )
    return offsets


def _without_zeros(values: NDArray[Any]) -> SparseRows:
    """Dense rows as sparse ones."""
    row, column = np.nonzero(values)
    indptr = np.zeros(len(values) + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=len(values)), out=indptr[1:])
    return SparseRows(values[row, column], column, indptr)


def _rows_of(block: SparseRows, rows: NDArray[np.int64]) -> SparseRows:
    """Some rows of a block."""
    if len(rows) == len(block.indptr) - 1:
        return block
    lengths = np.diff(block.indptr)[rows]
    places = within(block.indptr[rows], lengths)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return SparseRows(block.data[places], block.indices[places], indptr)


def check_ids(where: str, ids: NDArray[Any], n: int, among: str) -> None:
    """Raise SourceError for row or column ids that are not in ``[0, n)``."""
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= n):
        bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise SourceError(f"{where}: found index {bad} in {among}, expected indices in [0, {n})")


def check_shape(where: str, found: tuple[int, ...], expected: tuple[int, int]) -> None:
    """Raise SourceError if the shape of a matrix does not match obs and var."""
    if found != expected:
        raise SourceError(f"{where} has shape {found}, expected {expected} from obs and var")


def check_offsets(where: str, parts: Mapping[str, Reader], n: int, axis: str) -> int:
    """Return the number of stored values; raise SourceError if offsets and lengths disagree."""
    lengths = {part: len(reader) for part, reader in parts.items()}
    if lengths["indptr"] != n + 1:
        raise SourceError(
            f"{where}: indptr has {lengths['indptr']} offsets, expected {n + 1} for {n} {axis}"
        )
    ends = [int(parts["indptr"].read(i, i + 1)[0]) for i in (0, n)]
    if ends[0] != 0 or not ends[1] == lengths["data"] == lengths["indices"]:
        raise SourceError(
            f"{where}: indptr runs from {ends[0]} to {ends[1]}, but data has {lengths['data']} "
            f"and indices has {lengths['indices']} values"
        )
    return ends[1]


class Values:
    """An array in memory, as a reader."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values
        self.dtype, self.item_shape = values.dtype, values.shape[1:]

    def __len__(self) -> int:
        return len(self._values)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``[start, stop)``."""
        return self._values[start:stop]
