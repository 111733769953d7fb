"""Rows of Parquet and Arrow files, read from front to back in bounded memory.

Arrow files are streams, as Hugging Face's datasets writes them, or files with an index (Feather).
"""

from __future__ import annotations

import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from scdl.archive.csr import spans
from scdl.errors import SourceError
from scdl.sources.damage import CUT_SHORT, readable_by
from storage_backends.compute.threads import n_threads

#: First bytes of files.
PARQUET, FEATHER = b"PAR1", b"ARROW1"
#: Bytes of a column that are read at once, so that a row group need not fit into memory.
_BUFFER = 1 << 20


class Piece(NamedTuple):
    """Consecutive rows of a file.

    Attributes
    ----------
    path
        Path of the file.
    first
        Number of the first row in the file.
    rows
        Some columns of the rows; those that the file lacks are missing.
    """

    path: str
    first: int
    rows: pa.RecordBatch


class _File(ABC):
    """A file, open for reading.

    Attributes
    ----------
    num_rows
        Number of rows.
    schema
        Names and types of the columns.
    """

    num_rows: int
    schema: pa.Schema

    @abstractmethod
    def sizes(self) -> Mapping[str, tuple[int, float]]:
        """Of columns of lists: about how many values there are, and most in a row on average."""

    @abstractmethod
    def batches(self, columns: Sequence[str], at_once: int, start: int) -> Iterator[pa.RecordBatch]:
        """Rows from `start` on, at most `at_once` at a time."""


class _Parquet(_File):
    def __init__(self, path: str) -> None:
        self._file = pq.ParquetFile(
            path, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True
        )
        self.num_rows, self.schema = self._file.metadata.num_rows, self._file.schema_arrow

    def sizes(self) -> Mapping[str, tuple[int, float]]:
        footer, schema = self._file.metadata, self._file.schema
        found: dict[str, tuple[int, float]] = {}
        for i in range(len(schema)):
            if not schema.column(i).max_repetition_level:
                continue
            total, most = 0, 0.0
            for group in map(footer.row_group, range(footer.num_row_groups)):
                n_values = group.column(i).num_values
                total, most = total + n_values, max(most, n_values / max(group.num_rows, 1))
            found[schema.column(i).path.partition(".")[0]] = total, most
        return found

    def batches(self, columns: Sequence[str], at_once: int, start: int) -> Iterator[pa.RecordBatch]:
        footer, groups = self._file.metadata, list[int]()
        for i in range(footer.num_row_groups):
            n_rows = footer.row_group(i).num_rows
            if groups or start < n_rows:
                groups.append(i)
            else:
                start -= n_rows
        types = [self.schema.field(name).type for name in columns]
        parts = [groups] if groups else []
        if any(is_list(t) and pa.types.is_dictionary(t.value_type) for t in types):
            # Arrow does not read lists of categories of several row groups together.
            parts = [[i] for i in groups]
        for part in parts:
            for batch in self._file.iter_batches(
                at_once, part, [*columns], use_threads=n_threads() > 1
            ):
                if start < len(batch):
                    yield batch.slice(start)
                start = max(0, start - len(batch))


class _Arrow(_File):
    def __init__(self, path: str) -> None:
        # A batch of any size is mapped, not read.
        with open(path, "rb") as file:
            self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._mapped = pa.BufferReader(pa.py_buffer(self._pages))
        self._is_stream = not _begins(path).startswith(FEATHER)
        with self._reader() as reader:
            self.schema = reader.schema
        rows = [len(batch) for batch in self._stored()]
        self.num_rows = sum(rows)

    def _reader(self) -> pa.RecordBatchReader | pa.RecordBatchFileReader:
        if not self._is_stream:
            return pa.ipc.open_file(self._mapped)
        self._mapped.seek(0)
        return pa.ipc.open_stream(self._mapped)

    def _stored(self) -> Iterator[pa.RecordBatch]:
        with self._reader() as reader:
            if not self._is_stream:
                yield from map(reader.get_batch, range(reader.num_record_batches))
                return
            at = self._mapped.tell()
            for batch in reader:
                start, at = at, self._mapped.tell()
                yield batch
                self._release(start, at)
            if self._mapped.tell() == at:
                # Arrow takes a stream that ends between batches as complete.
                raise EOFError("the mark of its end is missing")

    def _release(self, start: int, stop: int) -> None:
        """Let the system take back the memory of bytes that were read; they can be read again."""
        start -= start % mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def sizes(self) -> Mapping[str, tuple[int, float]]:
        found = {field.name: 0 for field in self.schema if is_list(field.type)}
        for batch in self._stored():
            for name in found:
                # Or an upper bound, without reading them.
                found[name] += len(batch.column(name).values)
        return {name: (n, n / max(self.num_rows, 1)) for name, n in found.items()}

    def batches(self, columns: Sequence[str], at_once: int, start: int) -> Iterator[pa.RecordBatch]:
        for batch in self._stored():
            for first, last in spans(len(batch), at_once, min(start, len(batch))):
                yield batch.select([*columns]).slice(first, last - first)
            start = max(0, start - len(batch))


class ColumnarFiles:
    """Files with the same columns, whose rows follow one another.

    Files are opened when they are read, so that there may be thousands.

    Parameters
    ----------
    paths
        Paths of the files, in order; at least one.

    Raises
    ------
    SourceError
        A file cannot be read.

    Attributes
    ----------
    paths
        Paths of the files.
    num_rows
        Number of rows of each file.
    schemas
        The distinct schemas, each with the path of a file that has it.
    sizes
        Of columns of lists: number of values, or an upper bound.
    per_row
        Of columns of lists: number of values of a row, on average where rows are longest.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        self.num_rows: list[int] = []
        self.schemas: dict[pa.Schema, str] = {}
        self.sizes: dict[str, int] = {}
        self.per_row: dict[str, float] = {}
        for path in paths:
            with readable(path):
                file = _open(path)
                sizes = file.sizes()
                # Fails where they are no text.
                _ = file.schema.names
            self.num_rows.append(file.num_rows)
            self.schemas.setdefault(file.schema, path)
            for name, (n_values, most) in sizes.items():
                self.sizes[name] = self.sizes.get(name, 0) + n_values
                self.per_row[name] = max(self.per_row.get(name, 0), most)

    def pieces(self, columns: Sequence[str], at_once: int, start: int = 0) -> Iterator[Piece]:
        """Rows from `start` on, at most `at_once` at a time.

        Parameters
        ----------
        columns
            Names of columns; files need not have all of them.

        Raises
        ------
        SourceError
            A file cannot be read, or changed since it was opened.
        """
        for path, n_rows in zip(self.paths, self.num_rows, strict=True):
            if start >= n_rows:
                start -= n_rows
                continue
            with readable(path):
                file = _open(path)
                names = [name for name in columns if name in file.schema.names]
                # Arrow's batches without columns would have no rows.
                batches = (
                    file.batches(names, at_once, start)
                    if names
                    else _no_columns(n_rows, at_once, start)
                )
            row, start = start, 0
            while (rows := _next(path, row, batches)) is not None:
                yield Piece(path, row, rows)
                row += len(rows)
            if row != n_rows:
                raise SourceError(
                    f"{path}: found {row} rows, expected {n_rows}; the file is damaged, or changed "
                    "while it was read"
                )


def _no_columns(n_rows: int, at_once: int, start: int) -> Iterator[pa.RecordBatch]:
    for first, last in spans(n_rows, at_once, start):
        yield pa.RecordBatch.from_arrays([pa.nulls(last - first)], [""])


def _next(path: str, row: int, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    """The next rows, if any; they are checked, as Arrow trusts what it reads."""
    with readable(path):
        rows = next(batches, None)
    if rows is None:
        return None
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        with readable(f"{path}: column {name!r}, from row {row}"):
            column.validate(full=True)
    return rows


#: Converts whatever Arrow raises for a damaged file to a SourceError.
readable = partial(readable_by, CUT_SHORT)


def _open(path: str) -> _File:
    is_parquet = _begins(path).startswith(PARQUET) or path.lower().endswith(".parquet")
    return _Parquet(path) if is_parquet else _Arrow(path)


def _begins(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(8)


def is_columnar_file(path: str) -> bool:
    """Whether a path is a Parquet or Arrow file."""
    if path.lower().endswith((".parquet", ".arrow", ".feather", ".ipc")):
        # Opening a damaged one says what is wrong.
        return os.path.isfile(path)
    try:
        return _begins(path).startswith((PARQUET, FEATHER))
    except OSError:
        return False


def schema_of(path: str) -> pa.Schema:
    """Names and types of the columns of a file; raise SourceError if it cannot be read."""
    with readable(path):
        return _open(path).schema


def is_list(type_: pa.DataType) -> bool:
    """Whether values of a type are lists of any kind."""
    name = str(type_).partition("<")[0].removeprefix("large_")
    return name in {"list", "fixed_size_list", "list_view"}
