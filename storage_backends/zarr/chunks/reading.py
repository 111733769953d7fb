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
#: Chunks that a thread decodes at once; a single thread decodes up to this many bytes.
_GROUP_CHUNKS = 32
_GROUP_BYTES = 1 << 22

#: Decoded chunks of an archive that were used last, by array and number.
ChunkCache = LRUCache[tuple[str, int], NDArray[Any]]


def chunk_cache(nbytes: int) -> ChunkCache:
    """A cache of at most `nbytes` of decoded chunks."""
    return LRUCache(nbytes, lambda chunk: chunk.nbytes)


class Chunks(ABC):
    """Chunks of an array in ascending order, being read; any thread may decode them."""

    def place(
        self,
        start: int,
        stop: int,
        memory: NDArray[Any],
        plan: ChunkPlan,
        bound: Bound,
        out: NDArray[Any],
    ) -> bool:
        """Copy pieces of chunks ``[start, stop)`` to `out`; False where decode() has to do it.

        Parameters
        ----------
        memory
            Holds one decoded chunk.
        plan
            The pieces of all of the chunks.
        """
        return False

    @abstractmethod
    def decode(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Decode chunks ``[start, stop)`` into the rows of `out`."""


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

    def place(
        self,
        start: int,
        stop: int,
        memory: NDArray[Any],
        plan: ChunkPlan,
        bound: Bound,
        out: NDArray[Any],
    ) -> bool:
        if self._written is not None:
            return False
        try:
            return self._reader.chain.place(self._content, start, stop, memory, plan, bound, out)
        except DamagedChunkError as error:
            raise self._damage(error, 0) from error

    def decode(self, start: int, stop: int, out: NDArray[Any]) -> None:
        first, last = start, stop
        if self._written is not None:
            first, last = int(self._written[:start].sum()), int(self._written[:stop].sum())
        content = self._content.part(first, last)
        try:
            if self._written is None:
                self._reader.chain.decode(content, out)
                return
            out[:] = self._reader.fill
            if first < last:
                decoded = np.empty((last - first, *out.shape[1:]), out.dtype)
                self._reader.chain.decode(content, decoded)
                out[self._written[start:stop]] = decoded
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
    name
        Key of its chunks in the cache.
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
        name: str,
        spec: ArraySpec,
        chunk_rows: int,
        reader: ChunkReader,
        cache: ChunkCache,
    ) -> None:
        self.spec = spec
        self._where, self._name, self._reader, self._cache = where, name, reader, cache
        self.chunk_rows = chunk_rows
        self._width = int(np.prod(spec.item_shape, dtype=np.int64))
        self._chunk_length = chunk_rows * self._width
        self._scratch = threading.local()

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
        elif n <= _WINDOW_CHUNKS:
            self._read_many(todo, numbers)
        else:
            for first in range(0, n, _WINDOW_CHUNKS):
                self._read_many(todo.part(first, first + _WINDOW_CHUNKS), numbers)

    def _read_few(self, todo: ChunkPlan, out: NDArray[Any]) -> None:
        """Read chunks through the cache, as small reads often revisit the same chunks."""
        missing = []
        for i, number in enumerate(todo.chunks.tolist()):
            chunk = self._cache.get((self._name, number))
            if chunk is None:
                missing.append(i)
            else:
                self._place(chunk, todo.part(i, i + 1), out)
        if not missing:
            return
        chunks = self._reader.fetch(todo.chunks[missing])

        def decode(position: int) -> None:
            part = todo.part(missing[position], missing[position] + 1)
            chunk = np.empty((1, self._chunk_length), self._reader.dtype)
            chunks.decode(position, position + 1, chunk)
            self._cache.setdefault((self._name, int(part.chunks[0])), chunk[0])
            self._place(chunk[0], part, out)

        for_each(decode, range(len(missing)))

    def _read_many(self, todo: ChunkPlan, out: NDArray[Any]) -> None:
        """Read chunks without the cache, whose entries so many would evict.

        Decoding into recently used memory is also faster.
        """
        n, threads = len(todo.chunks), n_threads()
        chunks = self._reader.fetch(todo.chunks)
        # Threads contend for the GIL between groups.
        most = _GROUP_CHUNKS
        if threads == 1:
            most = max(most, _GROUP_BYTES // (self._chunk_length * self._reader.dtype.itemsize))
        group = max(1, min(most, -(-n // threads)))

        def place(start: int) -> None:
            stop = min(start + group, n)
            memory = _as_bits(self._memory(), out)
            if not chunks.place(start, stop, memory, todo, self.bound, out):
                decoded = np.empty((stop - start, self._chunk_length), self._reader.dtype)
                chunks.decode(start, stop, decoded)
                self._place(decoded.reshape(-1), todo.part(start, stop), out)

        for_each(place, range(0, n, group))

    def _memory(self) -> NDArray[Any]:
        """Memory of this thread for one chunk."""
        if not hasattr(self._scratch, "memory"):
            self._scratch.memory = np.empty(self._chunk_length, self._reader.dtype)
        memory: NDArray[Any] = self._scratch.memory
        return memory

    def _place(self, chunks: NDArray[Any], part: ChunkPlan, out: NDArray[Any]) -> None:
        """Copy pieces of decoded chunks, which follow one another."""
        where = part.positions(self._chunk_length), part.targets, part.lengths
        if not place(_as_bits(chunks, out), *where, self.bound, out):
            raise ArchiveFormatError(
                f"{self._where}: one of its chunks {part.chunks.tolist()} holds a gene that is not "
                f"below {self.bound.below}; convert the source again"
            )


def _as_bits(chunks: NDArray[Any], out: NDArray[Any]) -> NDArray[Any]:
    """Decoded numbers as bits where the output is one of bits, see :meth:`ZarrArray.read`."""
    is_bits = out.dtype.kind == "u" and chunks.itemsize == out.itemsize
    return chunks.view(out.dtype) if is_bits else chunks
