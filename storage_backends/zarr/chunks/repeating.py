"""Arrays whose numbers follow from those of another array of the store, see ``repeating_codec``."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from storage_backends.base import ArraySpec
from storage_backends.compute.traffic import TRAFFIC
from storage_backends.directory.content import Content
from storage_backends.directory.recorder import Recorder
from storage_backends.zarr.chunks.fetching import ChunkReader, Chunks, locate
from storage_backends.zarr.chunks.reading import ZarrArray
from storage_backends.zarr.chunks.shards import ShardedChunks
from storage_backends.zarr.chunks.writing import ENCODING, ArrayBuilder
from storage_backends.zarr.codecs import row_tables
from storage_backends.zarr.codecs.chain import Encoded, ends_within
from storage_backends.zarr.codecs.chunk_errors import DamagedChunkError
from storage_backends.zarr.codecs.profiles import OF, SAME, Profile
from storage_backends.zarr.codecs.repeating_codec import Repetition


class OfReader(ChunkReader):
    """Reads the tables of rows, and the chunks of the array whose numbers they replace.

    Parameters
    ----------
    where
        Opens the message of an error.
    grid
        The chunks with tables.
    spec, chunk_rows
        Specification of the array, and items in a chunk.
    other
        Reader of the other array, which has chunks of the same length.
    """

    def __init__(
        self, where: str, grid: ShardedChunks, spec: ArraySpec, chunk_rows: int, other: ChunkReader
    ) -> None:
        self.where, self.grid, self.dtype, self.other = where, grid, spec.dtype, other
        self._length, self._rows = spec.length, chunk_rows
        self.kind = OF, type(grid.files), spec.dtype, other.kind

    @staticmethod
    def fetch(
        readers: Sequence[OfReader], which: NDArray[np.int64], chunks: NDArray[np.int64]
    ) -> Chunks:
        pieces, _ = locate(readers, which, chunks)
        TRAFFIC.ask(int(pieces.length.sum()))
        content = readers[0].grid.files.fetch(pieces)
        others = readers[0].other.fetch([reader.other for reader in readers], which, chunks)
        return _Repeated(readers, which, chunks, content, others)

    @staticmethod
    def will_need(
        readers: Sequence[OfReader], which: NDArray[np.int64], chunks: NDArray[np.int64]
    ) -> Any:
        pieces, _ = locate(readers, which, chunks)
        others = [reader.other for reader in readers]
        announced = [
            readers[0].grid.files.will_need(pieces),
            others[0].will_need(others, which, chunks),
        ]
        return any(one is not False for one in announced) and announced

    def items_of(self, chunk: int) -> int:
        """Items in a chunk; the last one may have fewer."""
        return min(self._rows, self._length - chunk * self._rows)


class _Repeated(Chunks):
    def __init__(
        self,
        readers: Sequence[OfReader],
        which: NDArray[np.int64],
        chunks: NDArray[np.int64],
        content: Content,
        others: Chunks,
    ) -> None:
        self._readers, self._which, self._chunks = readers, which, chunks
        self._content, self._others = content, others

    def decode(self, start: int, stop: int, needed: NDArray[np.int64], out: NDArray[Any]) -> None:
        places = zip(self._which[start:stop].tolist(), self._chunks[start:stop], strict=True)
        n_items = np.array([self._readers[which].items_of(int(chunk)) for which, chunk in places])
        others = np.empty(out.shape, self._readers[0].other.dtype)
        needed = np.minimum(needed, n_items)
        self._others.decode(start, stop, needed, others)
        content = self._content.part(start, stop)
        try:
            row_tables.decode(content, needed, n_items, others, out)
        except DamagedChunkError as error:
            at = start + error.position
            where = f"{self._readers[self._which[at]].where}: chunk {self._chunks[at]}"
            raise error.at(where) from error


class UnrelatedError(Exception):
    """Values do not follow from those of the other array."""


class OfBuilder(ArrayBuilder):
    """An array that is written as tables of rows, by the numbers of another array.

    Parameters
    ----------
    other, path_of_other
        The other array, which is complete, and its path in the finished store.

    Raises
    ------
    UnrelatedError
        On appending values that do not follow from the other array, or on closing.
    """

    @property
    def knows_rows(self) -> bool:
        return True

    def __init__(
        self,
        recorder: Recorder,
        path: str,
        name: str,
        first: NDArray[Any],
        profile: Profile,
        other: ZarrArray,
        path_of_other: str,
    ) -> None:
        self._other, self._path_of_other = other, path_of_other
        super().__init__(recorder, path, name, first, profile)
        self._chunk_rows = other.chunk_rows
        self._run = self._new_run()

    def _use_chain(self) -> None:
        self._narrow = False

    def _encode(self, first: int, values: NDArray[Any], ends: NDArray[np.int64] | None) -> Encoded:
        n_items = min(len(values), self._other.spec.length - first)
        others = np.empty(n_items, self._other.spec.dtype)
        self._other.read(np.array([first]), np.array([first + n_items]), others)
        chunks = []
        for start in range(0, n_items, self._chunk_rows):
            stop = min(start + self._chunk_rows, n_items)
            within = None if ends is None else ends_within(ends, start, stop)
            data = row_tables.encode(values[start:stop], others[start:stop], within)
            if data is None:
                raise UnrelatedError
            chunks.append(data)
        return b"".join(chunks), [len(chunk) for chunk in chunks]

    def write_metadata(self, root: zarr.Group) -> None:
        chunk_rows = self._chunk_rows * self._per_shard
        codec = Repetition(OF, _relative(self._path_of_other, self.path), self._chunk_rows)
        _create(root, self.path, self.spec, chunk_rows, codec)


class SameBuilder(ArrayBuilder):
    """An array that is the same as another one, and has no chunks; nothing is appended to it."""

    def __init__(
        self,
        recorder: Recorder,
        path: str,
        name: str,
        first: NDArray[Any],
        profile: Profile,
        path_of_other: str,
        length: int,
    ) -> None:
        super().__init__(recorder, path, name, first, profile)
        self._path_of_other, self.length = path_of_other, length

    def move(self, path: str) -> None:
        os.makedirs(os.path.join(self._recorder.root, path), exist_ok=True)
        self.path = path

    def write_metadata(self, root: zarr.Group) -> None:
        codec = Repetition(SAME, _relative(self._path_of_other, self.path))
        _create(root, self.path, self.spec, self.length, codec)


def _relative(path: str, start: str) -> str:
    return posixpath.relpath(f"/{path}", f"/{start}")


def _create(
    root: zarr.Group, path: str, spec: ArraySpec, chunk_rows: int, codec: Repetition
) -> None:
    root.create_array(
        path,
        shape=(spec.length,),
        dtype=spec.dtype,
        chunks=(chunk_rows,),
        serializer=codec.to_dict(),
        filters=None,
        compressors=None,
        fill_value=0,
        attributes=ENCODING,
    )
