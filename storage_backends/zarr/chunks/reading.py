"""Reading ranges of one array of a Zarr store: plan the chunks, decode each once, place pieces."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from storage_backends.base import ArraySpec
from storage_backends.compute.threads import for_each, n_threads
from storage_backends.directory.content import Content
from storage_backends.errors import COPY_AGAIN, ArchiveFormatError, MissingCodecError
from storage_backends.zarr.chunks.files import Files
from storage_backends.zarr.chunks.shards import ShardedChunks
from storage_backends.zarr.codecs.chain import Chain, DamagedChunkError
from storage_backends.zarr.plan import Bound, ChunkPlan, place, plan

#: Compressed chunks held at once while one read goes on.
_WINDOW_CHUNKS = 1024
#: Chunks of one read up to which they are kept for the next.
_FEW_CHUNKS = 16
#: Chunks that a thread decodes at once; where no other one helps it, as many as these bytes hold.
_GROUP_CHUNKS = 32
_GROUP_BYTES = 1 << 22


class ChunkCache:
    """Decoded chunks that were used last, bounded in bytes; any threads may use it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.begin()
        _caches.add(self)

    def begin(self) -> None:
        """Be as new."""
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


_caches: WeakSet[ChunkCache] = WeakSet()


def _begin_fork() -> None:
    """A fork has none of the threads that may hold a lock, or be about to change what it guards."""
    for cache in _caches:
        cache.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_fork)


class Chunks(ABC):
    """Some rising chunks of an array, which any threads may decode."""

    def place(
        self,
        start: int,
        memory: NDArray[Any],
        part: ChunkPlan,
        bound: Bound,
        out: NDArray[Any],
    ) -> bool:
        """Copy pieces of the chunks from `start` on to `out`; False where it cannot be done so."""
        return False

    @abstractmethod
    def decode(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Decode chunks ``[start, stop)`` into the rows of `out`."""


class ChunkReader(ABC):
    """Gives the chunks of one array.

    Attributes
    ----------
    dtype
        Type of the numbers that it gives, which may be narrower than the array's.
    """

    dtype: np.dtype[Any]

    @abstractmethod
    def fetch(self, chunks: NDArray[np.int64]) -> Chunks:
        """Begin to read chunks, which rise."""


class DirectReader(ChunkReader):
    """Reads files and decodes chunks without zarr-python."""

    def __init__(
        self, where: str, files: Files, grid: ShardedChunks, chain: Chain, fill: Any
    ) -> None:
        self.where, self.chain, self.fill = where, chain, fill
        self._files, self._grid = files, grid
        self.dtype = chain.stored

    def fetch(self, chunks: NDArray[np.int64]) -> Chunks:
        pieces, there = self._grid.locate(chunks)
        return _Fetched(self, chunks, there, self._files.fetch(pieces))


class _Fetched(Chunks):
    """Chunks whose bytes are at hand."""

    def __init__(
        self,
        reader: DirectReader,
        chunks: NDArray[np.int64],
        there: NDArray[np.bool_],
        content: Content,
    ) -> None:
        self._reader, self._chunks, self._content = reader, chunks, content
        # Chunks of nothing but fill values need not have been written.
        self._there = None if there.all() else there

    def place(
        self,
        start: int,
        memory: NDArray[Any],
        part: ChunkPlan,
        bound: Bound,
        out: NDArray[Any],
    ) -> bool:
        if self._there is not None:
            return False
        with self._located(start):
            content = self._content.part(start, start + len(part.chunks))
            return self._reader.chain.place(content, memory, part, bound, out)

    def decode(self, start: int, stop: int, out: NDArray[Any]) -> None:
        with self._located(start):
            if self._there is None:
                self._reader.chain.decode(self._content.part(start, stop), out)
                return
            first, last = int(self._there[:start].sum()), int(self._there[:stop].sum())
            out[:] = self._reader.fill
            if first < last:
                found = np.empty((last - first, *out.shape[1:]), out.dtype)
                self._reader.chain.decode(self._content.part(first, last), found)
                out[self._there[start:stop]] = found

    @contextmanager
    def _located(self, start: int) -> Iterator[None]:
        """Say of an error where it is."""
        where = self._reader.where
        try:
            yield
        except MissingCodecError as error:
            raise MissingCodecError(f"{where}: {error}") from error
        except DamagedChunkError as error:
            chunks = self._chunks if self._there is None else self._chunks[self._there]
            raise ArchiveFormatError(
                f"{where}: chunk {chunks[start + error.position]} is damaged: {error}; {COPY_AGAIN}"
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
    bound
        What ids are less than, and what replaces them if genes are stored in another order.
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
        chunks = self._reader.fetch(todo.chunks)
        # A thread has to wait for the interpreter between any two groups.
        threads, most = n_threads(), _GROUP_CHUNKS
        if threads == 1:
            most = max(most, _GROUP_BYTES // (self._chunk_length * self._reader.dtype.itemsize))
        group = max(1, min(most, -(-n // threads)))

        def work(first: int) -> None:
            part = todo.part(first, first + group)
            one = self._memory(1)[0]
            bits = _bits(one) if one.dtype == out.dtype else one
            if not keep and chunks.place(first, bits, part, self.bound, self._as_stored(out)):
                return
            memory = self._memory(group)[: len(part.chunks)]
            chunks.decode(first, first + len(memory), memory)
            self._place(memory.reshape(-1), part, out)
            if keep:
                for number, chunk in zip(part.chunks.tolist(), memory, strict=True):
                    self._cache.put((self._name, number), chunk.copy())

        firsts = range(0, n, group)
        if len(firsts) == 1:
            work(0)
        else:
            for_each(work, firsts)

    def _as_stored(self, out: NDArray[Any]) -> NDArray[Any]:
        """The output as bits where chunks have its type: one kernel an item size, exact NaNs."""
        return _bits(out) if self._reader.dtype == out.dtype else out

    def _memory(self, chunks: int) -> NDArray[Any]:
        """Memory of this thread, which its next group overwrites."""
        memory: NDArray[Any] | None = getattr(self._scratch, "memory", None)
        if memory is None or len(memory) < chunks:
            memory = np.empty((chunks, self._chunk_length), self._reader.dtype)
            self._scratch.memory = memory
        return memory

    def _place(self, chunks: NDArray[Any], part: ChunkPlan, out: NDArray[Any]) -> None:
        where = part.positions(self._chunk_length), part.targets, part.lengths
        bits = _bits(chunks) if chunks.dtype == out.dtype else chunks
        if not place(bits, *where, self.bound, self._as_stored(out)):
            raise ArchiveFormatError(
                f"{self._where}: one of its chunks {part.chunks.tolist()} holds a gene that is not "
                f"below {self.bound.below}; convert the source again"
            )


def _bits(numbers: NDArray[Any]) -> NDArray[Any]:
    return numbers.view(f"u{numbers.itemsize}")
