"""Reading ranges of arrays of Zarr stores: plan the chunks, decode each once, place pieces."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage_backends.base import ArraySpec
from storage_backends.compute.caching import LRUCache
from storage_backends.compute.threads import for_each, n_threads
from storage_backends.compute.traffic import TRAFFIC
from storage_backends.directory.content import Content
from storage_backends.errors import COPY_AGAIN, ArchiveFormatError, MissingCodecError
from storage_backends.zarr.chunks.files import Pieces
from storage_backends.zarr.chunks.shards import ABSENT, ShardedChunks, indexes
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
    """Chunks being read; any thread may decode them."""

    @abstractmethod
    def decode(self, start: int, stop: int, needed: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Decode chunks ``[start, stop)`` into the rows of `out`.

        Of each chunk its item of `needed` says how many numbers the caller will use.
        """


class ChunkReader(ABC):
    """Gives the chunks of one array, or together those of several arrays.

    Attributes
    ----------
    where
        Opens the message of an error.
    dtype
        Type of the decoded numbers, which may be narrower than the array's.
    kind
        Readers of one kind can read together.
    """

    where: str
    dtype: np.dtype[Any]
    kind: Hashable

    @staticmethod
    @abstractmethod
    def fetch(
        readers: Sequence[Any], which: NDArray[np.int64], chunks: NDArray[np.int64]
    ) -> Chunks:
        """Begin to read chunks of readers of one kind.

        Parameters
        ----------
        which, chunks
            The reader of each chunk, and its number there, in ascending order.
        """

    @staticmethod
    @abstractmethod
    def will_need(
        readers: Sequence[Any], which: NDArray[np.int64], chunks: NDArray[np.int64]
    ) -> Any:
        """Announce chunks, as for `fetch`; returns an object to keep until they were read."""


class DirectReader(ChunkReader):
    """Reads files and decodes chunks without zarr-python."""

    def __init__(self, where: str, grid: ShardedChunks, chain: Chain, fill: Any) -> None:
        self.where, self.grid, self.chain, self.fill = where, grid, chain, fill
        self.dtype = chain.stored
        self.kind = type(grid.files), chain, np.asarray(fill).tobytes()

    @staticmethod
    def fetch(
        readers: Sequence[DirectReader], which: NDArray[np.int64], chunks: NDArray[np.int64]
    ) -> Chunks:
        pieces, written = locate(readers, which, chunks)
        return _Fetched(readers, which, chunks, written, readers[0].grid.files.fetch(pieces))

    @staticmethod
    def will_need(
        readers: Sequence[DirectReader], which: NDArray[np.int64], chunks: NDArray[np.int64]
    ) -> Any:
        pieces, _ = locate(readers, which, chunks)
        TRAFFIC.ask(int(pieces.length.sum()))
        return readers[0].grid.files.will_need(pieces)


def locate(
    readers: Sequence[DirectReader], which: NDArray[np.int64], chunks: NDArray[np.int64]
) -> tuple[Pieces, NDArray[np.bool_]]:
    """Locate chunks, and tell which of them were written."""
    shards = chunks // np.array([reader.grid.per_file for reader in readers])[which]
    is_next = (which[1:] != which[:-1]) | (shards[1:] != shards[:-1])
    edges = np.concatenate([[0], np.flatnonzero(is_next) + 1, [len(chunks)]])
    of_file = [(readers[which[i]].grid, int(shards[i])) for i in edges[:-1].tolist()]
    entries = []
    for index, (grid, shard), edge in zip(
        indexes(of_file), of_file, pairwise(edges.tolist()), strict=True
    ):
        entries.append(index[chunks[slice(*edge)] - shard * grid.per_file])
    files = [(grid.files, grid.key(shard)) for grid, shard in of_file]
    found = np.concatenate(entries)
    written = (found != ABSENT).any(axis=1)
    file = np.repeat(np.arange(len(files)), np.diff(edges))
    if not written.all():
        for i in np.flatnonzero(~written).tolist():
            if readers[which[i]].grid.complete:
                raise ArchiveFormatError(
                    f"{readers[which[i]].where}: chunk {chunks[i]} is missing; {COPY_AGAIN}"
                )
        found, file = found[written], file[written]
    offset, length = found.view(np.int64).T
    bad = (offset < 0) | (length < 0)
    if bad.any():
        damaged = readers[which[np.flatnonzero(written)[bad.argmax()]]]
        raise ArchiveFormatError(f"{damaged.where}: the index of a shard is damaged; {COPY_AGAIN}")
    return Pieces(files, file, offset, length), written


class _Fetched(Chunks):
    """Chunks whose encoded bytes are in memory."""

    def __init__(
        self,
        readers: Sequence[DirectReader],
        which: NDArray[np.int64],
        chunks: NDArray[np.int64],
        written: NDArray[np.bool_],
        content: Content,
    ) -> None:
        self._readers, self._which, self._chunks = readers, which, chunks
        self._content = content
        # Chunks with only fill values may be absent.
        self._written = None if written.all() else written

    def decode(self, start: int, stop: int, needed: NDArray[np.int64], out: NDArray[Any]) -> None:
        decode, first = self._readers[0].chain.decode, start
        try:
            if self._written is None:
                decode(self._content.part(start, stop), needed, out)
                return
            out[:] = self._readers[0].fill
            first, last = int(self._written[:start].sum()), int(self._written[:stop].sum())
            if first < last:
                written = self._written[start:stop]
                decoded = np.empty((last - first, *out.shape[1:]), out.dtype)
                decode(self._content.part(first, last), needed[written], decoded)
                out[written] = decoded
        except MissingCodecError as error:
            where = self._readers[self._which[start]].where
            raise MissingCodecError(f"{where}: {error}") from error
        except DamagedChunkError as error:
            raise self._damage(error, first) from error

    def _damage(self, error: DamagedChunkError, first: int) -> ArchiveFormatError:
        """The error, with the number of the chunk in its array."""
        at = first + error.position
        if self._written is not None:
            at = int(np.flatnonzero(self._written)[at])
        return ArchiveFormatError(
            f"{self._readers[self._which[at]].where}: chunk {self._chunks[at]} is damaged: "
            f"{error}; {COPY_AGAIN}"
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
    width
        Numbers in an item.
    """

    bound = Bound.of()

    def __init__(self, where: str, spec: ArraySpec, chunk_rows: int, reader: ChunkReader) -> None:
        self.where, self.spec, self.chunk_rows, self.reader = where, spec, chunk_rows, reader
        #: Identifies chunks of this array in the cache, without keeping its files open.
        self.key = object()
        self.width = int(np.prod(spec.item_shape, dtype=np.int64))

    @property
    def kind(self) -> Hashable:
        """Arrays of one kind are read together."""
        mapping = id(self.bound.mapping) if len(self.bound.mapping) else 0
        return self.reader.kind, self.chunk_rows, self.bound.below, mapping

    def read(self, starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Read checked ranges of items into a checked output."""
        read([self], np.zeros(len(starts), np.int64), starts, stops, out)

    def forget(self) -> None:
        """Release its chunks in the cache."""
        _chunks.remove(lambda key: key[0] is self.key)


def read(
    arrays: Sequence[ZarrArray],
    which: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    """Read checked ranges of items of arrays of one type into a checked output.

    Parameters
    ----------
    which, starts, stops
        The array of each range, and its first and last item.
    """
    if out.size == 0:
        return
    lengths = stops - starts
    targets = np.cumsum(lengths) - lengths
    for kind, ranges in _by_kind(arrays, which, starts, stops, targets):
        _Reading.of(kind, ranges, out.reshape(-1)).run()


def will_need(
    arrays: Sequence[ZarrArray],
    which: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
) -> Any:
    """Announce checked ranges of items; returns an object to keep until they were read."""
    nowhere, kept = np.empty(0, np.uint8), []
    for kind, ranges in _by_kind(arrays, which, starts, stops, starts):
        reading = _Reading.of(kind, ranges, nowhere)
        readers = [array.reader for array in kind]
        kept.append(readers[0].will_need(readers, *reading.located(0, len(reading.todo.chunks))))
    return kept


def _by_kind(
    arrays: Sequence[ZarrArray], which: NDArray[np.int64], *ranges: NDArray[np.int64]
) -> Iterator[tuple[Sequence[ZarrArray], tuple[NDArray[np.int64], ...]]]:
    """Yield arrays of one kind, with the array of each of their ranges and these ranges."""
    kinds: dict[Hashable, list[int]] = {}
    for i, array in enumerate(arrays):
        kinds.setdefault(array.kind, []).append(i)
    if len(kinds) == 1:
        yield arrays, (which, *ranges)
        return
    for members in kinds.values():
        chosen = np.flatnonzero(np.isin(which, members))
        place = np.searchsorted(members, which[chosen])
        yield [arrays[i] for i in members], (place, *(part[chosen] for part in ranges))


class _Reading(NamedTuple):
    """Ranges of arrays of one kind, being read.

    Their chunks are numbered as if the arrays followed one another.

    Attributes
    ----------
    arrays, first
        The arrays, and the number of the first chunk of each.
    todo
        The chunks to read.
    out
        The output, one-dimensional.
    """

    arrays: Sequence[ZarrArray]
    first: NDArray[np.int64]
    todo: ChunkPlan
    out: NDArray[Any]

    @classmethod
    def of(
        cls,
        arrays: Sequence[ZarrArray],
        ranges: Sequence[NDArray[np.int64]],
        out: NDArray[Any],
    ) -> _Reading:
        """Plan to read ranges: the array, first and last item, and place in `out` of each."""
        which, starts, stops, targets = ranges
        width, rows = arrays[0].width, arrays[0].chunk_rows
        n_chunks = np.array([-(-array.spec.length // rows) for array in arrays])
        first = np.cumsum(n_chunks) - n_chunks
        base = first[which] * rows
        todo = plan((starts + base) * width, (stops + base) * width, targets * width, rows * width)
        if arrays[0].reader.dtype == out.dtype:
            # Copied as bits: one kernel per item size, and NaN payloads are preserved.
            out = out.view(f"u{out.itemsize}")
        return cls(arrays, first, todo, out)

    def located(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The array of chunks of the plan, and their numbers there."""
        chunks = self.todo.chunks[start:stop]
        which = np.searchsorted(self.first, chunks, side="right") - 1
        return which, chunks - self.first[which]

    def run(self) -> None:
        n = len(self.todo.chunks)
        if n <= _FEW_CHUNKS:
            self._read_few()
            return
        for start in range(0, n, _WINDOW_CHUNKS):
            self._read_many(start, min(start + _WINDOW_CHUNKS, n))

    @property
    def _chunk_length(self) -> int:
        return self.arrays[0].chunk_rows * self.arrays[0].width

    def _fetch(self, which: NDArray[np.int64], chunks: NDArray[np.int64]) -> Chunks:
        readers = [array.reader for array in self.arrays]
        return readers[0].fetch(readers, which, chunks)

    def _read_few(self) -> None:
        """Read chunks through the cache, as small reads often revisit the same chunks."""
        which, chunks = self.located(0, len(self.todo.chunks))
        keys = [
            (self.arrays[w].key, c) for w, c in zip(which.tolist(), chunks.tolist(), strict=True)
        ]
        missing = []
        for i, key in enumerate(keys):
            chunk = _chunks.get(key)
            if chunk is None:
                missing.append(i)
            else:
                self._place(chunk, i)
        if not missing:
            return
        fetched = self._fetch(which[missing], chunks[missing])
        whole = np.array([self._chunk_length])

        def decode(position: int) -> None:
            i = missing[position]
            chunk = np.empty((1, self._chunk_length), self.arrays[0].reader.dtype)
            fetched.decode(position, position + 1, whole, chunk)
            _chunks.setdefault(keys[i], chunk)
            self._place(chunk, i)

        for_each(decode, range(len(missing)))

    def _read_many(self, first: int, last: int) -> None:
        """Read chunks without the cache, whose entries so many would evict.

        Decoding into recently used memory is also faster.
        """
        chunks = self._fetch(*self.located(first, last))
        dtype = self.arrays[0].reader.dtype
        chunk_bytes = self._chunk_length * dtype.itemsize
        group = max(1, min(_GROUP_BYTES // chunk_bytes, -(-(last - first) // n_threads())))

        def decode(start: int) -> None:
            stop = min(start + group, last)
            memory = _memory((stop - start, self._chunk_length), dtype)
            chunks.decode(start - first, stop - first, self.todo.needed[start:stop], memory)
            self._place(memory, start)

        for_each(decode, range(first, last, group))

    def _place(self, chunks: NDArray[Any], first: int) -> None:
        """Copy the pieces of decoded chunks, which are those of the plan from `first` on."""
        todo, out, bound = self.todo, self.out, self.arrays[0].bound
        # Numbers as bits where the output is one of bits, see `of`.
        if out.dtype.kind == "u" and chunks.itemsize == out.itemsize:
            chunks = chunks.view(out.dtype)
        bounds = todo.bounds[first : first + len(chunks) + 1]
        row = place(chunks, bounds, todo.sources, todo.targets, todo.lengths, bound, out)
        if row >= 0:
            (which,), (number,) = self.located(first + row, first + row + 1)
            raise ArchiveFormatError(
                f"{self.arrays[which].where}: chunk {number} holds a gene that is not below "
                f"{bound.below}; convert the source again"
            )


def _memory(shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Memory of this thread for a group of chunks; it is used again by the next call."""
    n_bytes = shape[0] * shape[1] * dtype.itemsize
    if n_bytes > _GROUP_BYTES:
        return np.empty(shape, dtype)
    if not hasattr(_scratch, "memory"):
        _scratch.memory = np.empty(_GROUP_BYTES, np.uint8)
    return np.ndarray(shape, dtype, _scratch.memory)
