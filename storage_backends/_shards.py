"""Where the chunks of an array are: Zarr's sharding, read and written without zarr-python.

A shard is a file of chunks, in any order, and an index behind them: offset and length of each as
little-endian uint64, all ones where a chunk is absent, then the CRC32C of the index.

Source: Zarr v3 specification, codec ``sharding_indexed``.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from storage_backends._zarr_codecs import checksum
from storage_backends.errors import ArchiveFormatError

_ABSENT = np.uint64(0xFFFFFFFFFFFFFFFF)
_CHECKSUM_BYTES = 4
_AGAIN = "copy the archive again, or convert its source again"
#: Files kept open, and shard indexes kept in memory, of one archive.
_MOST_OPEN = 128


class Piece(NamedTuple):
    """Bytes of a file."""

    key: str
    offset: int
    length: int


#: Gives the bytes of pieces ``[start, stop)`` of those that were asked for.
Reader = Callable[[int, int], list[bytes]]


class Files(Protocol):
    """Where the files of an archive are read from."""

    def size(self, key: str) -> int | None:
        """Bytes of a file; None where there is none."""

    def tail(self, key: str, length: int) -> bytes | None:
        """The last `length` bytes of a file, fewer if it is shorter; None where there is none."""

    def fetch(self, pieces: Sequence[Piece]) -> Reader:
        """Begin to read pieces; the function that is returned gives those ``[start, stop)``.

        Any threads may call it. It raises ArchiveFormatError where a file ends before a piece does.
        """

    def total(self, prefix: str) -> int:
        """Bytes of all files whose key begins with the path `prefix`."""

    def close(self) -> None:
        """Let go of files and memory."""


class LocalFiles:
    """Files of a directory, of which some are kept open."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()

    def hold(self, keys: Iterable[str]) -> None:
        """Open files already, so that they outlive their removal; as many as are kept open."""
        for key in islice(keys, _MOST_OPEN):
            self._file(key)

    def _file(self, key: str) -> _OpenFile | None:
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
        try:
            file = _OpenFile(os.path.join(self._root, key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        with self._lock:
            self._open[key] = file
            while len(self._open) > _MOST_OPEN:
                # Closed when the last reader lets go of it.
                self._open.popitem(last=False)
        return file

    def size(self, key: str) -> int | None:
        file = self._file(key)
        return None if file is None else os.fstat(file.descriptor).st_size

    def tail(self, key: str, length: int) -> bytes | None:
        file = self._file(key)
        if file is None:
            return None
        size = os.fstat(file.descriptor).st_size
        return os.pread(file.descriptor, length, max(0, size - length))

    def fetch(self, pieces: Sequence[Piece]) -> Reader:
        if len(pieces) > 1 and hasattr(os, "posix_fadvise"):
            # The system reads ahead while the first chunks are decoded.
            for span in merged(pieces, gap=1 << 16, most=1 << 22):
                file, advice = self._file(span.key), os.POSIX_FADV_WILLNEED
                if file is not None:
                    os.posix_fadvise(file.descriptor, span.offset, span.length, advice)
        return lambda start, stop: self._read(pieces[start:stop])

    def _read(self, pieces: Sequence[Piece]) -> list[bytes]:
        # Neighbouring chunks in one call: each call lets another thread have the interpreter.
        spans = list(merged(pieces, gap=0, most=1 << 24))
        return cut(pieces, spans, [self._read_span(span) for span in spans])

    def _read_span(self, span: Piece) -> bytes:
        file = self._file(span.key)
        return b"" if file is None else os.pread(file.descriptor, span.length, span.offset)

    def total(self, prefix: str) -> int:
        found = os.walk(os.path.join(self._root, prefix))
        return sum(
            os.path.getsize(os.path.join(directory, name))
            for directory, _, names in found
            for name in names
        )

    def close(self) -> None:
        with self._lock:
            self._open.clear()


class _OpenFile:
    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def cut(pieces: Sequence[Piece], spans: Sequence[Piece], data: Sequence[bytes]) -> list[bytes]:
    """The bytes of pieces out of those of sorted spans that hold them."""
    starts = [(span.key, span.offset) for span in spans]
    found = []
    for piece in pieces:
        i = bisect_right(starts, (piece.key, piece.offset)) - 1
        first = piece.offset - spans[i].offset
        found.append(data[i][first : first + piece.length])
        if len(found[-1]) != piece.length:
            raise ArchiveFormatError(f"the file {piece.key} is truncated or missing")
    return found


def merged(pieces: Sequence[Piece], gap: int, most: int) -> Iterator[Piece]:
    """Join pieces of one file that are at most `gap` bytes apart, up to `most` bytes together."""
    current: Piece | None = None
    for piece in sorted(pieces):
        if current is None:
            current = piece
            continue
        end = max(current.offset + current.length, piece.offset + piece.length)
        near = piece.key == current.key and piece.offset <= current.offset + current.length + gap
        if near and end - current.offset <= most:
            current = Piece(current.key, current.offset, end - current.offset)
        else:
            yield current
            current = piece
    if current is not None:
        yield current


class ShardedChunks:
    """The chunks of a one-dimensional grid, in shards or each in a file of its own.

    Parameters
    ----------
    where
        Opens the message of an error.
    prefix
        Key of the files before the number of the shard, such as ``X/data/c/``.
    suffix
        What follows it: ``/0`` for each further dimension.
    per_shard
        Chunks in a shard; 0 where each chunk is a file of its own.
    complete
        Whether every chunk must be there. Other writers leave out those of fill values.
    """

    def __init__(
        self,
        where: str,
        files: Files,
        prefix: str,
        suffix: str,
        per_shard: int,
        *,
        complete: bool,
    ) -> None:
        self._where, self._files, self._complete = where, files, complete
        self._prefix, self._suffix, self._per_shard = prefix, suffix, per_shard
        self._indexes: OrderedDict[int, NDArray[np.uint64]] = OrderedDict()
        self._lock = threading.Lock()

    def locate(self, chunks: NDArray[np.int64]) -> list[Piece | None]:
        """Where each of some rising chunks is; None where it was never written."""
        if not self._per_shard:
            return [self._whole_file(chunk) for chunk in chunks.tolist()]
        shards, within = np.divmod(chunks, self._per_shard)
        found: list[Piece | None] = []
        for shard in np.unique(shards).tolist():
            index, key = self._index(shard), self._key(shard)
            for offset, length in index[within[shards == shard]].tolist():
                absent = offset == length == int(_ABSENT)
                found.append(None if absent else Piece(key, offset, length))
        if self._complete and None in found:
            raise ArchiveFormatError(
                f"{self._where}: chunk {chunks[found.index(None)]} is missing; {_AGAIN}"
            )
        return found

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number}{self._suffix}"

    def _whole_file(self, chunk: int) -> Piece | None:
        key = self._key(chunk)
        size = self._files.size(key)
        return None if size is None else Piece(key, 0, size)

    def _index(self, shard: int) -> NDArray[np.uint64]:
        with self._lock:
            if shard in self._indexes:
                self._indexes.move_to_end(shard)
                return self._indexes[shard]
        index = self._read_index(shard)
        with self._lock:
            self._indexes[shard] = index
            while len(self._indexes) > _MOST_OPEN:
                self._indexes.popitem(last=False)
        return index

    def _read_index(self, shard: int) -> NDArray[np.uint64]:
        key = self._key(shard)
        length = self._per_shard * 16 + _CHECKSUM_BYTES
        tail = self._files.tail(key, length)
        if tail is None:
            if not self._complete:
                return np.full((self._per_shard, 2), _ABSENT, "<u8")
            raise ArchiveFormatError(f"{self._where}: its shard {key} is missing; {_AGAIN}")
        if len(tail) < length or checksum(tail[:-_CHECKSUM_BYTES]) != tail[-_CHECKSUM_BYTES:]:
            raise ArchiveFormatError(
                f"{self._where}: the index of its shard {key} is damaged, or the file is "
                f"truncated; {_AGAIN}"
            )
        return np.frombuffer(tail[:-_CHECKSUM_BYTES], "<u8").reshape(-1, 2)


class ShardWriter:
    """Writes chunks one after the other into files of `per_shard` chunks.

    Parameters
    ----------
    directory
        Gets the files ``0``, ``1`` and so on, or ``0/0`` with a `suffix`.
    """

    def __init__(self, directory: str, suffix: str, per_shard: int) -> None:
        self._directory, self._suffix, self._per_shard = directory, suffix, per_shard
        self._descriptor = -1
        self._index: list[tuple[int, int]] = []
        self._offset = 0
        self.n_chunks = 0
        self.nbytes = 0

    def append(self, data: bytes) -> None:
        """Write the next chunk."""
        if self._descriptor < 0:
            path = f"{self._directory}/{self.n_chunks // self._per_shard}{self._suffix}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._write(data)
        self._index.append((self._offset, len(data)))
        self._offset += len(data)
        self.n_chunks += 1
        if len(self._index) == self._per_shard:
            self._end_shard(self._per_shard)

    def finish(self) -> int:
        """End the last shard; returns the number of chunks that a shard of this array has."""
        # A single shard need not have room for more than it holds.
        per_shard = min(self._per_shard, max(1, self.n_chunks))
        if self._descriptor >= 0:
            self._end_shard(per_shard)
        return per_shard

    def close(self) -> None:
        """Leave without an index."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _end_shard(self, per_shard: int) -> None:
        index = np.full((per_shard, 2), _ABSENT, "<u8")
        index[: len(self._index)] = self._index
        data = index.tobytes()
        self._write(data + checksum(data))
        self.close()
        self._index, self._offset = [], 0

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self.nbytes += len(data)
