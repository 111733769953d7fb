"""Reading ranges of one array of a Zarr store: plan the chunks, decode each once, place pieces."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends._chunk_plan import ChunkPlan, place, place_mapped, plan
from storage_backends._shards import Files, ShardedChunks
from storage_backends._zarr_codecs import Chain
from storage_backends.base import ArraySpec
from storage_backends.errors import ArchiveFormatError, MissingCodecError
from storage_backends.threads import for_each, n_threads

#: Compressed chunks held at once while one read goes on.
_WINDOW_CHUNKS = 1024
#: Chunks of one read up to which they are kept for the next.
_FEW_CHUNKS = 16
#: Chunks that a thread decodes at once.
_GROUP_CHUNKS = 8


class ChunkCache:
    """Decoded chunks that were used last, bounded in bytes; any threads may use it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._bytes = 0
        self._chunks: OrderedDict[tuple[str, int], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int]) -> NDArray[Any] | None:
        """A chunk, or None."""
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is not None:
                self._chunks.move_to_end(key)
            return chunk

    def put(self, key: tuple[str, int], chunk: NDArray[Any]) -> None:
        """Keep a chunk, and let go of those not used for longest."""
        with self._lock:
            if key in self._chunks:
                return
            self._chunks[key] = chunk
            self._bytes += chunk.nbytes
            while self._bytes > self.limit:
                self._bytes -= self._chunks.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forget all chunks."""
        with self._lock:
            self._chunks.clear()
            self._bytes = 0


class ChunkReader(ABC):
    """Gives the chunks of one array, decoded.

    Attributes
    ----------
    dtype
        Type of the numbers that it gives, which may be narrower than the array's.
    """

    dtype: np.dtype[Any]

    @abstractmethod
    def fetch(self, chunks: NDArray[np.int64]) -> Decoder:
        """Begin to read some rising chunks; the function that is returned decodes them."""


#: Decodes chunks ``[start, stop)`` of those fetched into the rows of an array; for any threads.
Decoder = Callable[[int, int, NDArray[Any]], None]


class DirectReader(ChunkReader):
    """Reads files and decodes chunks without zarr-python."""

    def __init__(
        self, where: str, files: Files, grid: ShardedChunks, chain: Chain, fill: Any
    ) -> None:
        self._where, self._files, self._grid, self._chain = where, files, grid, chain
        self._fill = fill
        self.dtype = chain.stored

    def fetch(self, chunks: NDArray[np.int64]) -> Decoder:
        pieces, there = self._grid.locate(chunks)
        read = self._files.fetch(pieces)

        def decode(start: int, stop: int, out: NDArray[Any]) -> None:
            self._chain.decode(read(start, stop), out)

        def decode_some(start: int, stop: int, out: NDArray[Any]) -> None:
            # Chunks of nothing but fill values need not have been written.
            first, last = int(there[:start].sum()), int(there[:stop].sum())
            out[:] = self._fill
            if first < last:
                found = np.empty((last - first, *out.shape[1:]), out.dtype)
                self._chain.decode(read(first, last), found)
                out[there[start:stop]] = found

        chosen = decode if there.all() else decode_some
        return lambda start, stop, out: self._decode(chosen, chunks, start, stop, out)

    def _decode(
        self,
        decode: Decoder,
        chunks: NDArray[np.int64],
        start: int,
        stop: int,
        out: NDArray[Any],
    ) -> None:
        """Decode chunks; an error names the first that is damaged."""
        try:
            decode(start, stop, out)
        except MissingCodecError as error:
            raise MissingCodecError(f"{self._where}: {error}") from error
        except ArchiveFormatError as error:
            if stop - start > 1:
                for one in range(start, stop):
                    self._decode(decode, chunks, one, one + 1, out[:1])
            raise ArchiveFormatError(
                f"{self._where}: chunk {chunks[start]} is damaged: {error}; copy the archive "
                "again, or convert its source again"
            ) from error


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
    mapping
        Replaces the numbers, where they are genes that are stored in another order.
    """

    mapping: NDArray[Any] | None = None

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
        self._width = int(np.prod(spec.item_shape, dtype=np.int64))
        self._chunk_length = chunk_rows * self._width
        self._scratch = threading.local()

    def read(self, starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Read checked ranges of items into a checked output."""
        if out.size == 0:
            return
        todo = plan(starts * self._width, stops * self._width, self._chunk_length)
        numbers = out.reshape(-1)
        for first in range(0, len(todo.chunks), _WINDOW_CHUNKS):
            self._read_window(todo.part(first, first + _WINDOW_CHUNKS), numbers)

    def _read_window(self, todo: ChunkPlan, out: NDArray[Any]) -> None:
        if len(todo.chunks) > _FEW_CHUNKS:
            # Large reads go past the cache: they would push out what small ones come back to, and
            # decoding into memory that a core has just used is faster.
            self._decode(todo, out, keep=False)
            return
        missing = []
        for i, number in enumerate(todo.chunks.tolist()):
            chunk = self._cache.get((self._name, number))
            if chunk is None:
                missing.append(i)
            else:
                self._place(chunk, todo.part(i, i + 1), out)
        # Neighbours of what was found are decoded together.
        for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1) if missing else ():
            self._decode(todo.part(int(run[0]), int(run[-1]) + 1), out, keep=True)

    def _decode(self, todo: ChunkPlan, out: NDArray[Any], *, keep: bool) -> None:
        n = len(todo.chunks)
        decode = self._reader.fetch(todo.chunks)
        # A group takes the interpreter from other threads once, not once a chunk, and is small
        # enough to stay in a core's cache.
        group = max(1, min(_GROUP_CHUNKS, -(-n // (2 * n_threads()))))

        def work(first: int) -> None:
            part = todo.part(first, first + group)
            chunks = self._memory(group)[: len(part.chunks)]
            decode(first, first + len(chunks), chunks)
            self._place(chunks.reshape(-1), part, out)
            if keep:
                for number, chunk in zip(part.chunks.tolist(), chunks, strict=True):
                    self._cache.put((self._name, number), chunk.copy())

        firsts = range(0, n, group)
        if len(firsts) == 1:
            work(0)
        else:
            for_each(work, firsts)

    def _memory(self, chunks: int) -> NDArray[Any]:
        """Memory of this thread, which its next group overwrites."""
        memory: NDArray[Any] | None = getattr(self._scratch, "memory", None)
        if memory is None or len(memory) < chunks:
            memory = np.empty((chunks, self._chunk_length), self._reader.dtype)
            self._scratch.memory = memory
        return memory

    def _place(self, chunks: NDArray[Any], part: ChunkPlan, out: NDArray[Any]) -> None:
        where = part.positions(self._chunk_length), part.targets, part.lengths
        if self.mapping is not None:
            if not place_mapped(chunks, self.mapping, *where, out):
                raise ArchiveFormatError(
                    f"{self._where}: one of its chunks {part.chunks.tolist()} holds a gene that is "
                    f"not below {len(self.mapping)}; convert the source again"
                )
        elif chunks.dtype == out.dtype:
            # As bits: one kernel an item size, and NaNs stay what they are.
            unit = f"u{chunks.itemsize}"
            place(chunks.view(unit), *where, out.view(unit))
        else:
            place(chunks, *where, out)
