"""Writing one array of a Zarr store: chunks are compressed in threads and appended to shards."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from storage_backends.base import ArraySpec
from storage_backends.compute import threads
from storage_backends.directory.recorder import Recorder
from storage_backends.zarr.chunks.fetching import DirectReader, decoded, encoded
from storage_backends.zarr.chunks.files import LocalFiles
from storage_backends.zarr.chunks.reading import ZarrArray
from storage_backends.zarr.chunks.row_ends import RowEnds
from storage_backends.zarr.chunks.shards import ShardedChunks, ShardWriter
from storage_backends.zarr.codecs.chain import Chain, Encoded
from storage_backends.zarr.codecs.profiles import Codec, Profile, fits_narrow
from storage_backends.zarr.codecs.repeating_codec import Repetition

#: Attributes of an array of an AnnData.
ENCODING: dict[str, Any] = {"encoding-type": "array", "encoding-version": "0.2.0"}
#: Chunks per shard: files have tens of megabytes, and an index of 16 kB.
_CHUNKS_PER_SHARD = 1024
#: Items of a stored array that are encoded again at once.
_ITEMS_AT_ONCE = 1 << 18
#: Codecs from numbers to numbers.
_FILTERS = ("numcodecs.astype", "numcodecs.delta")
#: Most chunks of a run, which one task compresses, and its bytes: few tasks, and little memory.
CHUNKS_PER_RUN, _RUN_BYTES = 16, 1 << 20
#: Bytes of runs of an array that are being compressed.
_PENDING_BYTES = 32 << 20
#: Full runs that wait for the ends of their rows: writers append these after some values.
_MOST_WAITING = 16


class ArrayBuilder:
    """An array to which items are appended until it is closed.

    Parameters
    ----------
    recorder
        Writes the files of the store.
    path
        Path of the array in the store.
    name
        Name in the storage interface, which determines the codecs.
    first
        First values, which set the dtype and item shape; they are not appended.
    """

    def __init__(
        self, recorder: Recorder, path: str, name: str, first: NDArray[Any], profile: Profile
    ) -> None:
        self.path, self.name, self.length = path, name, 0
        self._recorder = recorder
        self._per_shard = self._most = _CHUNKS_PER_SHARD
        self._directory = os.path.join(recorder.root, path, "c")
        self._dtype, self._item_shape = first.dtype, first.shape[1:]
        self.profile = profile
        self._width = max(1, int(np.prod(self._item_shape, dtype=np.int64)))
        self._chunk_rows = max(1, profile.chunk_items // self._width)
        # Memory of runs that were compressed.
        self._spare: list[NDArray[Any]] = []
        self._run = self._new_run()
        self._filled = 0
        #: Where rows end, for codecs that decode single rows.
        self.ends = RowEnds()
        # Full runs of chunks that wait for the ends of their rows, with their first item.
        self._full: deque[tuple[int, NDArray[Any]]] = deque()
        # Runs being compressed, in order, with their first item, and numbers if they do not fit.
        self._pending: deque[tuple[int, NDArray[Any], Future[Encoded | None]]] = deque()
        self._narrow = profile.may_narrow(name, self._dtype)
        self._use_chain()
        self._shards = self._new_shards(self._directory)

    def resume(self, stored: ZarrArray, codecs: Sequence[Codec]) -> None:
        """Begin with the items of a stored array, of which this directory has hard links.

        Full shards stay, and other full chunks are copied as they are encoded. Only an array whose
        single shard has short chunks, that has another type, or that repeats another array, is
        encoded again.
        """
        reader, rows, length = stored.reader, stored.chunk_rows, stored.spec.length
        is_alone = Repetition.of(codecs[0]) is None
        per_shard = reader.grid.per_file if isinstance(reader, DirectReader) else 0
        has_full_shards = length >= rows * per_shard and (
            length > rows * per_shard or per_shard == self._most
        )
        start, is_same = 0, is_alone and self._dtype == stored.spec.dtype
        if is_same and (has_full_shards or rows == self._chunk_rows):
            assert isinstance(reader, DirectReader)
            if has_full_shards:
                self._chunk_rows, self._most = rows, per_shard
            self._codecs, self._chain = list(codecs), reader.chain
            self._narrow = reader.chain.stored != self._dtype
            self._run = self._new_run()
            self._shards = self._new_shards(self._directory)
            n_full = length // rows
            n_shards = n_full // self._most if has_full_shards else 0
            self._shards.skip(n_shards)
            for data in encoded(reader, n_shards * self._most, n_full):
                self._shards.append(data, [len(data)])
            self.length = start = n_full * rows
        else:
            self._recorder.remove(self._directory)
        for first in range(start, length, _ITEMS_AT_ONCE):
            stop = min(first + _ITEMS_AT_ONCE, length)
            values = np.empty((stop - first, *self._item_shape), stored.spec.dtype)
            stored.read(np.array([first]), np.array([stop]), values)
            self.append(values.astype(self._dtype, copy=False))

    @property
    def knows_rows(self) -> bool:
        """Whether chunks are compressed once it is known where their rows end."""
        return self._chain.knows_rows

    @property
    def spec(self) -> ArraySpec:
        """Specification of the items appended so far."""
        return ArraySpec(self._dtype, self.length, self._item_shape)

    def append(self, values: NDArray[Any]) -> None:
        """Append items of the same dtype and item shape as the first."""
        self.length += len(values)
        if not values.size:
            return
        while len(values):
            taken = min(len(values), len(self._run) - self._filled)
            self._run[self._filled : self._filled + taken] = values[:taken]
            self._filled += taken
            values = values[taken:]
            if self._filled == len(self._run):
                self._full.append((self.length - len(values) - self._filled, self._run))
                self._run, self._filled = self._new_run(), 0
        self._release(_MOST_WAITING)

    def close(self) -> None:
        """Write the remaining chunks; nothing can be appended afterwards."""
        if self._filled:
            if self.length < self._chunk_rows:
                # The only chunk is as long as the array.
                self._chunk_rows = self._filled
            n_rows = -(-self._filled // self._chunk_rows) * self._chunk_rows
            self._run[self._filled : n_rows] = self._run[self._filled - 1]
            self._full.append((self.length - self._filled, self._run[:n_rows]))
        self._release(0)
        self._drain(0)
        self._spare.clear()
        self._per_shard = self._shards.finish()

    def write_metadata(self, root: zarr.Group) -> None:
        """Write the metadata of the array."""
        chunks = (self._chunk_rows, *(max(1, n) for n in self._item_shape))
        codecs: list[Any] = [dict(codec) for codec in self._codecs]
        filters = [codec for codec in codecs if codec["name"] in _FILTERS]
        serializer, *compressors = codecs[len(filters) :]
        root.create_array(
            self.path,
            shape=(self.length, *self._item_shape),
            dtype=self._dtype,
            chunks=chunks,
            shards=(chunks[0] * self._per_shard, *chunks[1:]),
            filters=filters,
            serializer=serializer,
            compressors=compressors,
            fill_value=0,
            attributes=ENCODING,
        )

    def move(self, path: str) -> None:
        """Move the closed array to another path."""
        directory = os.path.join(self._recorder.root, path, "c")
        if self.spec.nbytes:
            os.makedirs(os.path.dirname(directory), exist_ok=True)
            self._recorder.rename(self._directory, directory)
        self.path, self._directory = path, directory

    def remove(self) -> None:
        """Remove the closed array."""
        self._recorder.remove(os.path.dirname(self._directory))

    def empty(self) -> NDArray[Any]:
        """An empty array with the item type and shape of this one."""
        return np.empty((0, *self._item_shape), self._dtype)

    def reader(self) -> ZarrArray:
        """Reader of the closed array, usable before its metadata is written."""
        grid = self._grid(self._directory, self._per_shard)
        reader = DirectReader(self.name, grid, self._chain, 0)
        return ZarrArray(self.name, self.spec, self._chunk_rows, reader)

    def abort(self) -> None:
        """Cancel pending work."""
        for *_, future in self._pending:
            future.cancel()

    def _new_run(self) -> NDArray[Any]:
        """Memory of a run, which may be that of one that was compressed."""
        if self._spare:
            return self._spare.pop()
        chunk_bytes = self._chunk_rows * self._width * self._dtype.itemsize
        n_chunks = max(1, min(CHUNKS_PER_RUN, _RUN_BYTES // chunk_bytes))
        return np.empty((n_chunks * self._chunk_rows, *self._item_shape), self._dtype)

    def _use_chain(self) -> None:
        self._codecs = self.profile.codecs(self.name, self._dtype, narrow=self._narrow)
        chain = Chain.of(self._codecs, self._dtype)
        assert chain is not None, "a profile has unknown codecs"
        self._chain = chain

    def _new_shards(self, directory: str) -> ShardWriter:
        suffix = "/0" * len(self._item_shape)
        return ShardWriter(directory, suffix, self._most, self._recorder.create)

    def _grid(self, directory: str, per_shard: int) -> ShardedChunks:
        suffix = "/0" * len(self._item_shape)
        return ShardedChunks(
            self.name,
            LocalFiles("/"),
            f"{directory.lstrip('/')}/",
            suffix,
            per_shard,
            complete=True,
        )

    def end_rows(self, ends: NDArray[Any]) -> None:
        """Say where further rows end, in items of the whole array and in ascending order."""
        if self.knows_rows:
            self.ends.extend(ends)
            self._release(_MOST_WAITING)

    def _release(self, most: int) -> None:
        """Compress full runs until at most `most` wait for the ends of their rows."""
        while self._full:
            first, run = self._full[0]
            ends = None
            if self.knows_rows:
                ends = self.ends.within(first, min(first + len(run), self.length))
                if ends is None and len(self._full) <= most:
                    return
            self._full.popleft()
            self._submit(first, run, ends)

    def _submit(self, first: int, run: NDArray[Any], ends: NDArray[np.int64] | None = None) -> None:
        future = threads.submit(self._encode, first, run.reshape(-1), ends)
        self._pending.append((first, run, future))
        self._drain(max(2, min(2 * threads.n_threads(), _PENDING_BYTES // max(run.nbytes, 1))))

    def _encode(
        self, first: int, values: NDArray[Any], ends: NDArray[np.int64] | None
    ) -> Encoded | None:
        """A compressed run of chunks; None if its values do not fit the narrow type."""
        chunk_items = self._chunk_rows * self._width
        if self._chain.stored == values.dtype:
            return self._chain.encode_chunks(values, chunk_items, ends)
        narrow = fits_narrow(values)
        return None if narrow is None else self._chain.encode_chunks(narrow, chunk_items, ends)

    def _drain(self, most: int) -> None:
        """Write compressed runs until at most `most` are pending."""
        while len(self._pending) > most:
            encoded = self._pending[0][2].result()
            if encoded is None:
                self._widen()
                continue
            self._shards.append(*encoded)
            _, run, _ = self._pending.popleft()
            if len(run) == len(self._run):
                self._spare.append(run)

    def _widen(self) -> None:
        """Recompress all chunks, with values in their original type."""
        narrow, written = self._chain, self._shards.n_chunks
        per_shard = self._shards.finish()
        narrow_directory = f"{self._directory}.narrow"
        if written:
            self._recorder.rename(self._directory, narrow_directory)
        self._narrow = False
        self._use_chain()
        self._shards = self._new_shards(self._directory)
        unfinished, self._pending = self._pending, deque()
        grid, rows = self._grid(narrow_directory, per_shard), self._chunk_rows
        chunks = decoded(DirectReader("", grid, narrow, 0), written, rows)
        for number, chunk in enumerate(chunks):
            values = chunk.astype(self._dtype).reshape(-1, *self._item_shape)
            self._submit(number * rows, values)
        for first, run, _ in unfinished:
            self._submit(first, run)
        self._recorder.remove(narrow_directory)
