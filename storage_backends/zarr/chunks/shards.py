"""Where the chunks of an array are: Zarr's sharding, read and written without zarr-python.

A shard is a file of chunks, in any order, and an index behind them: offset and length of each as
little-endian uint64, all ones where a chunk is absent, then the CRC32C of the index.

Source: Zarr v3 specification, codec ``sharding_indexed``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.recent import Recent
from storage_backends.directory import files as archive_files
from storage_backends.directory.checksums import CheckedFile
from storage_backends.directory.content import CHECKSUM_BYTES, Content, checksum
from storage_backends.directory.mapped_file import MappedFile, hold
from storage_backends.errors import COPY_AGAIN, ArchiveChangedError, ArchiveFormatError

_ABSENT = np.uint64(0xFFFFFFFFFFFFFFFF)
#: Shard indexes kept in memory, and files kept open beside those that are held, of one archive.
_MOST_OPEN = 128


class Pieces(NamedTuple):
    """Parts of files.

    Attributes
    ----------
    keys
        The files.
    file, offset, length
        Of each part its file, as a position in `keys`, and its bytes there; int64.
    """

    keys: Sequence[str]
    file: NDArray[np.int64]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]

    def part(self, start: int, stop: int) -> Pieces:
        """Some of the pieces."""
        chosen = slice(start, stop)
        return Pieces(self.keys, self.file[chosen], self.offset[chosen], self.length[chosen])


class Files(Protocol):
    """Where the files of an archive are read from."""

    def size(self, key: str) -> int | None:
        """Bytes of a file; None where there is none."""

    def tail(self, key: str, length: int) -> bytes | None:
        """The last `length` bytes of a file, fewer if it is shorter; None where there is none."""

    def fetch(self, pieces: Pieces) -> Content:
        """The bytes of pieces; ArchiveFormatError where a file ends before a piece does."""

    def total(self, prefix: str) -> int:
        """Bytes of all files whose key begins with the path `prefix`."""

    def close(self) -> None:
        """Let go of files and memory."""


class LocalFiles:
    """Files of a directory, of which some are held and some others kept open.

    Attributes
    ----------
    is_current
        Whether the directory is the one that was opened.

    Parameters
    ----------
    before_reading
        Called with the key of a file before it is read.
    """

    def __init__(self, root: str, before_reading: Callable[[str], None] | None = None) -> None:
        self.root = root
        self.is_current: Callable[[], bool] = lambda: True
        self._before_reading = before_reading or (lambda key: None)
        self._open = Recent[str, MappedFile](_MOST_OPEN)
        self._held: dict[str, MappedFile] = {}

    def hold(self, keys: Iterable[str]) -> None:
        """Map files so that they outlive their removal; of very many only the first."""
        self._held = hold(keys, self._open_file)

    def held(self, key: str) -> NDArray[np.uint8] | None:
        """The bytes of a file, where it is held."""
        file = self._held.get(key)
        if file is None:
            return None
        self._before_reading(key)
        return file.data

    def check_current(self) -> None:
        """ArchiveChangedError where another archive took the place of this one."""
        if not self.is_current():
            raise ArchiveChangedError(
                f"{self.root}: the archive was replaced since it was opened, and not all of its "
                "files are held; open it again"
            )

    def _open_file(self, key: str) -> MappedFile:
        return MappedFile(archive_files.path_of(self.root, key))

    def _file(self, key: str) -> MappedFile | None:
        self._before_reading(key)
        file = self._held.get(key) or self._open.get(key)
        if file is not None:
            return file
        try:
            file = self._open_file(key)
        except (FileNotFoundError, NotADirectoryError):
            file = None
        # Afterwards: what was opened is of the archive that stood there then.
        self.check_current()
        # Unmapped when the last reader lets go of it.
        return None if file is None else self._open.keep(key, file)

    def size(self, key: str) -> int | None:
        file = self._file(key)
        return None if file is None else len(file.data)

    def tail(self, key: str, length: int) -> bytes | None:
        file = self._file(key)
        return None if file is None else file.data[-length:].tobytes()

    def fetch(self, pieces: Pieces) -> Content:
        files = [self._file(key) for key in pieces.keys]
        sizes = np.array([0 if file is None else len(file.data) for file in files])
        sizes_of = sizes[pieces.file]
        beyond = (pieces.offset > sizes_of) | (pieces.length > sizes_of - pieces.offset)
        if beyond.any():
            key = pieces.keys[pieces.file[beyond.argmax()]]
            raise ArchiveFormatError(
                f"{self.root}: the file {key} is truncated or missing; {COPY_AGAIN}"
            )
        if len(pieces.file) > 1:
            # The system reads ahead while the first chunks are decoded.
            ahead, _ = spans(pieces, gap=1 << 16)
            for number, offset, length in zip(*(a.tolist() for a in ahead[1:]), strict=True):
                file = files[number]
                assert file is not None
                file.will_need(offset, length)
        starts = np.array([0 if file is None else file.address for file in files])
        return Content(starts[pieces.file] + pieces.offset, pieces.length, files)

    def total(self, prefix: str) -> int:
        found = os.walk(os.path.join(self.root, prefix))
        return sum(
            os.lstat(os.path.join(directory, name)).st_size
            for directory, _, names in found
            for name in names
        )

    def close(self) -> None:
        self._open.clear()
        self._held = {}


def spans(pieces: Pieces, gap: int) -> tuple[Pieces, NDArray[np.int64]]:
    """Join pieces that follow each other in a file, at most `gap` bytes apart.

    Returns
    -------
    spans, starts
        The joined pieces, and where each piece begins when these stand one after the other.
    """
    _, file, offset, length = pieces
    ends = offset + length
    apart = offset[1:] - ends[:-1]
    breaks = np.flatnonzero((file[1:] != file[:-1]) | (apart < 0) | (apart > gap)) + 1
    first = np.concatenate([[0], breaks]) if len(file) else breaks
    last = np.concatenate([breaks, [len(file)]])[: len(first)] - 1
    joined = ends[last] - offset[first]
    before = np.cumsum(joined) - joined
    of_piece = np.repeat(np.arange(len(first)), last - first + 1)
    starts = before[of_piece] + offset - offset[first][of_piece]
    return Pieces(pieces.keys, file[first], offset[first], joined), starts


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
        self._indexes = Recent[int, NDArray[np.uint64]](_MOST_OPEN)

    def locate(self, chunks: NDArray[np.int64]) -> tuple[Pieces, NDArray[np.bool_]]:
        """Where some rising chunks are, and which of them were written at all."""
        shards, within = np.divmod(chunks, max(self._per_shard, 1))
        numbers, file = np.unique(shards, return_inverse=True)
        keys = [self._key(shard) for shard in numbers.tolist()]
        if self._per_shard:
            found = np.empty((len(chunks), 2), np.uint64)
            for i, shard in enumerate(numbers.tolist()):
                found[file == i] = self._index(shard)[within[file == i]]
            there = (found != _ABSENT).any(axis=1)
        else:
            sizes = [self._files.size(key) for key in keys]
            there = np.array([size is not None for size in sizes])
            found = np.array([[0, size or 0] for size in sizes], np.uint64)
        if self._complete and not there.all():
            raise ArchiveFormatError(
                f"{self._where}: chunk {chunks[there.argmin()]} is missing; {COPY_AGAIN}"
            )
        offset, length = found[there].view(np.int64).T
        if len(offset) and min(int(offset.min()), int(length.min())) < 0:
            raise ArchiveFormatError(
                f"{self._where}: the index of a shard is damaged; {COPY_AGAIN}"
            )
        return Pieces(keys, file[there], offset, length), there

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number}{self._suffix}"

    def _index(self, shard: int) -> NDArray[np.uint64]:
        index = self._indexes.get(shard)
        return self._indexes.keep(shard, self._read_index(shard)) if index is None else index

    def _read_index(self, shard: int) -> NDArray[np.uint64]:
        key = self._key(shard)
        length = self._per_shard * 16 + CHECKSUM_BYTES
        tail = self._files.tail(key, length)
        if tail is None:
            if not self._complete:
                return np.full((self._per_shard, 2), _ABSENT, "<u8")
            raise ArchiveFormatError(f"{self._where}: its shard {key} is missing; {COPY_AGAIN}")
        if len(tail) < length or checksum(tail[:-CHECKSUM_BYTES]) != tail[-CHECKSUM_BYTES:]:
            raise ArchiveFormatError(
                f"{self._where}: the index of its shard {key} is damaged, or the file is "
                f"truncated; {COPY_AGAIN}"
            )
        return np.frombuffer(tail[:-CHECKSUM_BYTES], "<u8").reshape(-1, 2)


class ShardWriter:
    """Writes chunks one after the other into files of `per_shard` chunks.

    Parameters
    ----------
    directory
        Gets the files ``0``, ``1`` and so on, or ``0/0`` with a `suffix`.
    create
        Begins a file at a path.
    """

    def __init__(
        self,
        directory: str,
        suffix: str,
        per_shard: int,
        create: Callable[[str], CheckedFile],
    ) -> None:
        self._directory, self._suffix, self._per_shard = directory, suffix, per_shard
        self._create = create
        self._file: CheckedFile | None = None
        self._index: list[tuple[int, int]] = []
        self._offset = 0
        self.n_chunks = 0
        self.nbytes = 0

    def append(self, data: bytes) -> None:
        """Write the next chunk."""
        if self._file is None:
            path = f"{self._directory}/{self.n_chunks // self._per_shard}{self._suffix}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self._file = self._create(path)
        self._write(self._file, data)
        self._index.append((self._offset, len(data)))
        self._offset += len(data)
        self.n_chunks += 1
        if len(self._index) == self._per_shard:
            self._end_shard(self._file, self._per_shard)

    def finish(self) -> int:
        """End the last shard; returns the number of chunks that a shard of this array has."""
        # A single shard need not have room for more than it holds.
        per_shard = min(self._per_shard, max(1, self.n_chunks))
        if self._file is not None:
            self._end_shard(self._file, per_shard)
        return per_shard

    def close(self) -> None:
        """Leave without an index."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _end_shard(self, file: CheckedFile, per_shard: int) -> None:
        index = np.full((per_shard, 2), _ABSENT, "<u8")
        index[: len(self._index)] = self._index
        data = index.tobytes()
        self._write(file, data + checksum(data))
        self.close()
        self._index, self._offset = [], 0

    def _write(self, file: CheckedFile, data: bytes) -> None:
        file.write(data)
        self.nbytes += len(data)
