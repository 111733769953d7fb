"""Zarr's sharding, read and written without zarr-python.

A shard is a file of chunks in any order, followed by an index: the offset and length of each chunk
as little-endian uint64, with all bits set if the chunk is absent, then the CRC32C of the index.

Source: Zarr v3 specification, codec ``sharding_indexed``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.caching import LRUCache
from storage_backends.compute.jit import kernel
from storage_backends.directory.content import CHECKSUM_BYTES, checksum
from storage_backends.directory.recorder import CheckedFile
from storage_backends.errors import COPY_AGAIN, ArchiveFormatError
from storage_backends.zarr.chunks.files import Files
from storage_backends.zarr.codecs.blosc import word_at

#: Maximum size of the cache of shard indexes, in bytes per process.
_INDEX_BYTES = 128 << 20
#: Recently used indexes, by array and shard. All archives share the cache, since a collection may
#: have thousands.
_indexes = LRUCache[tuple[object, int], NDArray[np.uint64]](_INDEX_BYTES, lambda i: i.nbytes)

#: Offset and length of chunks that were not written.
ABSENT = np.uint64(0xFFFFFFFFFFFFFFFF)


class ShardedChunks:
    """The chunks of a one-dimensional grid, in shards or in one file each.

    Parameters
    ----------
    where
        Start of error messages.
    prefix
        Start of the keys, up to the number of the file, such as ``X/data/c/``.
    suffix
        End of the keys: ``/0`` for each further dimension.
    per_shard
        Chunks per shard; 0 if each chunk is a separate file.
    complete
        Whether every chunk must exist. Other writers omit chunks of fill values.
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
        self._where, self.files, self.complete = where, files, complete
        self._prefix, self._suffix, self._per_shard = prefix, suffix, per_shard
        self.is_sharded = per_shard > 0
        #: Identifies the array in the cache of indexes, without keeping its files open.
        self.identity = object()

    @property
    def per_file(self) -> int:
        """Chunks per file."""
        return max(self._per_shard, 1)

    def key(self, number: int) -> str:
        """Key of a file."""
        return f"{self._prefix}{number}{self._suffix}"

    def _parse(self, shard: int, tail: bytes | None) -> NDArray[np.uint64]:
        """Index at the end of a shard; None: the shard is missing."""
        if tail is None:
            if not self.complete:
                return np.full((self._per_shard, 2), ABSENT, "<u8")
            raise ArchiveFormatError(
                f"{self._where}: its shard {self.key(shard)} is missing; {COPY_AGAIN}"
            )
        data, found = tail[:-CHECKSUM_BYTES], tail[-CHECKSUM_BYTES:]
        if len(tail) < self._tail_length or checksum(data) != found:
            raise ArchiveFormatError(
                f"{self._where}: the index of its shard {self.key(shard)} is damaged, or the file "
                f"is truncated; {COPY_AGAIN}"
            )
        return np.frombuffer(data, "<u8").reshape(-1, 2)

    @property
    def _tail_length(self) -> int:
        return self._per_shard * 16 + CHECKSUM_BYTES


def indexes(wanted: Sequence[tuple[ShardedChunks, int]]) -> list[NDArray[np.uint64]]:
    """Offset and length of each chunk of files, :data:`ABSENT` for those that were not written.

    Parameters
    ----------
    wanted
        Grids, and the number of a file of each; their readers have the same type.
    """
    found = [_indexes.get((grid.identity, file)) for grid, file in wanted]
    missing = [i for i, index in enumerate(found) if index is None and wanted[i][0].is_sharded]
    if missing:
        files = [(grid.files, grid.key(n), grid._tail_length) for grid, n in wanted]
        tails = files[0][0].tails([files[i] for i in missing])
        for i, tail in zip(missing, tails, strict=True):
            grid, file = wanted[i]
            found[i] = _indexes.setdefault((grid.identity, file), grid._parse(file, tail))
    result = []
    for index, (grid, file) in zip(found, wanted, strict=True):
        if index is None:
            # The file is the chunk.
            size = grid.files.size(grid.key(file))
            index = np.array([[ABSENT, ABSENT] if size is None else [0, size]], np.uint64)
        result.append(index)
    return result


@kernel
def split(
    which: NDArray[np.int64],
    chunks: NDArray[np.int64],
    per_file: NDArray[np.int64],
    file: NDArray[np.int64],
    begun: NDArray[np.int64],
) -> int:
    """Number the files of chunks; returns how many there are.

    Parameters
    ----------
    which, chunks
        The grid of each chunk, and its number there. Chunks of a file follow one another.
    per_file
        Chunks in a file of each grid.
    file
        Output, the file of each chunk.
    begun
        Output, the grid of each file, and its number there.
    """
    n = 0
    for i in range(len(chunks)):
        grid = which[i]
        number = chunks[i] // per_file[grid]
        if n == 0 or begun[0, n - 1] != grid or begun[1, n - 1] != number:
            begun[0, n], begun[1, n] = grid, number
            n += 1
        file[i] = n - 1
    return n


@kernel
def look_up(
    indexes: NDArray[np.int64],
    file: NDArray[np.int64],
    entries: NDArray[np.int64],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
) -> tuple[int, int]:
    """Look up chunks in the indexes of files.

    Parameters
    ----------
    indexes
        Address of the index of each file.
    file, entries
        The file of each chunk, and its position in the index.
    offset, length
        Outputs, both -1 if the chunk was not written.

    Returns
    -------
    n_absent, bad
        How many were not written; the first with a negative offset or length, or -1.
    """
    n_absent, bad = 0, -1
    for i in range(len(file)):
        entry = indexes[file[i]] + entries[i] * 16
        offset[i], length[i] = np.int64(word_at(entry)), np.int64(word_at(entry + 8))
        if offset[i] == -1 and length[i] == -1:
            n_absent += 1
        elif bad < 0 and min(offset[i], length[i]) < 0:
            bad = i
    return n_absent, bad


class ShardWriter:
    """Writes chunks one after the other into files of `per_shard` chunks.

    Parameters
    ----------
    directory
        Directory of the files ``0``, ``1`` and so on, or ``0/0`` with a `suffix`.
    create
        Creates a file at a path.
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

    def skip(self, n_shards: int) -> None:
        """Go on after full shards that the directory has already."""
        self.n_chunks = n_shards * self._per_shard

    def append(self, data: bytes, sizes: Sequence[int]) -> None:
        """Write the next chunks, one after the other in `data`."""
        rest, at = memoryview(data), 0
        while at < len(sizes):
            if self._file is None:
                path = f"{self._directory}/{self.n_chunks // self._per_shard}{self._suffix}"
                os.makedirs(os.path.dirname(path), exist_ok=True)
                self._file = self._create(path)
            fitting = sizes[at : at + self._per_shard - len(self._index)]
            for size in fitting:
                self._index.append((self._offset, size))
                self._offset += size
            n_bytes = sum(fitting)
            self._write(self._file, rest[:n_bytes])
            rest, at = rest[n_bytes:], at + len(fitting)
            self.n_chunks += len(fitting)
            if len(self._index) == self._per_shard:
                self._end_shard(self._file, self._per_shard)

    def finish(self) -> int:
        """End the last shard; returns the number of chunks per shard."""
        # The index of a single shard needs no entries beyond its chunks.
        per_shard = min(self._per_shard, max(1, self.n_chunks))
        if self._file is not None:
            self._end_shard(self._file, per_shard)
        return per_shard

    def _end_shard(self, file: CheckedFile, per_shard: int) -> None:
        index = np.full((per_shard, 2), ABSENT, "<u8")
        index[: len(self._index)] = self._index
        data = index.tobytes()
        self._write(file, data + checksum(data))
        file.close()
        self._file = None
        self._index, self._offset = [], 0

    def _write(self, file: CheckedFile, data: bytes | memoryview) -> None:
        file.write(data)
        self.nbytes += len(data)
