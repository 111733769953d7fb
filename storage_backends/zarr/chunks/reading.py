"""Reading ranges of arrays of Zarr stores: plan the chunks, decode each once, place pieces."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from storage_backends.base import ArraySpec
from storage_backends.compute.threads import for_each, n_threads
from storage_backends.errors import ArchiveFormatError
from storage_backends.zarr.chunks.decoded import (
    CACHE_BYTES,
    CHUNKS,
    GROUP_BYTES,
    KEPT_BYTES,
    narrowed,
    scratch,
)
from storage_backends.zarr.chunks.fetching import ChunkReader, Chunks
from storage_backends.zarr.plan import Bound, ChunkPlan, place, plan

#: Maximum of compressed chunks in memory during one read.
_WINDOW_CHUNKS = 1024
#: Maximum of chunks in a read that uses the cache.
_FEW_CHUNKS = 16
#: Groups of chunks in frames for each thread, so that threads end at about the same time.
_GROUPS_PER_THREAD = 4


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
    is_offsets
        Whether these are offsets of rows: each chunk has those of many rows, and reading any rows
        decodes it.
    width
        Numbers in an item.
    """

    bound = Bound.of()
    is_offsets = False

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
        CHUNKS.remove(lambda key: key[0] is self.key)


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
        reading, readers = _Reading.of(kind, ranges, nowhere), [array.reader for array in kind]
        which, chunks = reading.located(0, len(reading.todo.chunks))
        if reading.is_cached:
            missing = [i for i, key in enumerate(reading.keys(which, chunks)) if key not in CHUNKS]
            which, chunks = which[missing], chunks[missing]
        if len(chunks):
            kept.append(readers[0].will_need(readers, which, chunks))
    return any(one is not False for one in kept) and kept


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

    @property
    def is_cached(self) -> bool:
        """Whether the chunks are read through the cache.

        A few are, as small reads often revisit them; and offsets, if all of them fit into it.
        """
        last = self.arrays[-1]
        n_chunks = int(self.first[-1]) - (-last.spec.length // last.chunk_rows)
        kept_bytes = n_chunks * self._chunk_length * min(last.reader.dtype.itemsize, KEPT_BYTES)
        are_kept = self.arrays[0].is_offsets and kept_bytes <= CACHE_BYTES
        return are_kept or len(self.todo.chunks) <= _FEW_CHUNKS

    def keys(self, which: NDArray[np.int64], chunks: NDArray[np.int64]) -> list[tuple[object, int]]:
        """Keys of chunks in the cache."""
        arrays = [array.key for array in self.arrays]
        return [(arrays[w], c) for w, c in zip(which.tolist(), chunks.tolist(), strict=True)]

    def run(self) -> None:
        in_frames = self.arrays[0].reader.framed is not None
        if not in_frames and self.is_cached:
            self._read_cached()
            return
        n, read = len(self.todo.chunks), self._read_frames if in_frames else self._read_many
        for start in range(0, n, _WINDOW_CHUNKS):
            read(start, min(start + _WINDOW_CHUNKS, n))

    @property
    def _chunk_length(self) -> int:
        return self.arrays[0].chunk_rows * self.arrays[0].width

    def _fetch(self, which: NDArray[np.int64], chunks: NDArray[np.int64]) -> Chunks:
        readers = [array.reader for array in self.arrays]
        return readers[0].fetch(readers, which, chunks)

    def _read_cached(self) -> None:
        """Read chunks through the cache."""
        which, chunks = self.located(0, len(self.todo.chunks))
        keys = self.keys(which, chunks)
        missing = []
        for i, key in enumerate(keys):
            chunk = CHUNKS.get(key)
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
            chunk = narrowed(chunk)
            CHUNKS.setdefault(keys[i], chunk)
            self._place(chunk, i)

        for_each(decode, range(len(missing)))

    def _read_many(self, first: int, last: int) -> None:
        """Read chunks without the cache, whose entries so many would evict.

        Decoding into recently used memory is also faster.
        """
        chunks = self._fetch(*self.located(first, last))
        dtype = self.arrays[0].reader.dtype
        chunk_bytes = self._chunk_length * dtype.itemsize
        group = max(1, min(GROUP_BYTES // chunk_bytes, -(-(last - first) // n_threads())))

        def decode(start: int) -> None:
            stop = min(start + group, last)
            memory = scratch((stop - start, self._chunk_length), dtype)
            chunks.decode(start - first, stop - first, self.todo.needed[start:stop], memory)
            self._place(memory, start)

        for_each(decode, range(first, last, group))

    def _read_frames(self, first: int, last: int) -> None:
        """Read pieces of chunks that can be decoded on their own."""
        readers = [reader for array in self.arrays if (reader := array.reader.framed)]
        chunks = readers[0].fetch(readers, *self.located(first, last))
        todo, bound = self.todo, self.arrays[0].bound
        group = max(1, -(-(last - first) // (_GROUPS_PER_THREAD * n_threads())))

        def place(start: int) -> None:
            stop = min(start + group, last)
            pieces = todo.bounds[start : stop + 1], todo.sources, todo.targets, todo.lengths
            span = start - first, stop - first
            row = chunks.place(*span, pieces, self._chunk_length, bound, self.out)
            if row >= 0:
                self._refuse(start + row)

        for_each(place, range(first, last, group))

    def _place(self, chunks: NDArray[Any], first: int) -> None:
        """Copy the pieces of decoded chunks, which are those of the plan from `first` on."""
        todo, out, bound = self.todo, self.out, self.arrays[0].bound
        # Numbers as bits where the output is one of bits, see `of`.
        if out.dtype.kind == "u" and chunks.itemsize == out.itemsize:
            chunks = chunks.view(out.dtype)
        bounds = todo.bounds[first : first + len(chunks) + 1]
        row = place(chunks, bounds, todo.sources, todo.targets, todo.lengths, bound, out)
        if row >= 0:
            self._refuse(first + row)

    def _refuse(self, at: int) -> NoReturn:
        """Raise the error of a chunk of the plan with a gene that is out of bounds."""
        (which,), (number,) = self.located(at, at + 1)
        raise ArchiveFormatError(
            f"{self.arrays[which].where}: chunk {number} holds a gene that is not below "
            f"{self.arrays[which].bound.below}; convert the source again"
        )
