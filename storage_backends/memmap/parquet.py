"""Parquet files of tables: any rows and columns, read in one thread or in several."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage_backends.compute import threads
from storage_backends.compute.caching import LRUCache, cached_property
from storage_backends.directory.mapped_file import MappedFile
from storage_backends.errors import ArchiveFormatError, ScdlError, one_line
from storage_backends.memmap.table_writer import ROW_GROUP

if TYPE_CHECKING:
    from pyarrow import Schema, Table

#: Maximum of values that one thread reads alone.
_MOST_ALONE = 1 << 20
#: Bytes of a file that is read rather than mapped.
_SMALL = 1 << 16
#: Bytes of a file whose content is kept to compare others with.
_MOST_KEPT = 1 << 22
#: Contents of files and their hashes, by size, of 16 MB altogether. Thousands of archives often
#: have the same genes, and comparing them takes a fifth of the time of hashing.
_hashed = LRUCache[int, tuple[bytes, bytes]](1 << 24, lambda value: len(value[0]))
#: Errors that pyarrow raises for bytes that are not a table.
_UNREADABLE = (
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
)


class ParquetFile:
    """One file, mapped at its first use. Any thread may call, as each opens a reader of its own.

    Parameters
    ----------
    path
        Path of the file.
    mapped
        Mapped files by path, which are read instead of those on disk.
    coded
        Returns the columns that are read as dictionary arrays.
    """

    def __init__(
        self,
        path: str,
        mapped: Mapping[str, MappedFile],
        coded: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self.path, self._mapped, self._coded = path, mapped, coded
        #: The reader that read the footer, until a thread takes it.
        self._first: pq.ParquetFile

    def __str__(self) -> str:
        return self.path

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        with readable(self.path):
            return len(self._data)

    @cached_property
    def content(self) -> bytes:
        """Hash of the bytes."""
        with readable(self.path):
            return _hash(self._data)

    @cached_property
    def num_rows(self) -> int:
        """Number of rows; raise ArchiveFormatError unless the row groups have that total."""
        with readable(self.path):
            rows, n_rows = self._group_rows, int(self._footer.num_rows)
        if min(rows, default=0) < 0 or sum(rows) != n_rows:
            raise ArchiveFormatError(
                f"{self.path}: expected groups of {n_rows} rows altogether, found {sum(rows)}"
            )
        return n_rows

    @cached_property
    def schema(self) -> Schema:
        """Names and types of the columns; those that are read as dictionaries have such types."""
        with readable(self.path):
            _ = self._footer
            return self._arrow_schema

    def pieces(self, name: str) -> Iterator[pa.Array]:
        """A column, some rows at a time."""
        n_rows = self.num_rows
        for start in range(0, n_rows, ROW_GROUP):
            yield from self.read([name], start, min(start + ROW_GROUP, n_rows)).column(0).chunks

    def read(self, columns: list[str], start: int, stop: int) -> Table:
        """Rows ``[start, stop)`` of some columns."""
        file = self._open()
        groups: list[int] = []
        first_row, position = 0, 0
        lengths = self._group_rows
        for i, n_rows in enumerate(lengths):
            if position < stop and position + n_rows > start:
                first_row = first_row if groups else position
                groups.append(i)
            position += n_rows
        with readable(f"{self.path}: {columns!r:.200}"):
            n_values = sum(lengths[i] for i in groups) * len(columns)
            if n_values <= _MOST_ALONE or len(groups) < 2:
                table = _read(file, groups, columns)
            else:
                table = self._read_groups(groups, columns)
            if set(table.column_names) != set(columns):
                raise KeyError(*columns)
            if table.num_rows > stop - start:
                table = table.slice(start - first_row, stop - start)
            return table.replace_schema_metadata(None)

    def read_all(self) -> Table:
        """All rows and columns."""
        file = self._open()
        return _read(file, range(file.num_row_groups), None)

    def _read_groups(self, groups: list[int], columns: list[str]) -> Table:
        """Read row groups in several threads."""
        n = min(threads.n_threads(), len(groups))
        bounds = [len(groups) * i // n for i in range(n + 1)]
        found: list[Table] = [None] * n

        def read(i: int) -> None:
            file = self._open()
            found[i] = _read(file, groups[bounds[i] : bounds[i + 1]], columns)

        threads.for_each(read, range(n))
        return pa.concat_tables(found)

    def _open(self) -> pq.ParquetFile:
        with readable(self.path):
            footer = self._footer
            return self.__dict__.pop("_first", None) or self._reader(footer)

    def _reader(self, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
        # The metadata of a file cannot be longer than the file.
        longest = max(len(self._data), 1)
        return pq.ParquetFile(
            pa.BufferReader(pa.py_buffer(self._data)),
            metadata=footer,
            read_dictionary=list(self._coded()),
            page_checksum_verification=True,
            # The file is in memory already.
            pre_buffer=False,
            thrift_string_size_limit=longest,
            thrift_container_size_limit=longest,
        )

    @cached_property
    def _footer(self) -> pq.FileMetaData:
        reader = self._reader()
        # Unlike the schema of the footer, this one does not refer to what refers to it.
        self._arrow_schema = reader.schema_arrow
        # From now on another thread may take it.
        self._first = reader
        return reader.metadata

    @cached_property
    def _group_rows(self) -> list[int]:
        footer = self._footer
        return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]

    @cached_property
    def _data(self) -> NDArray[np.uint8]:
        return (self._mapped.get(self.path) or MappedFile(self.path, _SMALL)).data


def _read(file: pq.ParquetFile, groups: Sequence[int], columns: list[str] | None) -> Table:
    """Row groups of a file, read in this thread.

    A thread of Arrow may release our memory only at interpreter exit, which makes the process fail.
    """
    table = file.read_row_groups(groups, columns, use_threads=False)
    # Arrow skips a page if a damaged header claims that it belongs to something else.
    n_rows = sum(file.metadata.row_group(i).num_rows for i in groups)
    if table.num_columns and table.num_rows != n_rows:
        raise ValueError(f"expected {n_rows} rows, found {table.num_rows}")
    return table


class readable(contextlib.AbstractContextManager[None]):
    """Raise errors of pyarrow as ArchiveFormatError with their location.

    A class, since generators take longer than what a column of a small table takes to read.
    """

    def __init__(self, where: str) -> None:
        self._where = where

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if error is None or isinstance(error, ScdlError) or not isinstance(error, _UNREADABLE):
            return
        if isinstance(error, FileNotFoundError):
            raise ArchiveFormatError(f"{self._where}: the file is missing") from None
        raise ArchiveFormatError(
            f"{self._where}: not a readable parquet file ({one_line(error):.300})"
        ) from error


def _hash(content: NDArray[np.uint8]) -> bytes:
    """SHA-256 of the content of a file."""
    if len(content) <= _MOST_KEPT:
        kept = _hashed.get(len(content))
        if kept is None:
            copy = content.tobytes()
            kept = _hashed.setdefault(len(content), (copy, hashlib.sha256(copy).digest()))
        if np.array_equal(np.frombuffer(kept[0], np.uint8), content):
            return kept[1]
    return hashlib.sha256(content.data).digest()
