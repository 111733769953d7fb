"""Reading ranges of one array of a Zarr store: plan the chunks, decode each once, place pieces."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.base import ArraySpec
from storage_backends.compute.caching import LRUCache
from storage_backends.compute.threads import for_each, n_threads
from storage_backends.directory.content import Content
from storage_backends.errors import COPY_AGAIN, ArchiveFormatError, MissingCodecError
from storage_backends.zarr.chunks.files import Files
from storage_backends.zarr.chunks.shards import ShardedChunks
from storage_backends.zarr.codecs.chain import Chain
from storage_backends.zarr.codecs.encodings import DamagedChunkError
from storage_backends.zarr.plan import Bound, ChunkPlan, place, plan

#: Maximum of compressed chunks in memory during one read.
_WINDOW_CHUNKS = 1024
#: Maximum of chunks in a read that uses the cache.
_FEW_CHUNKS = 16
#: Bytes of chunks that a thread decodes at once: few enough for the CPU's cache, and enough that
#: threads seldom contend for the GIL.
_GROUP_BYTES = 1 << 20

#: Has the attribute `memory` in threads that decode groups of chunks.
_scratch = threading.local()

#: Bytes of decoded chunks that a process keeps.
_CACHE_BYTES = 64 << 20
#: Decoded chunks that were used last, by array and number. All archives share them, since a
#: collection may have thousands.
_chunks = LRUCache[tuple[object, int], NDArray[Any]](_CACHE_BYTES, lambda chunk: chunk.nbytes)


class Chunks(ABC):
    """Chunks of an array in ascending order, being read; any thread may decode them."""

    @abstractmethod
    def decode(self, start: int, stop: int, needed: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Decode chunks ``[start, stop)`` into the rows of `out`.

        Of each chunk its item of `needed` says how many numbers the caller will use.
        """


class ChunkReader(ABC):
    """Gives the chunks of one array.

    Attributes
    ----------
    dtype
        Type of the decoded numbers, which may be narrower than the array's.
    """

    dtype: np.dtype[Any]

    @abstractmethod
    def fetch(self, chunks: NDArray[np.int64]) -> Chunks:
        """Begin to read chunks, given in ascending order."""


class DirectReader(ChunkReader):
    """Reads files and decodes chunks without zarr-python."""

    def __init__(
        self, where: str, files: Files, grid: ShardedChunks, chain: Chain, fill: Any
    ) -> None:
        self.where, self.chain, self.fill = where, chain, fill
        self._files, self._grid = files, grid
        self.dtype = chain.stored

    def fetch(self, chunks: NDArray[np.int64]) -> Chunks:
        pieces, written = self._grid.locate(chunks)
        return _Fetched(self, chunks, written, self._files.fetch(pieces))


class _Fetched(Chunks):
    """Chunks whose encoded bytes are in memory."""

    def __init__(
        self,
        reader: DirectReader,
        chunks: NDArray[np.int64],
        written: NDArray[np.bool_],
        content: Content,
    ) -> None:
        self._reader, self._chunks, self._content = reader, chunks, content
        # Chunks with only fill values may be absent.
        self._written = None if written.all() else written

    def decode(self, start: int, stop: int, needed: NDArray[np.int64], out: NDArray[Any]) -> None:
        decode, first = self._reader.chain.decode, start
        try:
            if self._written is None:
                decode(self._content.part(start, stop), needed, out)
                return
            out[:] = self._reader.fill
            first, last = int(self._written[:start].sum()), int(self._written[:stop].sum())
            if first < last:
                written = self._written[start:stop]
                decoded = np.empty((last - first, *out.shape[1:]), out.dtype)
                decode(self._content.part(first, last), needed[written], decoded)
                out[written] = decoded
        except MissingCodecError as error:
            raise MissingCodecError(f"{self._reader.where}: {error}") from error
        except DamagedChunkError as error:
            raise self._damage(error, first) from error

    def _damage(self, error: DamagedChunkError, first: int) -> ArchiveFormatError:
        """The error, with the number of the chunk in the array."""
        chunks = self._chunks if self._written is None else self._chunks[self._written]
        number = chunks[first + error.position]
        return ArchiveFormatError(
            f"{self._reader.where}: chunk {number} is damaged: {error}; {COPY_AGAIN}"
        )


class ZarrArray:
    """One array of numbers.

    Parameters
    ----------
    where
        Opens the message of an error.
    chunk_rows
        Items in a chunk.

    Attributes
    ----------
    bound
        Upper bound of gene ids, and their mapping if genes are stored in another order.
    """

    bound = Bound.of()

    def __init__(
        self,
        where: str,
        spec: ArraySpec,
        chunk_rows: int,
        reader: ChunkReader,
    ) -> None:
        self.spec = spec
        self._where, self._reader = where, reader
        #: Identifies chunks of this array in the cache, without keeping its files open.
        self._key = object()
        self.chunk_rows = chunk_rows
        self._width = int(np.prod(spec.item_shape, dtype=np.int64))
        self._chunk_length = chunk_rows * self._width

    def read(self, starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Read checked ranges of items into a checked output."""
        if out.size == 0:
            return
        todo = plan(starts * self._width, stops * self._width, self._chunk_length)
        numbers = out.reshape(-1)
        if self._reader.dtype == out.dtype:
            # Copied as bits: one kernel per item size, and NaN payloads are preserved.
            numbers = numbers.view(f"u{out.itemsize}")
        n = len(todo.chunks)
        if n <= _FEW_CHUNKS:
            self._read_few(todo, numbers)
            return
        for first in range(0, n, _WINDOW_CHUNKS):
            self._read_many(todo, first, min(first + _WINDOW_CHUNKS, n), numbers)

    def _read_few(self, todo: ChunkPlan, out: NDArray[Any]) -> None:
        """Read chunks through the cache, as small reads often revisit the same chunks."""
        missing = []
        for i, number in enumerate(todo.chunks.tolist()):
            chunk = _chunks.get((self._key, number))
            if chunk is None:
                missing.append(i)
            else:
                self._place(chunk, todo, i, out)
        if not missing:
            return
        chunks = self._reader.fetch(todo.chunks[missing])
        whole = np.array([self._chunk_length])

        def decode(position: int) -> None:
            i = missing[position]
            chunk = np.empty((1, self._chunk_length), self._reader.dtype)
            chunks.decode(position, position + 1, whole, chunk)
            _chunks.setdefault((self._key, int(todo.chunks[i])), chunk)
            self._place(chunk, todo, i, out)

        for_each(decode, range(len(missing)))

    def _read_many(self, todo: ChunkPlan, first: int, last: int, out: NDArray[Any]) -> None:
        """Read chunks without the cache, whose entries so many would evict.

        Decoding into recently used memory is also faster.
        """
        chunks = self._reader.fetch(todo.chunks[first:last])
        chunk_bytes = self._chunk_length * self._reader.dtype.itemsize
        group = max(1, min(_GROUP_BYTES // chunk_bytes, -(-(last - first) // n_threads())))

        def decode(start: int) -> None:
            stop = min(start + group, last)
            memory = _memory((stop - start, self._chunk_length), self._reader.dtype)
            chunks.decode(start - first, stop - first, todo.needed[start:stop], memory)
            self._place(memory, todo, start, out)

        for_each(decode, range(first, last, group))

    def forget(self) -> None:
        """Release its chunks in the cache."""
        _chunks.remove(lambda key: key[0] is self._key)

    def _place(self, chunks: NDArray[Any], todo: ChunkPlan, first: int, out: NDArray[Any]) -> None:
        """Copy the pieces of decoded chunks, which are those of the plan from `first` on."""
        # Numbers as bits where the output is one of bits, see `read`.
        if out.dtype.kind == "u" and chunks.itemsize == out.itemsize:
            chunks = chunks.view(out.dtype)
        bounds = todo.bounds[first : first + len(chunks) + 1]
        row = place(chunks, bounds, todo.sources, todo.targets, todo.lengths, self.bound, out)
        if row >= 0:
            raise ArchiveFormatError(
                f"{self._where}: chunk {todo.chunks[first + row]} holds a gene that is not below "
                f"{self.bound.below}; convert the source again"
            )


def _memory(shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Memory of this thread for a group of chunks; it is used again by the next call."""
    n_bytes = shape[0] * shape[1] * dtype.itemsize
    if n_bytes > _GROUP_BYTES:
        return np.empty(shape, dtype)
    if not hasattr(_scratch, "memory"):
        _scratch.memory = np.empty(_GROUP_BYTES, np.uint8)
    return np.ndarray(shape, dtype, _scratch.memory)
